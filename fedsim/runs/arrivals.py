"""A server that does not wait: clients start as others finish, in virtual time; the server steps on every K arrivals.

What a client sends depends on the broadcast that it began with, its own state and its address, so it can be computed at
any time between its start and its arrival: whenever the next arrival is not there yet, all clients at work are computed
together.
"""

from __future__ import annotations

import time
from bisect import insort
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from fedsim.aggregate import weights_of
from fedsim.assembly.rehearsal import messages
from fedsim.channel import message
from fedsim.channel.channel import noises
from fedsim.channel.noise import Addressed
from fedsim.errors import Diverged
from fedsim.evaluate import Evaluate
from fedsim.ground.interrupts import uninterrupted
from fedsim.ground.layout import Layout, aligned
from fedsim.ground.rng import numpy_stream
from fedsim.ground.tree import leaves, tensors, tree_map
from fedsim.pool.block import to_numpy
from fedsim.pool.jobs import Jobs, digest_of, mean_loss
from fedsim.pool.worker import Backend, Setup
from fedsim.runs.evaluation import evaluate, gradient
from fedsim.runs.flights import Flight, computed, order
from fedsim.runs.rounds import Record
from fedsim.runs.store import Store
from fedsim.schedule.delays import Asynchronous
from fedsim.types import Message, Round, SavedRows, State


