"""The round loop: schedule -> plan -> jobs on workers -> aggregate -> server step -> commit -> measure."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedsim.aggregate import merge_all, weights_of
from fedsim.assembly.checks import cohort_of
from fedsim.assembly.rehearsal import message as message_of
from fedsim.channel import message
from fedsim.channel.channel import noises
from fedsim.channel.noise import Addressed
from fedsim.errors import Diverged
from fedsim.evaluate import Evaluate
from fedsim.ground.interrupts import uninterrupted
from fedsim.ground.layout import Layout, aligned
from fedsim.ground.tree import leaves, tensors, tree_map
from fedsim.pool.block import to_numpy
from fedsim.pool.jobs import Jobs, digest_of, mean_loss
from fedsim.pool.worker import Backend, Done, Scores, Setup
from fedsim.runs.evaluation import evaluate, gradient, summarise
from fedsim.runs.store import Store
from fedsim.schedule import Schedule
from fedsim.traits.declared import traits_of
from fedsim.types import Message, Round, State

Record = dict[str, float]


class Memory(NamedTuple):
    """What the channels remember beside the clients' own links."""

    uplink: State  # {field: {layer: state}} of the server's end
    downlink: State  # of the one link that all clients listen to
    heard: State  # of its far end, the clients, who hold it alike


