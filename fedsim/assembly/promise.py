"""Fourth stage of assembly: the algorithm made private, and the ledger that keeps its promise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from fedsim.assembly.network import Network
from fedsim.assembly.parts import Parts
from fedsim.ground.layout import Layout
from fedsim.partition import Population
from fedsim.partition.population import sizes_of
from fedsim.privacy.config import promised
from fedsim.privacy.ledger import Ledger
from fedsim.privacy.links import check_links, check_rule
from fedsim.traits.releases import unit_of


def private(
    parts: Parts, population: Population, network: Network, models: Sequence[nn.Module]
) -> tuple[Any, Ledger | None]:
    """The algorithm as it runs, and what it lets out; without a promise the algorithm itself, and None.

    Raises:
        InputError: the promise cannot be kept in this run.
    """
    if parts.privacy is None:
        return parts.algorithm, None
    sizes = sizes_of(population.train).tolist()
    d = Layout.of(models[0]).d if len(models) == 1 else None
    rounds, local, seed = parts.planned_rounds, parts.local, parts.seed
    algorithm, ledger = promised(parts.privacy, parts.algorithm, network.schedule, sizes, rounds, local, seed, d)
    check_rule(algorithm, parts.aggregate)
    check_links(algorithm, parts.channel, parts.downlink, unit_of(ledger.releases(1)))
    return algorithm, ledger
