"""Peers in virtual time: events drawn in advance, executed wave by wave; gradients on workers, meetings in the driver.

Each peer's state lies in the driver as its last event left it. A peer is brought forward when it has an event; to be
measured it is brought forward on a copy, so that no bit of the run depends on when it is measured.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedsim.channel import message
from fedsim.channel.message import Sent
from fedsim.data.batches import as_tensor
from fedsim.ground.opaque import at_once
from fedsim.ground.tree import tree_map
from fedsim.pool.worker import Backend
from fedsim.runs.events import Timeline, draw_events, levels, too_slow, waves
from fedsim.runs.of_peers import PeersRun, Stacked, repeated
from fedsim.runs.run import Step
from fedsim.runs.start import Start
from fedsim.runs.traffic import Traffic
from fedsim.traits.declared import traits_of
from fedsim.types import Message, State


class VirtualState(NamedTuple):
    """What later steps depend on; the events are drawn again."""

    states: State  # tree of [n, ...] tensors, each peer as its last event left it
    last: Tensor  # [n] float64, when that was
    now: float  # virtual time of the last measurement


class VirtualTime(PeersRun):
    """An asynchronous decentralized run; its "rounds" end at the times at which it is measured.

    Attributes:
        graphs: who may meet whom, and how often.
        coupled: whether peers compute at meetings only.
        events: all events of the run, drawn in advance.
        times: when each round ends.
    """

    def __init__(self, start: Start, backend: Backend):
        assert start.between.graphs is not None
        self.graphs = start.between.graphs
        n = len(start.setup.train.sizes())
        state = VirtualState(repeated(start.beginning.rows[0][0], n), torch.zeros(n, dtype=torch.float64), 0.0)
        super().__init__(start, backend, state, Traffic({"edge": None}, ("edges",)))
        self.times = start.schedule.times(start.rounds)
        self.rounds = len(self.times)
        self.coupled = traits_of(self.algorithm).coupled
        events = draw_events(n, self.graphs.periods, self.times[-1], self.setup.seed)
        self.events = Timeline(*(column[events.j >= 0] for column in events)) if self.coupled else events
        self.levels = levels(self.events, n)
        self.notes = too_slow(self.algorithm, self.graphs.constants)

    def current(self) -> State:
        """Every peer's state at the last measurement."""
        state = self.state
        return at_once(self.algorithm.flow, state.states, state.now - state.last)

    def happened(self) -> Timeline:
        """The events up to now."""
        count = int(np.searchsorted(self.events.t, self.state.now, side="right"))
        return Timeline(*(column[:count] for column in self.events))

    def when(self) -> str:
        """When the step under way ends, for messages."""
        return f"at virtual time {self.times[self.done]:g}"

    def advance(self) -> Step:
        """Everything until the next measurement."""
        end = self.times[self.done]
        first, until = np.searchsorted(self.events.t, [self.state.now, end], side="right").tolist()
        states, last = tree_map(torch.clone, self.state.states), self.state.last.clone()
        losses: list[np.ndarray] = []
        sent = meetings = 0
        for level, wave in waves(self.levels, first, until):
            alone = self.events.j[wave] < 0
            self._forward(states, last, wave[alone], wave[~alone])
            computing = self._ends(wave) if self.coupled else self.events.i[wave[alone]]
            if len(computing):
                losses += self._compute(states, computing, level)
            if not alone.all():
                sent += self._meet(states, wave[~alone], level)
                meetings += int((~alone).sum())
        return Step(
            VirtualState(states, last, end),
            losses,
            sent={"edge": Sent(sent, sent)},
            counted={"edges": meetings},
            record={"time/virtual_s": end},
        )

    def _forward(self, states: State, last: Tensor, alone: np.ndarray, pairs: np.ndarray) -> None:
        """Bring the peers of a wave's gradient and edge events forward to their events, in place."""
        events = self.events
        ids = torch.from_numpy(np.concatenate([events.i[alone], self._ends(pairs)]))
        t = torch.from_numpy(np.concatenate([events.t[alone], events.t[pairs], events.t[pairs]]))
        rows = tree_map(lambda leaf: leaf[ids], states)
        _write(states, ids, at_once(self.algorithm.flow, rows, t - last[ids]))
        last[ids] = t

    def _ends(self, pairs: np.ndarray) -> np.ndarray:
        """The peers of edge events: the first of every pair, then the second."""
        return np.concatenate([self.events.i[pairs], self.events.j[pairs]])

    def _compute(self, states: State, ids: np.ndarray, level: int) -> list[np.ndarray]:
        """Gradients of different peers, in place; returns their losses, NaN where there is none."""
        worked = self.work([self.round(level, sorted(ids.tolist()))], (Stacked((states, {})),), {})
        for job, answer in worked:
            _write(states, torch.tensor(job.clients), tree_map(as_tensor, answer.rows[0]))
        return [answer.losses for _, answer in worked]

    def _meet(self, states: State, which: np.ndarray, level: int) -> int:
        """Edge events of disjoint pairs, in place; returns the bytes that travelled."""
        ends = self._ends(which)
        rnd, ids = self.round(level, sorted(ends.tolist())), torch.from_numpy(ends)
        size = 0

        def offer(peer: State) -> Message:
            nonlocal size
            offered: Message = self.algorithm.offer(peer, rnd)
            size = message.message_size(offered)
            return offered

        here = tree_map(lambda leaf: leaf[ids], states)
        offers = at_once(offer, here)
        got = tree_map(lambda o: o.roll(len(which), 0), offers)  # each pair's ends lie half of the batch apart
        _write(states, ids, at_once(lambda peer, of: self.algorithm.meet(peer, of, rnd), here, got))
        return size * len(ends)


def _write(states: State, ids: Tensor, rows: State) -> None:
    tree_map(lambda leaf, new: leaf.index_copy_(0, ids, new), states, rows)