class Orchestrator:
    """A centralized run in progress: the server's state, the clients' store, and one method per round.

    Args:
        setup: what the workers were given.
        backend: who computes.
        schedule: who takes part when.
        evaluation: when and what to evaluate.
        x0: what the server starts from.
        rows: what the store starts from, for clients of each architecture: their state and their link's memory.
        memory: what the channels' far ends start from.
        blocks: most clients of each architecture computed at once.
        jobs: pieces a cohort is cut into, or ``auto``.
        rounds: how many there will be.
    """

    def __init__(
        self,
        setup: Setup,
        backend: Backend,
        schedule: Schedule,
        evaluation: Evaluate,
        x0: Tensor | dict[str, Tensor],
        rows: Sequence[State],
        memory: Memory,
        *,
        blocks: Sequence[int],
        jobs: int | Literal["auto"],
        rounds: int,
    ):
        self.setup, self.backend, self.schedule, self.evaluation = setup, backend, schedule, evaluation
        self.rounds = rounds
        self.jobs = Jobs(backend, setup.kernels, blocks, jobs)
        self.server: Any = setup.algorithm.init_server(x0)
        self.stores = [Store(row) for row in rows]
        self.memory = memory
        self.own = "own" in traits_of(setup.algorithm).hooks  # clients predict with models of their own
        self.done = 0
        self.notes: tuple[str, ...] = ()  # what the user should know of the run
        self.record: Record = {}  # of the last round, without its evaluation
        self.confusion: np.ndarray | None = None  # of the last evaluation
        self.sizes = setup.train.sizes()
        self.parameters = tuple(Layout.of(setup.models[0]).sizes)
        self.weight = float(weights_of(setup.aggregate, self.sizes).sum())
        self.totals = {"comm/uplink_total_bytes": 0, "comm/downlink_total_bytes": 0}
        self.plain = {"comm/uplink": 0, "comm/downlink": 0}  # what the totals would be without channels

    def evaluate(self) -> Record:
        """Metrics of the current global model, or of the clients' own models."""
        start = time.perf_counter()
        test, task = self.setup.test, self.setup.task
        if self.own:
            found = summarise(self._scores(), test, task, clients=True)
        else:
            x = to_numpy(self.server.x)
            found = evaluate(self.backend, x, test, task, clients=self.evaluation.clients)
        self.confusion = found.confusion
        if self.evaluation.gradient:
            shares = weights_of(self.setup.aggregate, self.sizes) / self.weight
            found.metrics.update(gradient(self.backend, to_numpy(self.server.x), self.setup.train, shares))
        return found.metrics | {"time/evaluate_s": time.perf_counter() - start}

    def step(self) -> Record:
        """One round.

        Returns:
            Every scalar of the round by its TensorBoard tag, and ``round``, the number of rounds done.

        Raises:
            Diverged: a loss, a message or the new model is not finite; the server keeps its last finite state.
        """
        start = time.perf_counter()
        algorithm, index = self.setup.algorithm, self.done
        clients = cohort_of(self.schedule, index, len(self.sizes), self.setup.seed)
        rnd = self._round(index, clients)
        broadcast = algorithm.broadcast(self.server, rnd)
        arrived, link, heard, each = self._send(broadcast, index)
        answers = self._train(rnd, to_numpy(arrived)) if clients else []
        server, far = self._stepped(rnd, answers)
        if not all(torch.isfinite(leaf.double().sum()) for leaf in tensors(server, "server")):
            for store in self.stores:
                store.drop()
            raise Diverged(f"the server's state is not finite after round {index + 1}")
        uplink, downlink = sum(a.uplink_bytes for a in answers), len(clients) * each
        with uninterrupted():
            kept = tree_map(aligned, (server, Memory(far, link, heard)))  # as a resumed run has them
            (self.server, self.memory), self.done = kept, index + 1
            for store in self.stores:
                store.commit()
            self.totals["comm/uplink_total_bytes"] += uplink
            self.totals["comm/downlink_total_bytes"] += downlink
            self.plain["comm/uplink"] += sum(a.plain_bytes for a in answers)
            self.plain["comm/downlink"] += len(clients) * message.message_size(broadcast)
            self.record = {
                "round": self.done,
                **mean_loss([answer.losses for answer in answers]),
                "comm/uplink_bytes": uplink,
                "comm/downlink_bytes": downlink,
                **self.totals,
                **self._ratios(),
                "time/round_s": time.perf_counter() - start,
            }
        return self.record | (self.evaluate() if self.evaluation.due(self.done, self.rounds) else {})

    def _stepped(self, rnd: Round, answers: list[Done]) -> tuple[Any, State]:
        """The server's next state, and its end of the channel.

        When nobody came, a server that adds noise steps on the sum of no messages, for a round without noise would
        tell; any other server stays as it is.
        """
        if not answers and traits_of(self.setup.algorithm).noise != "server":
            return self.server, self.memory.uplink
        if answers:
            rule = self.setup.aggregate
            sums = merge_all({(j, a.span): a.sums for j, a in enumerate(answers) if a.span}, rule.merge)
            weight = sum(a.weight for a in answers)
            received = tree_map(aligned, rule.finish(sums, weight, self.setup.dtype))
            share = weight / self.weight
            received, far = self.setup.uplink.receive(received, self.memory.uplink, share, self.parameters)
        else:
            received, far = self._nothing(rnd), self.memory.uplink
        own = Addressed(self.setup.seed, "server", rnd.index, torch.zeros((), dtype=torch.int64))
        return self.setup.algorithm.server(self.server, received, replace(rnd, noise=own)), far

    def _nothing(self, rnd: Round) -> Message:
        """The sum of no messages: zeros in the shapes that this round's would have had, which are rehearsed."""
        state = tree_map(torch.from_numpy, self.stores[0].initial)[0]
        alone = message_of(self.setup, 0, state, self.server, replace(rnd, clients=(0,)))
        return tree_map(torch.zeros_like, alone)  # type: ignore[no-any-return]

    def _round(self, index: int, clients: tuple[int, ...]) -> Round:
        return Round(index, clients, len(self.sizes), int(self.sizes.min()))

    def _send(self, broadcast: Message, index: int) -> tuple[Message, State, State, int]:
        """What clients get of a broadcast, the new memory of the downlink's two ends, and the bytes for each client."""
        channel = self.setup.downlink
        if not channel:
            return message.heard(broadcast), self.memory.downlink, self.memory.heard, message.message_size(broadcast)
        noise = noises(self.setup.seed, "downlink", index, torch.zeros((), dtype=torch.int64))
        arrived, link, sent = channel.send(broadcast, self.memory.downlink, noise, self.parameters)
        arrived, heard = channel.receive(arrived, self.memory.heard, 1.0, self.parameters)
        lone = tree_map(lambda t: t[None], message.heard(arrived))
        return tree_map(lambda t: t[0], channel.decoded(lone)), link, heard, int(sent) + message.owned(lone)

    def _ratios(self) -> Record:
        """How many times fewer bytes than without a channel, since the start, for the links that have one."""
        links = {"comm/uplink": self.setup.uplink, "comm/downlink": self.setup.downlink}
        return {
            f"{tag}_ratio": self.plain[tag] / self.totals[f"{tag}_total_bytes"]
            for tag, channel in links.items()
            if channel and self.totals[f"{tag}_total_bytes"]
        }

    def _train(self, rnd: Round, broadcast: Any) -> list[Done]:
        steps = [self.setup.local.count(int(n)) for n in self.sizes[list(rnd.clients)]]
        jobs, costs = self.jobs.cut(rnd, rnd.clients, steps, self.stores)
        answers = self.jobs.train(jobs, costs, broadcast)
        for job, answer in zip(jobs, answers, strict=True):
            self.stores[job.architecture].write(job.clients, answer.rows)
        return answers

    def _scores(self) -> Scores:
        """Every client with test samples, each at its own model; the samples in client order."""
        sizes = self.setup.test.sizes()
        tested = np.flatnonzero(sizes).tolist()
        rnd = self._round(self.done, tuple(tested))
        jobs, costs = self.jobs.cut(rnd, tested, sizes[tested].tolist(), self.stores)
        arrived = self._send(self.setup.algorithm.broadcast(self.server, rnd), self.done)[0]
        answers: list[Scores] = self.backend.map("evaluate_own", jobs, costs, to_numpy(arrived))
        start = self.setup.test.start
        at = np.concatenate([np.arange(start[i], start[i + 1]) for job in jobs for i in job.clients])
        order = np.argsort(at)
        found = [np.concatenate(arrays) for arrays in zip(*answers, strict=True)]
        return Scores(*(array[order] if len(array) else array for array in found))

    def snapshot(self) -> State:
        """Everything that later rounds depend on."""
        stores = tuple(store.snapshot() for store in self.stores)
        counted = {"done": self.done, "totals": dict(self.totals), "plain": dict(self.plain)}
        return {"server": self.server, "memory": self.memory, "stores": stores, **counted}

    def restore(self, snapshot: State) -> None:
        """Go on from a snapshot of a run with the same parts; this one must not have begun."""
        self.server, self.memory, self.done = snapshot["server"], snapshot["memory"], snapshot["done"]
        self.totals, self.plain = snapshot["totals"], snapshot["plain"]
        for store, rows in zip(self.stores, snapshot["stores"], strict=True):
            store.restore(rows)

    def point(self) -> Tensor:
        """What a trajectory keeps of this moment: the global model [d]."""
        x: Tensor = self.server.x
        return x

    def model(self) -> Tensor | None:
        """The global model [d], where there is one."""
        return getattr(self.server, "x", None)

    def digest(self) -> str:
        """sha256 over the server's state, field by field, as little-endian bytes.

        Where clients predict with models of their own, their states follow in client order.
        """
        states = [tree_map(lambda t: t.detach().cpu().numpy(), self.server)]
        if self.own:
            clients = range(len(self.sizes))
            states += (self.stores[i % len(self.stores)].read([i])[0] for i in clients)
        return digest_of(leaf for state in states for leaf in leaves(state))
