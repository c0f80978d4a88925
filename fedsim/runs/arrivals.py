"""A server that does not wait: clients start as others finish, in virtual time; the server steps on every K arrivals.

What a client sends depends on the broadcast that it began with, its own state and its address, so it can be computed at
any time between its start and its arrival: whenever the next arrival is not there yet, all clients at work are computed
together.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from fedsim.channel import message
from fedsim.channel.channel import noises
from fedsim.channel.message import Sent
from fedsim.ground import addresses
from fedsim.ground.layout import Layout, aligned
from fedsim.ground.rng import numpy_stream
from fedsim.ground.tree import tree_map
from fedsim.pool.block import to_numpy
from fedsim.pool.rehearsal import messages
from fedsim.pool.worker import Backend
from fedsim.runs.flights import Flight, computed, order, stacked, unstacked
from fedsim.runs.of_server import ServerRun
from fedsim.runs.run import Step
from fedsim.runs.start import Start
from fedsim.runs.store import Store
from fedsim.runs.traffic import Traffic
from fedsim.types import Message, State


class ArrivalsState(NamedTuple):
    """What later steps depend on beside the clients' rows."""

    server: Any
    flights: tuple[Flight, ...]  # clients at work, by time of arrival
    now: float  # virtual time of the last arrival
    started: int  # how many clients began so far


class Arrivals(ServerRun):
    """An asynchronous centralized run; its rounds are the server's steps.

    The set-up's algorithm is a ``Begun``, its rule a ``Stack``; a client's row holds its state, its link's memory, and
    how often it began.
    """

    def __init__(self, start: Start, backend: Backend):
        setup = start.setup
        (state, first), link = start.beginning.rows[0]
        store = Store((state, link, torch.zeros((), dtype=torch.int64)))
        beginning = ArrivalsState(setup.algorithm.init_server(start.beginning.x0), (), 0.0, 0)
        traffic = Traffic({"uplink": setup.uplink, "downlink": None})
        super().__init__(start, backend, beginning, traffic, [store])
        self.schedule = start.schedule
        self.at_once = self.schedule.expected(len(self.sizes))
        self.buffer = int(setup.algorithm.base.buffer)  # type: ignore[attr-defined]
        reply = messages(setup, 0, (state, first), start.beginning.x0, start.rounds)
        self.empty: Message = to_numpy(tree_map(torch.zeros_like, reply))
        self.reply_bytes = self._size(reply, link)

    def _size(self, reply: Message, link: State) -> int:
        """Bytes of a first message through the channel."""
        if not (channel := self.setup.uplink):
            return message.message_size(reply)
        noise = noises(self.setup.seed, addresses.REHEARSAL, 0, torch.zeros((), dtype=torch.int64))
        arrived, _, size = channel.send(reply, link, noise, tuple(Layout.of(self.setup.models[0]).sizes))
        return int(size) + message.owned(tree_map(lambda t: t[None], arrived))

    def advance(self) -> Step:
        """One step of the server, and everything before it."""
        before, flights, now, started = self.state, list(self.state.flights), self.state.now, self.state.started
        landed: list[Flight] = []
        fresh: dict[int, Any] = {}  # rows of clients that have landed since the last step
        while len(landed) < self.buffer:
            if not flights or flights[0].lands > now:  # all that arrive at one time are heard before others start
                for number in range(started, started + self.at_once - len(flights)):
                    insort(flights, self._started(number, flights, fresh, now), key=order)
                    started += 1
                now = flights[0].lands
            if not flights[0].ready:
                flights = computed(flights, self)
                continue
            landed.append(flight := flights.pop(0))
            fresh[flight.client] = (*flight.row, np.array(flight.participation + 1))
        told = message.message_size(self.heard_by((), 0)) * (started - before.started)
        staleness = [self.done - flight.version for flight in landed]
        return Step(
            ArrivalsState(self._stepped_on(landed), tuple(flights), now, started),
            losses=[np.array([flight.loss for flight in landed])],
            sent={"uplink": Sent.sum(flight.size for flight in landed), "downlink": Sent(told, told)},
            rows=[(0, tuple(fresh), tree_map(lambda *a: np.stack(a), *fresh.values()))],
            record={
                "async/staleness_mean": float(np.mean(staleness)),
                "async/staleness_max": max(staleness),
                "time/virtual_s": now,
            },
        )

    def _started(self, number: int, flights: Sequence[Flight], fresh: dict[int, Any], now: float) -> Flight:
        """An idle client, drawn uniformly at stream (seed, "start", number), begins with the current model."""
        seed, n, busy = self.setup.seed, len(self.sizes), {flight.client for flight in flights}
        rng = numpy_stream(seed, addresses.START, number)
        if 2 * len(busy) < n:
            client = next(i for i in iter(lambda: int(rng.integers(n)), -1) if i not in busy)
        else:
            client = int(rng.choice([i for i in range(n) if i not in busy]))
        state, link, count = fresh.get(client) or tree_map(lambda a: a[0], self._stores[0].read([client]))
        sent = self.heard_by((client,), self.done)
        k, steps = int(count), self.setup.local.count(int(self.sizes[client]))
        lands = now + self.schedule.seconds(seed, client, k, steps, message.message_size(sent), self.reply_bytes)
        begun = to_numpy(message.heard(sent))
        return Flight(lands, number, client, k, self.done, begun, (state, link), self.empty)

    def _stepped_on(self, landed: Sequence[Flight]) -> Any:
        """The server's state after a step on these arrivals."""
        received = tree_map(lambda *a: aligned(torch.from_numpy(np.stack(a))), *(flight.reply for flight in landed))
        ages = [self.done - flight.version for flight in landed]
        received["staleness"] = torch.tensor(ages, dtype=self.setup.dtype)
        return self.stepped(received, self.round(self.done, sorted({flight.client for flight in landed})))

    def packed(self) -> dict[str, Any]:
        """The state by field; clients at work as rows, of which there may be any number."""
        return super().packed() | {"flights": stacked(self.state.flights, self._blank())}

    def unpacked(self, fields: Mapping[str, Any]) -> ArrivalsState:
        """The inverse of ``packed``."""
        return ArrivalsState(**{**fields, "flights": unstacked(fields["flights"], self._blank())})

    def _blank(self) -> Flight:
        """A flight of the kinds and shapes of all."""
        state, link, _ = tree_map(lambda a: a[0], self._stores[0].read([0]))
        begun = to_numpy(message.heard(self.heard_by((0,), 0)))
        return Flight(0.0, 0, 0, 0, 0, begun, (state, link), self.empty)
