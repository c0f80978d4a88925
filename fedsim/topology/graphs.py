"""What topologies of weighted graphs share: the keys ``weights`` and ``rates``, and how random graphs are drawn."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedsim.errors import InputError, require
from fedsim.fields import check_fields
from fedsim.ground import addresses
from fedsim.ground.later import networkx as nx
from fedsim.ground.rng import numpy_stream
from fedsim.topology.mixing import Mixing
from fedsim.topology.rates import Rates
from fedsim.topology.weights import Weights, weigh


@dataclass(frozen=True, kw_only=True)
class WeightedGraph(ABC):
    """A graph whose edges get their weights by a rule.

    Attributes:
        weights: see ``fedsim.topology.weights.weigh``.
        rates: of the edges' Poisson clocks in an event schedule, see ``fedsim.topology.rates.edge_rates``.
    """

    weights: Weights = "metropolis"
    rates: Rates = "minimal"

    def __post_init__(self) -> None:
        check_fields(self)
        require(isinstance(self.rates, str) or self.rates > 0, "rates", "be > 0", self.rates)

    @abstractmethod
    def mixing(self, n: int, index: int, seed: int) -> Mixing:
        """The W of n peers in round ``index`` (0-based)."""


@dataclass(frozen=True, kw_only=True)
class FixedGraph(WeightedGraph):
    """One graph, the same in every round and for every seed."""

    @abstractmethod
    def graph(self, n: int) -> nx.Graph:
        """The graph on 0..n-1, connected."""

    def mixing(self, n: int, index: int, seed: int) -> Mixing:
        """The same W in every round."""
        return weigh(self.graph(n), self.weights, period=1)


@dataclass(frozen=True, kw_only=True)
class RandomGraph(WeightedGraph):
    """A random graph at stream (seed, "topology", round, attempt), drawn again until it is connected.

    Attributes:
        fresh: a graph of its own for every round; false: that of round 0 in all rounds.
        attempts: number of draws before giving up, >= 1.
    """

    fresh: bool = False
    attempts: int = 100
    more_edges: ClassVar[str]  # what the user can do for a connected graph

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.attempts >= 1, "attempts", "be >= 1", self.attempts)

    @abstractmethod
    def sample(self, n: int, rng: np.random.Generator) -> nx.Graph:
        """A graph on 0..n-1, perhaps not connected."""

    def mixing(self, n: int, index: int, seed: int) -> Mixing:
        """The W of round ``index``, or of round 0 unless ``fresh``."""
        at = index if self.fresh else 0
        graph = first_connected(lambda rng: self.sample(n, rng), seed, at, self.attempts, self.more_edges)
        return weigh(graph, self.weights, period=None if self.fresh else 1)


def first_connected(
    sample: Callable[[np.random.Generator], nx.Graph], seed: int, index: int, attempts: int, more_edges: str
) -> nx.Graph:
    """The first connected graph among the draws 0..attempts-1 of round ``index``.

    Raises:
        InputError: none was connected; says to ``more_edges``.
    """
    for attempt in range(attempts):
        graph = sample(numpy_stream(seed, addresses.TOPOLOGY, index, attempt))
        if connected(graph):
            return graph
    raise InputError(
        f"topology: none of {attempts} draws of a graph for round {index} was connected (the last has "
        f"{graph.number_of_edges()} edges on {len(graph)} nodes); {more_edges}, or topology.attempts"
    )


def connected(graph: nx.Graph) -> bool:
    """Whether news from every node reaches every other."""
    return bool(nx.is_strongly_connected(graph) if graph.is_directed() else nx.is_connected(graph))


def require_peers(n: int, least: int, topology: str) -> None:
    """Raise InputError unless there are enough peers for this graph."""
    require(n >= least, "partition.clients", f"be >= {least} for topology={topology}", n)


def placed(graph: nx.Graph, positions: np.ndarray) -> nx.Graph:
    """The graph with ``positions`` [n, 2] where a picture shows its nodes."""
    nx.set_node_attributes(graph, dict(enumerate(positions.tolist())), "pos")
    return graph


def circle(n: int, share: float = 1.0) -> np.ndarray:
    """n points [n, 2] evenly on a circle, or on the ``share`` of it that is open at the bottom."""
    turn = np.arange(n) / n if share == 1.0 else share * (np.arange(n) / max(1, n - 1) - 0.5)
    return np.stack([np.sin(2 * np.pi * turn), np.cos(2 * np.pi * turn)], axis=1)
