"""Peers in virtual time: events drawn in advance, executed wave by wave; gradients on workers, meetings in the driver.

All peers' states are stacked tensors [n, ...] in the driver, each as its peer's last event left it. A peer is brought
forward when it has an event; to be measured it is brought forward on a copy, so that no bit of the run depends on when
it is measured.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from fedsim.channel import message
from fedsim.data.batches import as_tensor
from fedsim.errors import Diverged
from fedsim.evaluate import Evaluate
from fedsim.ground.interrupts import uninterrupted
from fedsim.ground.tree import leaves, tree_map
from fedsim.pool.jobs import Jobs, digest_of, mean_loss
from fedsim.pool.worker import Backend, Done, Setup
from fedsim.runs.events import Graphs, Timeline, draw, levels, too_slow, waves
from fedsim.runs.measured import mean_of, measured
from fedsim.runs.peers import Stacked
from fedsim.runs.rounds import Record
from fedsim.schedule import Events
from fedsim.traits.declared import traits_of
from fedsim.types import Message, Round, State


class VirtualTime:
    """An asynchronous decentralized run in progress; its "rounds" end at the times at which it is measured.

    Args:
        graphs: who may meet whom, and how often.
        setup: what the workers were given: the algorithm's local part, tuned to the graphs, and no channel.
        backend: who computes.
        schedule: until when, and when to measure.
        evaluation: when and what to evaluate.
        row: what every peer starts from.
        blocks: most peers computed at once.
        jobs: pieces that a wave is cut into, or ``auto``.
        rounds: measured times where ``schedule.record`` names none.

    Attributes:
        coupled: whether peers compute at meetings only.
        events: all events of the run, drawn in advance.
        times: when each round ends.
        now: virtual time of the last measurement.
        notes: what the user should know, one sentence each.
    """

    def __init__(
        self,
        graphs: Graphs,
        setup: Setup,
        backend: Backend,
        schedule: Events,
        evaluation: Evaluate,
        row: State,
        *,
        blocks: Sequence[int],
        jobs: int | Literal["auto"],
        rounds: int,
    ):
        self.setup, self.backend, self.evaluation = setup, backend, evaluation
        self.algorithm: Any = setup.algorithm.base  # type: ignore[attr-defined]
        self.jobs = Jobs(backend, setup.kernels, blocks, jobs)
        self.sizes = setup.train.sizes()
        n = len(self.sizes)
        self.times = schedule.times(rounds)
        self.rounds = len(self.times)
        self.graphs = graphs
        self.coupled = traits_of(self.algorithm).coupled
        events = draw(n, graphs.stretches, self.times[-1], setup.seed)
        self.events = Timeline(*(column[events.j >= 0] for column in events)) if self.coupled else events
        self.levels = levels(self.events, n)
        self.states: State = tree_map(lambda t: t.expand(n, *t.shape).clone(), row)
        self.last = torch.zeros(n, dtype=torch.float64)  # time of each peer's state
        self.now, self.done = 0.0, 0
        self.notes = too_slow(self.algorithm, graphs.constants)
        self.record: Record = {}  # of the last step, without its evaluation
        self.confusion: np.ndarray | None = None  # of the last evaluation
        self.totals = {"comm/edge_total_bytes": 0, "comm/edges_total": 0}

    @property
    def stores(self) -> tuple[Stacked, ...]:
        """Every peer's state at the last measurement."""
        return (Stacked((self._forward(self.states, self.last), {})),)

    @property
    def server(self) -> tuple[()]:
        """There is none."""
        return ()

    def snapshot(self) -> State:
        """Everything that later steps depend on; the events are drawn again."""
        counted = {"done": self.done, "now": self.now, "totals": dict(self.totals)}
        return {"states": self.states, "last": self.last, **counted}

    def restore(self, snapshot: State) -> None:
        """Go on from a snapshot of a run with the same parts; this one must not have begun."""
        self.states, self.last, self.totals = snapshot["states"], snapshot["last"], snapshot["totals"]
        self.done, self.now = snapshot["done"], snapshot["now"]

    def point(self) -> Tensor:
        """Every peer's model [n, d] at the last measurement."""
        found: Tensor = torch.func.vmap(self.algorithm.model)(self._forward(self.states, self.last))
        return found

    def model(self) -> Tensor:
        """The mean of the peers' models [d]."""
        return mean_of(self.point())

    def digest(self) -> str:
        """sha256 over all peers' models, as little-endian bytes in client order."""
        return digest_of([self.point().numpy()])

    def happened(self) -> Timeline:
        """The events up to now."""
        count = int(np.searchsorted(self.events.t, self.now, side="right"))
        return Timeline(*(column[:count] for column in self.events))

    def evaluate(self) -> Record:
        """Metrics of the mean of the peers' models, and of their own models if asked for."""
        found = measured(self.backend, self.setup, self.point(), self.evaluation)
        self.confusion = found.confusion
        return found.metrics

    def step(self) -> Record:
        """Everything until the next measurement.

        Returns:
            Every scalar by its TensorBoard tag, and ``round``, the number of measurements done.

        Raises:
            Diverged: a loss or a peer's state is not finite; the peers keep their states of the last measurement.
        """
        start = time.perf_counter()
        end = self.times[self.done]
        first, until = np.searchsorted(self.events.t, [self.now, end], side="right").tolist()
        states, last = tree_map(torch.clone, self.states), self.last.clone()
        losses: list[np.ndarray] = []
        sent = meetings = 0
        for level, wave in waves(self.levels, first, until):
            alone = self.events.j[wave] < 0
            self._advance(states, last, wave[alone], wave[~alone])
            computing = self._ends(wave) if self.coupled else self.events.i[wave[alone]]
            if len(computing):
                losses += self._compute(states, computing, level)
            if not alone.all():
                sent += self._meet(states, wave[~alone], level)
                meetings += int((~alone).sum())
        if not all(torch.isfinite(leaf).all() for leaf in leaves(states) if leaf.is_floating_point()):
            raise Diverged(f"a peer's state is not finite at virtual time {end:g}")
        with uninterrupted():
            self.states, self.last, self.now = states, last, end
            self.done += 1
            self.totals["comm/edge_total_bytes"] += sent
            self.totals["comm/edges_total"] += meetings
            self.record = {
                "round": self.done,
                **mean_loss(losses),
                "comm/edge_bytes": sent,
                "comm/edges": meetings,
                **self.totals,
                "time/virtual_s": end,
                "time/round_s": time.perf_counter() - start,
            }
        return self.record | (self.evaluate() if self.evaluation.due(self.done, self.rounds) else {})

    def _advance(self, states: State, last: Tensor, alone: np.ndarray, pairs: np.ndarray) -> None:
        """Bring the peers of a wave's gradient and edge events forward to their events, in place."""
        events = self.events
        ids = torch.from_numpy(np.concatenate([events.i[alone], self._ends(pairs)]))
        t = torch.from_numpy(np.concatenate([events.t[alone], events.t[pairs], events.t[pairs]]))
        rows = tree_map(lambda leaf: leaf[ids], states)
        _write(states, ids, torch.func.vmap(self.algorithm.flow)(rows, t - last[ids]))
        last[ids] = t

    def _ends(self, pairs: np.ndarray) -> np.ndarray:
        """The peers of edge events: the first of every pair, then the second."""
        return np.concatenate([self.events.i[pairs], self.events.j[pairs]])

    def _compute(self, states: State, ids: np.ndarray, level: int) -> list[np.ndarray]:
        """Gradients of different peers, in place; returns their losses, NaN where there is none."""
        rnd = self._round(level, ids)
        costs = [self.setup.local.count(int(m)) for m in self.sizes[list(rnd.clients)]]
        cut, totals = self.jobs.cut(rnd, rnd.clients, costs, (Stacked((states, {})),))
        answers: list[Done] = self.jobs.train(cut, totals, {})
        for job, answer in zip(cut, answers, strict=True):
            _write(states, torch.tensor(job.clients), tree_map(as_tensor, answer.rows[0]))
        return [answer.losses for answer in answers]

    def _meet(self, states: State, which: np.ndarray, level: int) -> int:
        """Edge events of disjoint pairs, in place; returns the bytes that travelled."""
        ends = self._ends(which)
        rnd, ids = self._round(level, ends), torch.from_numpy(ends)
        size = 0

        def offer(peer: State) -> Message:
            nonlocal size
            offered: Message = self.algorithm.offer(peer, rnd)
            size = message.message_size(offered)
            return offered

        here = tree_map(lambda leaf: leaf[ids], states)
        offers = torch.func.vmap(offer)(here)
        got = tree_map(lambda o: o.roll(len(which), 0), offers)  # each pair's ends lie half of the batch apart
        _write(states, ids, torch.func.vmap(lambda peer, of: self.algorithm.meet(peer, of, rnd))(here, got))
        return size * len(ends)

    def _round(self, level: int, ids: np.ndarray) -> Round:
        return Round(level, tuple(sorted(ids.tolist())), len(self.sizes), int(self.sizes.min()))

    def _forward(self, states: State, last: Tensor) -> State:
        """All peers' states at the time of the last measurement."""
        return torch.func.vmap(self.algorithm.flow)(states, self.now - last)


def _write(states: State, ids: Tensor, rows: State) -> None:
    tree_map(lambda leaf, new: leaf.index_copy_(0, ids, new), states, rows)
