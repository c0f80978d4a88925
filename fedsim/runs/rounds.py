"""Rounds with a server: schedule -> broadcast -> local work on workers -> aggregate -> the server's step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch

from fedsim.aggregate import merge_all, weights_of
from fedsim.channel import message
from fedsim.channel.channel import noises
from fedsim.channel.message import Sent
from fedsim.ground import addresses
from fedsim.ground.layout import Layout, aligned
from fedsim.ground.tree import leaves, tree_map
from fedsim.pool.block import to_numpy
from fedsim.pool.jobs import digest_of
from fedsim.pool.rehearsal import message as rehearsed
from fedsim.pool.scores import Scores, joined
from fedsim.pool.worker import Backend
from fedsim.runs.evaluation import Evaluation, summarise
from fedsim.runs.of_server import ServerRun
from fedsim.runs.run import Step, Worked
from fedsim.runs.start import Memory, Start
from fedsim.runs.store import Store
from fedsim.runs.traffic import Traffic
from fedsim.schedule.cohorts import cohort_of
from fedsim.traits.declared import traits_of
from fedsim.types import Message, Round, State


class RoundsState(NamedTuple):
    """What later rounds depend on beside the clients' rows."""

    server: Any
    memory: Memory


class Told(NamedTuple):
    """A broadcast, as it went over the downlink."""

    arrived: Message  # what clients get
    link: State  # the downlink's new memory at the server
    heard: State  # and at the clients
    sent: Sent  # to each client


class Rounds(ServerRun):
    """A centralized run in rounds; arguments as of ``Run``."""

    def __init__(self, start: Start, backend: Backend):
        setup = start.setup
        traffic = Traffic({"uplink": setup.uplink, "downlink": setup.downlink})
        state = RoundsState(setup.algorithm.init_server(start.beginning.x0), start.beginning.memory)
        super().__init__(start, backend, state, traffic, [Store(row) for row in start.beginning.rows])
        self.schedule = start.schedule
        self.own = "own" in traits_of(setup.algorithm).hooks  # clients predict with models of their own
        self.parameters = tuple(Layout.of(setup.models[0]).sizes)
        self.weight = float(weights_of(setup.aggregate, self.sizes).sum())

    def advance(self) -> Step:
        """One round."""
        index = self.done
        rnd = self.round(index, cohort_of(self.schedule, index, len(self.sizes), self.setup.seed))
        told = self._tell(self.heard_by(rnd.clients, index), index)
        worked = self.work([rnd], self._stores, to_numpy(told.arrived))
        server, far = self._answered(rnd, worked)
        return Step(
            RoundsState(server, Memory(far, told.link, told.heard)),
            losses=[answer.losses for _, answer in worked],
            sent={
                "uplink": Sent.sum(answer.sent for _, answer in worked),
                "downlink": told.sent.times(len(rnd.clients)),
            },
            rows=[(job.architecture, job.clients, answer.rows) for job, answer in worked],
        )

    def _tell(self, broadcast: Message, index: int) -> Told:
        """Send a broadcast over the downlink, which is one link that all clients listen to."""
        channel, memory, plain = self.setup.downlink, self.state.memory, message.message_size(broadcast)
        if not channel:
            return Told(message.heard(broadcast), memory.downlink, memory.heard, Sent(plain, plain))
        noise = noises(self.setup.seed, addresses.DOWNLINK, index, torch.zeros((), dtype=torch.int64))
        arrived, link, size = channel.send(broadcast, memory.downlink, noise, self.parameters)
        arrived, heard = channel.receive(arrived, memory.heard, 1.0, self.parameters)
        lone = tree_map(lambda t: t[None], message.heard(arrived))
        arrived = tree_map(lambda t: t[0], channel.decoded(lone))
        return Told(arrived, link, heard, Sent(int(size) + message.owned(lone), plain))

    def _answered(self, rnd: Round, worked: Sequence[Worked]) -> tuple[Any, State]:
        """The server's next state, and its end of the uplink.

        When nobody came, a server that adds noise steps on the sum of no messages, for a round without noise would
        tell; any other server stays as it is.
        """
        memory = self.state.memory.uplink
        if not worked and traits_of(self.setup.algorithm).noise != "server":
            return self.server, memory
        if not worked:
            return self.stepped(self._nothing(rnd), rnd), memory
        rule = self.setup.aggregate
        sums = merge_all({(j, a.span): a.sums for j, (_, a) in enumerate(worked) if a.span}, rule.merge)
        weight = sum(answer.weight for _, answer in worked)
        received = tree_map(aligned, rule.finish(sums, weight, self.setup.dtype))
        received, far = self.setup.uplink.receive(received, memory, weight / self.weight, self.parameters)
        return self.stepped(received, rnd), far

    def _nothing(self, rnd: Round) -> Message:
        """The sum of no messages: zeros in the shapes that this round's would have had, which are rehearsed."""
        state = tree_map(torch.from_numpy, self._stores[0].initial)[0]
        alone = rehearsed(self.setup, 0, state, self.server, replace(rnd, clients=(0,)))
        return tree_map(torch.zeros_like, alone)  # type: ignore[no-any-return]

    def measure(self) -> Evaluation:
        """The global model, or each client's own, on the test samples."""
        if not self.own:
            return super().measure()
        found = summarise(self._scores(), self.setup.test, self.setup.measures, clients=True)
        return found._replace(metrics=found.metrics | self.objective())

    def _scores(self) -> Scores:
        """Every client with test samples, each at its own model; the samples in client order."""
        sizes, start = self.setup.test.sizes(), self.setup.test.start
        tested = np.flatnonzero(sizes).tolist()
        jobs, costs = self.jobs.cut(self.round(self.done, tested), tested, sizes[tested].tolist(), self._stores)
        told = self._tell(self.heard_by(tested, self.done), self.done)
        answers: list[Scores] = self.backend.map("evaluate_own", jobs, costs, to_numpy(told.arrived))
        at = np.concatenate([np.arange(start[i], start[i + 1]) for job in jobs for i in job.clients])
        order = np.argsort(at)
        return Scores(*(array[order] for array in joined(answers)))

    def digest(self) -> str:
        """sha256 over the server's state, field by field; where clients predict with models of their own, their states
        follow in client order."""
        if not self.own:
            return super().digest()
        return digest_of(self._bytes())

    def _bytes(self) -> Iterable[np.ndarray]:
        yield from leaves(to_numpy(self.server))
        for i in range(len(self.sizes)):
            yield from leaves(self._stores[i % len(self._stores)].read([i])[0])
