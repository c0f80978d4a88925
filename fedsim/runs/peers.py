"""The round loop without a server: local work of all peers, then gossip over the round's graph.

All peers' states are stacked tensors [n, ...] in the driver: n d numbers for each vector of the state, and for the time
of an exchange as many again for what is mixed.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from fedsim.assembly.checks import cohort_of, require_mixing
from fedsim.errors import Diverged
from fedsim.evaluate import Evaluate
from fedsim.ground.interrupts import uninterrupted
from fedsim.ground.layout import Layout, aligned
from fedsim.ground.tree import leaves, tree_map
from fedsim.pool.jobs import Jobs, digest_of, mean_loss
from fedsim.pool.worker import Backend, Setup
from fedsim.runs.gossip import Gossip, receivers
from fedsim.runs.measured import consensus, mean_of, measured, own
from fedsim.runs.rounds import Record
from fedsim.schedule import Schedule
from fedsim.topology import Mixing, Topology, spectral_gap
from fedsim.traits.declared import traits_of
from fedsim.types import Round, State


class Stacked:
    """States of all clients, one above the other."""

    def __init__(self, rows: State):
        self.rows = rows  # tree of [n, ...] tensors

    def read(self, clients: Sequence[int]) -> State:
        """Rows of these clients: a tree of [c, ...] arrays (copies)."""
        at = torch.tensor(list(clients), dtype=torch.int64)
        return tree_map(lambda t: t[at].numpy(), self.rows)


class Peers:
    """A decentralized run in progress: every peer's state, and one method per round.

    Args:
        algorithm: the peers' algorithm; ``setup.algorithm`` is its local part.
        topology: who gossips with whom, when.
        setup: what the workers were given; its channels are empty, ``channel`` is the peers'.
        channel: of the messages between peers.
        backend: who computes.
        schedule: who computes when; all gossip in every round.
        evaluation: when and what to evaluate.
        row: what every peer starts from.
        links: memory of a peer's link, and of its far ends.
        blocks: most peers computed at once.
        jobs: pieces that the peers are cut into, or ``auto``.
        rounds: how many there will be.
    """

    def __init__(
        self,
        algorithm: Any,
        topology: Topology,
        setup: Setup,
        channel: Any,
        backend: Backend,
        schedule: Schedule,
        evaluation: Evaluate,
        row: State,
        links: State,
        *,
        blocks: Sequence[int],
        jobs: int | Literal["auto"],
        rounds: int,
    ):
        self.algorithm, self.topology, self.setup, self.rounds = algorithm, topology, setup, rounds
        self.backend, self.schedule, self.evaluation = backend, schedule, evaluation
        self.jobs = Jobs(backend, setup.kernels, blocks, jobs)
        self.sizes = setup.train.sizes()
        n = len(self.sizes)
        self.states, self.links = tree_map(lambda t: t.expand(n, *t.shape).clone(), (row, links))
        self.gossip = Gossip(algorithm, channel, tuple(Layout.of(setup.models[0]).sizes), setup.seed)
        self.done = 0
        self.record: Record = {}  # of the last round, without its evaluation
        self.confusion: np.ndarray | None = None  # of the last evaluation
        self.totals = {"comm/edge_total_bytes": 0, "comm/edges_total": 0}
        self.plain = 0  # what the bytes would be without a channel
        self._mixings: dict[int, Mixing] = {}
        self._gaps: dict[int, float] = {}
        first = topology.mixing(n, 0, setup.seed)
        self.period = first.period
        self.notes = first.warnings  # what the user should know of W

    @property
    def stores(self) -> tuple[Stacked, ...]:
        """Every peer's state, and nothing beside it: the driver keeps the links."""
        return (Stacked((self.states, {})),)

    def mixing(self, index: int) -> Mixing:
        """The W of a round."""
        at = index % self.period if self.period else index
        if at not in self._mixings:
            if self.period is None:
                self._mixings.clear()
                self._gaps.clear()
            self._mixings[at] = found = self.topology.mixing(len(self.sizes), at, self.setup.seed)
            require_mixing(self.algorithm, found)
        return self._mixings[at]

    def evaluate(self) -> Record:
        """Metrics of the mean of the peers' models, and of their own models if asked for."""
        found = measured(self.backend, self.setup, self.point(), self.evaluation)
        self.confusion = found.confusion
        return found.metrics

    def step(self) -> Record:
        """One round.

        Returns:
            Every scalar of the round by its TensorBoard tag, and ``round``, the number of rounds done.

        Raises:
            Diverged: a loss or a peer's state is not finite; the peers keep their last finite states.
        """
        start = time.perf_counter()
        index = self.done
        mixing = self.mixing(index)
        clients = cohort_of(self.schedule, index, len(self.sizes), self.setup.seed)
        rnd = Round(index, clients, len(self.sizes), int(self.sizes.min()))
        states, loss = self._train(rnd) if clients else (self.states, {})
        due = self.evaluation.due(index + 1, self.rounds)
        before = self._before(states) if due else {}
        links, w, degrees = self.links, _like(mixing, states), torch.from_numpy(receivers(mixing))
        sent = plain = 0
        steps = self.algorithm.gossip_steps if "gossip_steps" in traits_of(self.algorithm).hooks else 1
        for q in range(steps):
            states, links, sizes, size = self.gossip.exchange(states, links, w, rnd, q)
            sent += int((sizes * degrees).sum())
            plain += size * int(degrees.sum())
        if not all(torch.isfinite(leaf).all() for leaf in leaves(states) if leaf.is_floating_point()):
            raise Diverged(f"a peer's state is not finite after round {index + 1}")
        gap = self._gap(index, mixing)
        with uninterrupted():
            self.states, self.links = tree_map(aligned, (states, links))  # as a resumed run has them
            self.done = index + 1
            self.plain += plain
            self.totals["comm/edge_total_bytes"] += sent
            self.totals["comm/edges_total"] += steps * len(mixing.edges)
            self.record = {
                "round": self.done,
                **loss,
                "comm/edge_bytes": sent,
                "comm/edges": steps * len(mixing.edges),
                **self.totals,
                **gap,
                **before,
                "time/round_s": time.perf_counter() - start,
            }
            if self.gossip.channel and self.totals["comm/edge_total_bytes"]:
                self.record["comm/edge_ratio"] = self.plain / self.totals["comm/edge_total_bytes"]
        return self.record | (self.evaluate() if due else {})

    def _train(self, rnd: Round) -> tuple[State, Record]:
        """All peers' states after local work, and the mean training loss of those who worked, if there is one."""
        steps = [self.setup.local.count(int(n)) for n in self.sizes[list(rnd.clients)]]
        jobs, costs = self.jobs.cut(rnd, rnd.clients, steps, self.stores)
        answers = self.jobs.train(jobs, costs, {})
        ids = torch.tensor([i for job in jobs for i in job.clients])
        new = tree_map(lambda *a: aligned(torch.from_numpy(np.concatenate(a))), *(answer.rows[0] for answer in answers))
        states = tree_map(lambda old, fresh: old.index_copy(0, ids, fresh), self.states, new)
        return states, mean_loss([answer.losses for answer in answers])

    def _before(self, states: State) -> Record:
        """What peers are before they mix."""
        models = self._models(states)
        found = {"gossip/consensus_before": consensus(models)}
        return found | (own(self.backend, models, "unmixed_peer") if self.evaluation.clients else {})

    def _gap(self, index: int, mixing: Mixing) -> Record:
        """1 - lambda of this round's W, and of the product over a period where W changes; computed once for each."""
        at = index % self.period if self.period else index
        if at not in self._gaps:
            self._gaps[at] = spectral_gap(mixing.w)
        found = {"gossip/spectral_gap": self._gaps[at]}
        if self.period is not None and self.period > 1:
            if -1 not in self._gaps:
                self._gaps[-1] = spectral_gap(*(self.mixing(t).w for t in range(self.period)))
            found["gossip/period_gap"] = self._gaps[-1]
        return found

    def _models(self, states: State) -> Tensor:
        found: Tensor = torch.func.vmap(self.algorithm.model)(states)
        return found

    def point(self) -> Tensor:
        """Every peer's model [n, d]."""
        return self._models(self.states)

    def model(self) -> Tensor:
        """The mean of the peers' models [d]."""
        return mean_of(self.point())

    @property
    def server(self) -> tuple[()]:
        """There is none."""
        return ()

    def snapshot(self) -> State:
        """Everything that later rounds depend on."""
        counted = {"done": self.done, "totals": dict(self.totals), "plain": self.plain}
        return {"states": self.states, "links": self.links, **counted}

    def restore(self, snapshot: State) -> None:
        """Go on from a snapshot of a run with the same parts; this one must not have begun."""
        self.states, self.links, self.done = snapshot["states"], snapshot["links"], snapshot["done"]
        self.totals, self.plain = snapshot["totals"], snapshot["plain"]

    def digest(self) -> str:
        """sha256 over all peers' models, as little-endian bytes in client order."""
        return digest_of([self.point().numpy()])


def _like(mixing: Mixing, states: State) -> Any:
    """W in the dtype of the peers' vectors."""
    dtype = next(leaf.dtype for leaf in leaves(states) if leaf.is_floating_point())
    return mixing.w.astype(torch.zeros((), dtype=dtype).numpy().dtype)