class AsynchronousServer:
    """An asynchronous centralized run in progress; its rounds are the server's steps.

    Args:
        setup: what the workers were given; its algorithm is a ``Begun``, its rule a ``Stack``.
        backend: who computes.
        schedule: how many clients are at work, and how long they take.
        evaluation: when and what to evaluate.
        x0: what the server starts from.
        row: what a client starts from: ((state, broadcast), memory of its link).
        blocks: most clients computed at once.
        jobs: pieces that computed clients are cut into, or ``auto``.
        rounds: server steps.
    """

    def __init__(
        self,
        setup: Setup,
        backend: Backend,
        schedule: Asynchronous,
        evaluation: Evaluate,
        x0: Tensor | dict[str, Tensor],
        row: State,
        *,
        blocks: Sequence[int],
        jobs: int | Literal["auto"],
        rounds: int,
    ):
        self.setup, self.backend, self.schedule, self.evaluation = setup, backend, schedule, evaluation
        self.algorithm: Any = setup.algorithm
        self.rounds, self.buffer = rounds, int(setup.algorithm.base.buffer)  # type: ignore[attr-defined]
        self.jobs = Jobs(backend, setup.kernels, blocks, jobs)
        self.server: Any = self.algorithm.init_server(x0)
        (state, begun), link = row
        self.stores = [Store((state, link, torch.zeros((), dtype=torch.int64)))]  # the last: participations
        reply = messages(setup, 0, (state, begun), x0, rounds)
        self.empty: Message = to_numpy(tree_map(torch.zeros_like, reply))
        self.reply_bytes = self._size(reply, link)
        self.flights: list[Flight] = []  # by time of arrival
        self.now, self.started, self.done = 0.0, 0, 0
        self.notes: tuple[str, ...] = ()
        self.record: Record = {}  # of the last round, without its evaluation
        self.confusion: np.ndarray | None = None  # of the last evaluation
        self.sizes = setup.train.sizes()
        self.totals = {"comm/uplink_total_bytes": 0, "comm/downlink_total_bytes": 0}
        self.plain = 0  # what the uplink's total would be without a channel

    def _size(self, reply: Message, link: State) -> int:
        """Bytes of a first message through the channel."""
        if not (channel := self.setup.uplink):
            return message.message_size(reply)
        noise = noises(self.setup.seed, "rehearsal", 0, torch.zeros((), dtype=torch.int64))
        arrived, _, size = channel.send(reply, link, noise, tuple(Layout.of(self.setup.models[0]).sizes))
        return int(size) + message.owned(tree_map(lambda t: t[None], arrived))

    def evaluate(self) -> Record:
        """Metrics of the current global model."""
        start, x = time.perf_counter(), to_numpy(self.server.x)
        found = evaluate(self.backend, x, self.setup.test, self.setup.task, clients=self.evaluation.clients)
        self.confusion = found.confusion
        if self.evaluation.gradient:
            weights = weights_of(self.setup.aggregate, self.sizes)
            found.metrics.update(gradient(self.backend, x, self.setup.train, weights / weights.sum()))
        return found.metrics | {"time/evaluate_s": time.perf_counter() - start}

    def step(self) -> Record:
        """One step of the server, and everything before it.

        Returns:
            Every scalar of the round by its TensorBoard tag, and ``round``, the number of server steps done.

        Raises:
            Diverged: a loss, a message or the new model is not finite; everything stays as after the last step.
        """
        start = time.perf_counter()
        flights, now, started = list(self.flights), self.now, self.started
        landed: list[Flight] = []
        fresh: dict[int, Any] = {}  # rows of clients that have landed since the last step
        while len(landed) < self.buffer:
            if not flights or flights[0].lands > now:  # all that arrive at one time are heard before others start
                for number in range(started, started + self.schedule.concurrency - len(flights)):
                    insort(flights, self._started(number, flights, fresh, now), key=order)
                    started += 1
                now = flights[0].lands
            if not flights[0].ready:
                flights = computed(flights, self.setup, self.jobs)
            landed.append(flight := flights.pop(0))
            fresh[flight.client] = (*flight.row, np.array(flight.participation + 1))
        server = self._stepped(landed)
        uplink = sum(flight.sent for flight in landed)
        downlink = (started - self.started) * message.message_size(
            self.algorithm.broadcast(self.server, self._round(0, ()))
        )
        staleness = [self.done - flight.version for flight in landed]
        with uninterrupted():
            self.server = tree_map(aligned, server)  # as a resumed run has it
            self.flights, self.now, self.started = flights, now, started
            self.done += 1
            self.stores[0].write(tuple(fresh), tree_map(lambda *a: np.stack(a), *fresh.values()))
            self.stores[0].commit()
            self.totals["comm/uplink_total_bytes"] += uplink
            self.totals["comm/downlink_total_bytes"] += downlink
            self.plain += sum(flight.plain for flight in landed)
            self.record = {
                "round": self.done,
                **mean_loss([np.array([flight.loss for flight in landed])]),
                "comm/uplink_bytes": uplink,
                "comm/downlink_bytes": downlink,
                **self.totals,
                "async/staleness_mean": float(np.mean(staleness)),
                "async/staleness_max": max(staleness),
                "time/virtual_s": now,
                "time/round_s": time.perf_counter() - start,
            }
            if self.setup.uplink and self.totals["comm/uplink_total_bytes"]:
                self.record["comm/uplink_ratio"] = self.plain / self.totals["comm/uplink_total_bytes"]
        return self.record | (self.evaluate() if self.evaluation.due(self.done, self.rounds) else {})

    def _started(self, number: int, flights: Sequence[Flight], fresh: dict[int, Any], now: float) -> Flight:
        """An idle client, drawn uniformly at stream (seed, "start", number), begins with the current model."""
        seed, n, busy = self.setup.seed, len(self.sizes), {flight.client for flight in flights}
        rng = numpy_stream(seed, "start", number)
        if 2 * len(busy) < n:
            client = next(i for i in iter(lambda: int(rng.integers(n)), -1) if i not in busy)
        else:
            client = int(rng.choice([i for i in range(n) if i not in busy]))
        state, link, count = fresh.get(client) or tree_map(lambda a: a[0], self.stores[0].read([client]))
        sent = self.algorithm.broadcast(self.server, self._round(self.done, (client,)))
        k, steps = int(count), self.setup.local.count(int(self.sizes[client]))
        lands = now + self.schedule.seconds(seed, client, k, steps, message.message_size(sent), self.reply_bytes)
        begun = to_numpy(message.heard(sent))
        return Flight(lands, number, client, k, self.done, begun, (state, link), False, self.empty, 0.0, 0, 0)

    def _stepped(self, landed: Sequence[Flight]) -> Any:
        """The server's state after a step on these arrivals."""
        received = tree_map(lambda *a: aligned(torch.from_numpy(np.stack(a))), *(flight.reply for flight in landed))
        ages = [self.done - flight.version for flight in landed]
        received["staleness"] = torch.tensor(ages, dtype=self.setup.dtype)
        noise = Addressed(self.setup.seed, "server", self.done, torch.zeros((), dtype=torch.int64))
        rnd = replace(self._round(self.done, tuple(sorted({flight.client for flight in landed}))), noise=noise)
        server = self.algorithm.server(self.server, received, rnd)
        if not all(torch.isfinite(leaf.double().sum()) for leaf in tensors(server, "server")):
            raise Diverged(f"the server's state is not finite after round {self.done + 1}")
        return server

    def _round(self, index: int, clients: tuple[int, ...]) -> Round:
        return Round(index, clients, len(self.sizes), int(self.sizes.min()))

    def snapshot(self) -> State:
        """Everything that later rounds depend on."""
        columns = (
            tree_map(lambda *a: np.stack(a), *self.flights)
            if self.flights
            else tree_map(lambda a: np.asarray(a)[None][:0], self._blank())
        )
        counted = {"done": self.done, "now": self.now, "started": self.started, "plain": self.plain}
        flying = SavedRows(np.arange(len(self.flights)), columns)
        stores = self.stores[0].snapshot()
        return {"server": self.server, "store": stores, "flights": flying, "totals": dict(self.totals), **counted}

    def restore(self, snapshot: State) -> None:
        """Go on from a snapshot of a run with the same parts; this one must not have begun."""
        self.server, self.done, self.now = snapshot["server"], snapshot["done"], snapshot["now"]
        self.started, self.plain, self.totals = snapshot["started"], snapshot["plain"], snapshot["totals"]
        self.stores[0].restore(snapshot["store"])
        columns = snapshot["flights"].values
        kinds = {name: type(value) for name, value in self._blank()._asdict().items()}
        for p in range(len(columns.lands)):
            cells = tree_map(lambda a, p=p: a[p], columns)._asdict()
            plain = {name: kinds[name](cells[name]) for name in cells if kinds[name] in (int, float, bool)}
            self.flights.append(Flight(**(cells | plain)))

    def _blank(self) -> Flight:
        """A flight of the kinds and shapes of all."""
        state, link, _ = tree_map(lambda a: a[0], self.stores[0].read([0]))
        begun = to_numpy(message.heard(self.algorithm.broadcast(self.server, self._round(0, (0,)))))
        return Flight(0.0, 0, 0, 0, 0, begun, (state, link), False, self.empty, 0.0, 0, 0)

    def point(self) -> Tensor:
        """What a trajectory keeps of this moment: the global model [d]."""
        x: Tensor = self.server.x
        return x

    def model(self) -> Tensor:
        """The global model [d]."""
        return self.point()

    def digest(self) -> str:
        """sha256 over the server's state, field by field, as little-endian bytes."""
        return digest_of(leaf.detach().cpu().numpy() for leaf in leaves(self.server))
