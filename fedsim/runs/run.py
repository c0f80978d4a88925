"""The one loop: clock, traffic, records, what a checkpoint holds, and when a step counts.

A kind of run is a subclass that says what a step is (``advance``), what is measured (``measure``) and what it has at
the end. Nothing of a step is kept before all of it is known to be finite, and then all of it at once.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedsim.channel.message import Sent
from fedsim.errors import Diverged
from fedsim.ground.interrupts import uninterrupted
from fedsim.ground.layout import aligned
from fedsim.ground.tree import leaves, tree_map
from fedsim.pool.block import Job
from fedsim.pool.jobs import Jobs, Rows, mean_loss
from fedsim.pool.worker import Backend, Done
from fedsim.runs.evaluation import Evaluation
from fedsim.runs.start import Start
from fedsim.runs.store import Store
from fedsim.runs.traffic import Record, Traffic
from fedsim.types import Round, State

VITAL = {"server": "the server's state", "states": "a peer's state"}
"""Fields of a run's state that must stay finite, and what a message calls them."""


class Worked(NamedTuple):
    """A job of local work and its answer."""

    job: Job
    done: Done


@dataclass(frozen=True)
class Step:
    """What a step came to.

    Attributes:
        state: the run's next state, of the class of ``Run.state``.
        losses: [c] mean training losses of clients, in some pieces; NaN where a client has none.
        sent: bytes by kind of link.
        counted: what ``Traffic`` counts beside bytes.
        rows: clients' new rows: (number of the store, clients, tree of [c, ...] arrays).
        record: further scalars of the record.
    """

    state: Any
    losses: Sequence[np.ndarray]
    sent: Mapping[str, Sent]
    counted: Mapping[str, int] = field(default_factory=dict)
    rows: Sequence[tuple[int, tuple[int, ...], State]] = ()
    record: Mapping[str, float] = field(default_factory=dict)


