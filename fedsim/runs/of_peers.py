"""What the kinds of run without a server share: all peers' states, stacked in the driver, and their mean.

Their states are tensors [n, ...]: n d numbers for each vector of the state, and for the time of an exchange as many
again for what is mixed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from operator import eq
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from fedsim.ground.layout import Layout
from fedsim.ground.opaque import at_once
from fedsim.ground.tree import leaves, tree_map
from fedsim.pool.jobs import digest_of
from fedsim.pool.worker import Backend
from fedsim.runs.evaluation import Evaluation
from fedsim.runs.measured import mean_of, measured
from fedsim.runs.run import Run
from fedsim.runs.start import Start
from fedsim.runs.traffic import Traffic
from fedsim.types import State

WORTH = 2**22
"""Parameters times examples that make a job worth its price: some milliseconds of one core."""


class Stacked:
    """States of all clients, one above the other, as jobs read them."""

    def __init__(self, rows: State):
        self.rows = rows  # tree of [n, ...] tensors

    def read(self, clients: Sequence[int]) -> State:
        """Rows of these clients: a tree of [c, ...] arrays (copies)."""
        if in_order(clients, len(leaves(self.rows)[0])):
            return tree_map(lambda t: t.clone().numpy(), self.rows)
        at = torch.tensor(list(clients), dtype=torch.int64)
        return tree_map(lambda t: t[at].numpy(), self.rows)


def in_order(clients: Sequence[int], n: int) -> bool:
    """Whether these are all n clients, in their order."""
    return len(clients) == n and all(map(eq, clients, range(n)))


def repeated(row: State, n: int) -> State:
    """The same row for n peers: a tree of [n, ...] tensors."""
    return tree_map(lambda t: t.expand(n, *t.shape).clone(), row)


class PeersRun(Run):
    """A run whose state has a field ``states``, a tree of [n, ...] tensors."""

    vital: ClassVar[Literal["server", "states"]] = "states"

    def __init__(self, start: Start, backend: Backend, state: Any, traffic: Traffic):
        super().__init__(start, backend, state, traffic)
        # peers' messages are not summed by workers: how many jobs there are changes no bit
        step = Layout.of(start.setup.models[0]).d * start.setup.local.batch(int(self.sizes.max()))
        self.jobs = replace(self.jobs, least=max(1, WORTH // step))

    @property
    def algorithm(self) -> Any:
        """The peers' own; workers have its local part."""
        return self.setup.algorithm.base  # type: ignore[attr-defined]

    def current(self) -> State:
        """Every peer's state at this moment."""
        return self.state.states

    @property
    def stores(self) -> tuple[Stacked, ...]:
        """Every peer's state, and nothing beside it: the driver keeps the links."""
        return (Stacked((self.current(), {})),)

    def models(self, states: State) -> Tensor:
        """The models [n, d] that peers in these states predict with."""
        found: Tensor = at_once(self.algorithm.model, states)
        return found

    def measure(self) -> Evaluation:
        """The mean of the peers' models on the test samples, and their own models if asked for."""
        return measured(self.backend, self.setup, self.point(), self.evaluation)

    def point(self) -> Tensor:
        """Every peer's model [n, d]."""
        return self.models(self.current())

    def model(self) -> Tensor:
        """The mean of the peers' models [d]."""
        return mean_of(self.point())

    def digest(self) -> str:
        """sha256 over all peers' models, as little-endian bytes in client order."""
        return digest_of([self.point().numpy()])
