"""Rounds without a server: local work of all peers, then gossip over the round's graph."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch

from fedsim.channel.message import Sent
from fedsim.ground.layout import Layout, aligned
from fedsim.ground.tree import leaves, tree_map
from fedsim.pool.block import to_numpy
from fedsim.pool.several import Came, Several
from fedsim.pool.worker import Backend
from fedsim.runs.evaluation import peers_scores
from fedsim.runs.gossip import Exchanges, Gossip
from fedsim.runs.measured import consensus, own
from fedsim.runs.mixings import Mixings
from fedsim.runs.of_peers import PeersRun, in_order, repeated
from fedsim.runs.run import Step, Worked
from fedsim.runs.start import Start
from fedsim.runs.traffic import Record, Traffic
from fedsim.schedule.cohorts import cohort_of
from fedsim.traits.declared import traits_of
from fedsim.types import Round, State

BLINK_S = 0.05
"""Seconds that rounds at once may take: progress is shown and a run is stopped between them."""

PERIOD = 16
"""Longest period of W of which every round is recorded by itself."""


class PeersState(NamedTuple):
    """What later rounds depend on, trees of [n, ...] tensors."""

    states: State
    links: State  # each peer's memory of its link, and its neighbours' of it


class Peers(PeersRun):
    """A decentralized run in rounds; arguments as of ``Run``. Schedules say who computes; all gossip in every round."""

    def __init__(self, start: Start, backend: Backend):
        setup, memory, between = start.setup, start.beginning.memory, start.between
        n = len(setup.train.sizes())
        state = PeersState(*repeated((start.beginning.rows[0][0], (memory.uplink, memory.heard)), n))
        super().__init__(start, backend, state, Traffic({"edge": between.channel}, ("edges",)))
        assert between.topology is not None
        self.schedule = start.schedule
        self.gossip = Gossip(self.algorithm, between.channel, tuple(Layout.of(setup.models[0]).sizes), setup.seed)
        self.graphs = Mixings(self.algorithm, between.topology, n, setup.seed, _dtype(state.states))
        self.steps = self.algorithm.gossip_steps if "gossip_steps" in traits_of(self.algorithm).hooks else 1
        self.notes = self.graphs.first.warnings
        free = self.gossip.free(n) and self.graphs.period is not None and self.graphs.period <= PERIOD
        self._free = free and self.jobs.one_block(range(n), self.local_steps.tolist())  # to do rounds at once
        self._pace = 1  # of them
        self._asked: dict[int, Round] = {}  # rounds ahead: a schedule is asked once for each, in order
        self._plain = 0  # bytes of a peer's messages of a round to one neighbour, known after the first

    def ahead(self, most: int) -> Sequence[Step]:
        """Some rounds at once where all peers do the same in each and nothing of it is looked at, else one."""
        begun = time.perf_counter()
        rounds = self._alike(min(most, self._pace)) if self._free and self._plain else []
        came = self._several(rounds) if rounds else None
        if came is None:
            return [self.advance()]
        took = time.perf_counter() - begun
        if took > BLINK_S:
            self._pace = max(1, self._pace // 2)
        elif took < BLINK_S / 2 and len(rounds) == self._pace:
            self._pace *= 2
        steps = [
            Step(
                None, losses=[losses], sent={"edge": sent}, counted={"edges": edges}, record=self.graphs.gaps(rnd.index)
            )
            for rnd, losses in zip(rounds, came.losses, strict=True)
            for sent, edges in [self._usual(rnd.index)]
        ]
        last, at = steps[-1], rounds[-1].index
        new, before = (tree_map(_own_copy, rows) for rows in (came.rows, came.before))
        record = {**last.record, **(self._before(before) if self.due(at + 1) else {})}
        return [*steps[:-1], replace(last, state=PeersState(new, self.state.links), record=record)]

    def _round(self, index: int) -> Round:
        """What is told of a round to come."""
        if index not in self._asked:
            self._asked = {t: rnd for t, rnd in self._asked.items() if t >= self.done}
            cohort = cohort_of(self.schedule, index, len(self.sizes), self.setup.seed)
            self._asked[index] = self.round(index, cohort)
        return self._asked[index]

    def _alike(self, most: int) -> list[Round]:
        """The next rounds in which all peers compute, the last one at most of them with an evaluation after it."""
        rounds: list[Round] = []
        for index in range(self.done, self.done + most):
            rnd = self._round(index)
            if not in_order(rnd.clients, len(self.sizes)):
                break
            rounds.append(rnd)
            if self.due(index + 1):
                break
        return rounds

    def _several(self, rounds: Sequence[Round]) -> Came | None:
        """What these rounds come to, all computed by one worker; None where they must be made one by one."""
        each = tuple(self.graphs.links(t).w for t in range(self.graphs.period or 1))
        after = Exchanges(self.gossip, self.steps, each)
        job = Several(tuple(rounds), to_numpy(self.state.states), after, len(each))
        came: Came | None = self.backend.map("rounds", [job], [len(rounds)], {})[0]
        if came is None:
            self._free = False
        elif not came.fine:
            self._pace = 1  # the round at fault is found one by one
            return None
        return came

    def _usual(self, index: int) -> tuple[Sent, int]:
        """What a round sends where no channel changes it, and over how many edges in all exchanges."""
        links = self.graphs.links(index)
        size = self._plain * links.messages
        return Sent(size, size), self.steps * len(links.mixing.edges)

    def advance(self) -> Step:
        """One round."""
        index = self.done
        mixing, w, degrees, messages = self.graphs.links(index)
        rnd = self._round(index)
        worked = self.work([rnd], self.stores, {})
        states = self._after(worked)
        before = self._before(states) if self.due(index + 1) else {}
        links = self.state.links
        sent: list[Sent] = []
        for q in range(self.steps):
            states, links, sizes, plain = self.gossip.exchange(states, links, w, rnd, q)
            sent.append(Sent(int(sizes @ degrees), plain * messages))
            self._plain = self.steps * plain
        return Step(
            PeersState(states, links),
            losses=[answer.losses for _, answer in worked],
            sent={"edge": Sent.sum(sent)},
            counted={"edges": self.steps * len(mixing.edges)},
            record=self.graphs.gaps(index) | before,
        )

    def _after(self, worked: Sequence[Worked]) -> State:
        """All peers' states after local work."""
        if not worked:
            return self.state.states
        ids = [i for job, _ in worked for i in job.clients]
        rows = [answer.rows[0] for _, answer in worked]
        new = tree_map(lambda *a: aligned(torch.from_numpy(np.concatenate(a))), *rows)
        if in_order(ids, len(self.sizes)):
            return new
        at = torch.tensor(ids)
        return tree_map(lambda old, fresh: old.index_copy(0, at, fresh), self.state.states, new)

    def _before(self, states: State) -> Record:
        """What peers are before they mix."""
        models = self.models(states)
        found = {"gossip/consensus_before": consensus(models)}
        if self.evaluation.clients:
            found |= peers_scores(own(self.backend, models), self.setup.measures.shared, "unmixed_peer")
        return found


def _own_copy(array: np.ndarray) -> torch.Tensor:
    """Numbers that came from a worker, which may lie in memory that is shared and must not be written."""
    return aligned(torch.from_numpy(np.array(array)))


def _dtype(states: State) -> np.dtype[Any]:
    """Of the peers' vectors."""
    found = next(leaf for leaf in leaves(states) if leaf.is_floating_point())
    return found.numpy().dtype  # type: ignore[no-any-return]
