"""Rounds without a server: local work of all peers, then gossip over the round's graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from fedsim.channel.message import Sent
from fedsim.ground.layout import Layout, aligned
from fedsim.ground.tree import leaves, tree_map
from fedsim.pool.worker import Backend
from fedsim.runs.evaluation import peers_scores
from fedsim.runs.gossip import Gossip
from fedsim.runs.measured import consensus, own
from fedsim.runs.mixings import Mixings
from fedsim.runs.of_peers import PeersRun, in_order, repeated
from fedsim.runs.run import Step, Worked
from fedsim.runs.start import Start
from fedsim.runs.traffic import Record, Traffic
from fedsim.schedule.cohorts import cohort_of
from fedsim.traits.declared import traits_of
from fedsim.types import State


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

    def advance(self) -> Step:
        """One round."""
        index = self.done
        mixing, w, degrees, messages = self.graphs.links(index)
        rnd = self.round(index, cohort_of(self.schedule, index, len(self.sizes), self.setup.seed))
        worked = self.work([rnd], self.stores, {})
        states = self._after(worked)
        before = self._before(states) if self.due(index + 1) else {}
        links = self.state.links
        sent: list[Sent] = []
        for q in range(self.steps):
            states, links, sizes, plain = self.gossip.exchange(states, links, w, rnd, q)
            sent.append(Sent(int(sizes @ degrees), plain * messages))
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


def _dtype(states: State) -> np.dtype[Any]:
    """Of the peers' vectors."""
    found = next(leaf for leaf in leaves(states) if leaf.is_floating_point())
    return found.numpy().dtype  # type: ignore[no-any-return]