class Run(ABC):
    """A run in progress, of any kind; a kind names the field of its state that must stay finite as ``vital``.

    Args:
        start: what it starts from.
        backend: who computes.
        state: a NamedTuple of all that later steps depend on beside the stores; each field is in every checkpoint.
        traffic: what is counted.
        stores: clients' states, of each architecture; of peers none, whose states are the driver's.

    Attributes:
        done: steps done.
        notes: what the user should know, one sentence each.
        recent: records of the steps that were done at once with the last one, and its own, without its evaluation.
        confusion: of the last evaluation.
        clients: likewise, by column, or None: see ``fedsim.runs.evaluation.client_values``.
        sizes: [n] training samples of each client.
        smallest: of them.
        local_steps: [n] of each client in a round.
    """

    vital: ClassVar[Literal["server", "states"]]

    def __init__(self, start: Start, backend: Backend, state: Any, traffic: Traffic, stores: Sequence[Store] = ()):
        self.setup, self.backend, self.evaluation, self.rounds = start.setup, backend, start.evaluation, start.rounds
        self.jobs = Jobs(backend, start.setup.kernels, start.blocks, start.jobs)
        self.state, self.traffic, self._stores = state, traffic, tuple(stores)
        self.done = 0
        self.notes: tuple[str, ...] = ()
        self.recent: list[Record] = [{}]
        self.confusion: np.ndarray | None = None
        self.clients: Mapping[str, np.ndarray] | None = None
        self.sizes = start.setup.train.sizes()
        self.smallest = int(self.sizes.min())
        sizes, of = np.unique(self.sizes, return_inverse=True)
        self.local_steps = np.array([start.setup.local.count(size) for size in sizes.tolist()])[of]

    @abstractmethod
    def advance(self) -> Step:
        """What the next step comes to; changes nothing."""

    @abstractmethod
    def measure(self) -> Evaluation:
        """The metrics of this moment."""

    @abstractmethod
    def point(self) -> Tensor:
        """What a trajectory keeps of this moment: the global model [d], or all peers' [n, d]."""

    @abstractmethod
    def model(self) -> Tensor | None:
        """The model of all [d], where there is one."""

    @abstractmethod
    def digest(self) -> str:
        """sha256 over what the run came to, as little-endian bytes."""

    def happened(self) -> tuple[np.ndarray, ...] | None:
        """The events up to now, where a run has events; see ``RunFolder.events``."""
        return None

    @property
    def stores(self) -> Sequence[Rows]:
        """Where clients' states can be read, of each architecture."""
        return self._stores

    @property
    def server(self) -> Any:
        """The server's state, or () where there is none."""
        return ()

    def ahead(self, most: int) -> Sequence[Step]:
        """What the next steps come to, one or some, but no more than ``most``; changes nothing of the run's state.

        Of all but the last one ``state`` says nothing, and none of them needs an evaluation.
        """
        return [self.advance()]

    def step(self) -> Record:
        """One step, as ``go`` makes it."""
        return self.go(1)[0]

    def go(self, most: int) -> list[Record]:
        """One step or some, but no more than ``most``, and the evaluation of the last one where that is due.

        Returns:
            For each every scalar of the step by its TensorBoard tag, and ``round``, the number of steps done.

        Raises:
            Diverged: a loss, a message or the new state is not finite; everything stays as after the last step.
        """
        begun = time.perf_counter()
        ahead = self.ahead(most)
        if not _finite(getattr(ahead[-1].state, self.vital)):
            raise Diverged(f"{VITAL[self.vital]} is not finite {self.when()}")
        state = tree_map(_as_restored, ahead[-1].state)
        with uninterrupted():
            self.recent = [self._kept(step) for step in ahead]
            self.state = state
            for record in self.recent:
                record["time/round_s"] = (time.perf_counter() - begun) / len(ahead)
        evaluated = self.evaluate() if self.due(self.done) else {}
        return [*map(dict, self.recent[:-1]), self.recent[-1] | evaluated]

    def _kept(self, step: Step) -> Record:
        """Count a step, keep its clients' rows and return its record."""
        self.done += 1
        for number, clients, rows in step.rows:
            self._stores[number].write(clients, rows)
        for store in self._stores:
            store.commit()
        sent = self.traffic.add(step.sent, step.counted)
        return {"round": self.done, **mean_loss(step.losses), **sent, **step.record}

    def when(self) -> str:
        """When the step under way ends, for messages."""
        return f"after round {self.done + 1}"

    def due(self, done: int) -> bool:
        """Whether to evaluate after so many steps."""
        return self.evaluation.due(done, self.rounds)

    def evaluate(self) -> Record:
        """Metrics of this moment by TensorBoard tag."""
        begun = time.perf_counter()
        found = self.measure()
        self.confusion, self.clients = found.confusion, found.clients
        return found.metrics | {"time/evaluate_s": time.perf_counter() - begun}

    def work(self, rounds: Sequence[Round], rows: Sequence[Rows], broadcast: Any) -> list[Worked]:
        """The local work of these rounds' clients: every kind of run has its clients work here and nowhere else.

        Args:
            rounds: with disjoint clients; each client works as in its round.
            rows: where the clients' rows are read, of each architecture.
            broadcast: what all of them got, as numpy arrays.
        """
        jobs: list[Job] = []
        costs: list[int] = []
        for rnd in rounds:
            steps = self.local_steps[list(rnd.clients)].tolist()
            more, cost = self.jobs.cut(rnd, rnd.clients, steps, rows, first=len(jobs))
            jobs += more
            costs += cost
        answers = self.jobs.train(jobs, costs, broadcast) if jobs else []
        return [Worked(job, answer) for job, answer in zip(jobs, answers, strict=True)]

    def round(self, index: int, clients: Sequence[int]) -> Round:
        """What an algorithm is told of a round, or of a wave of events."""
        return Round(index, tuple(clients), len(self.sizes), self.smallest)

    def snapshot(self) -> State:
        """Everything that later steps depend on."""
        stores = tuple(store.snapshot() for store in self._stores)
        counted = {"done": self.done, "totals": dict(self.traffic.totals), "plain": dict(self.traffic.plain)}
        return {**self.packed(), "stores": stores, **counted}

    def restore(self, snapshot: State) -> None:
        """Go on from a snapshot of a run with the same parts; this one must not have begun."""
        self.state = self.unpacked({name: snapshot[name] for name in self.state._fields})
        self.done, self.traffic.totals, self.traffic.plain = (snapshot[name] for name in ("done", "totals", "plain"))
        for store, rows in zip(self._stores, snapshot["stores"], strict=True):
            store.restore(rows)

    def packed(self) -> dict[str, Any]:
        """The state by field, as a checkpoint takes it."""
        fields: dict[str, Any] = self.state._asdict()
        return fields

    def unpacked(self, fields: Mapping[str, Any]) -> Any:
        """The inverse of ``packed``."""
        return type(self.state)(**fields)


def _as_restored(leaf: Any) -> Any:
    """A leaf of the state as a resumed run has it: aligned in memory, so that both go on to the same bits."""
    return aligned(leaf) if isinstance(leaf, Tensor) else leaf


def _finite(state: Any) -> bool:
    """Whether all floating-point numbers of a tree's tensors are finite."""
    floats = (leaf for leaf in leaves(state) if isinstance(leaf, Tensor) and leaf.is_floating_point())
    # One number that is not finite makes the sum so; a sum that overflows is no proof.
    return all(math.isfinite(leaf.sum()) or bool(torch.isfinite(leaf).all()) for leaf in floats)
