"""Clients at work for an asynchronous server: what each began with, and what it will send, computed many at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from fedsim.aggregate import merge_all
from fedsim.channel.message import Sent
from fedsim.ground.tree import tree_map
from fedsim.pool.block import to_numpy
from fedsim.pool.worker import Done, Setup
from fedsim.runs.of_server import ServerRun
from fedsim.types import Message, SavedRows, State


class Flight(NamedTuple):
    """A client at work, or about to be heard; arrays and numbers only."""

    lands: float  # virtual time of its arrival
    number: int  # how many started before it
    client: int
    participation: int  # how often this client started before
    version: int  # server steps done when it started
    begun: Message  # what it got
    row: Any  # (state, memory of its link), and once computed the new ones
    reply: Message  # what the server will get; zeros before it is computed
    ready: bool = False  # whether it is computed
    loss: float = 0.0  # mean training loss, NaN where no local step counts
    sent: int = 0  # bytes of the reply
    plain: int = 0  # what they would be without a channel

    @property
    def size(self) -> Sent:
        """Of the reply."""
        return Sent(self.sent, self.plain)


def order(flight: Flight) -> tuple[float, int]:
    """By time of arrival; of those who arrive together, by who started first."""
    return flight.lands, flight.number


class _Rows:
    """Rows of clients at work, as jobs read them."""

    def __init__(self, flights: Sequence[Flight]):
        self._of = {flight.client: flight for flight in flights}

    def read(self, clients: Sequence[int]) -> State:
        """((state, broadcast), memory of the link), stacked."""
        mine = [self._of[i] for i in clients]
        return tree_map(lambda *a: np.stack(a), *(((f.row[0], f.begun), f.row[1]) for f in mine))


def computed(flights: Sequence[Flight], run: ServerRun) -> list[Flight]:
    """All flights, those that were not computed yet now computed together; a client that does not answer has none.

    A client's minibatches are those of its own participation, so that clients of one participation make a round.
    """
    waiting = {flight.client: flight for flight in flights if not flight.ready}
    rounds = [
        run.round(k, sorted(i for i, flight in waiting.items() if flight.participation == k))
        for k in sorted({flight.participation for flight in waiting.values()})
    ]
    worked = run.work(rounds, (_Rows(list(waiting.values())),), {})
    new: dict[int, Flight] = {}
    answered = sorted(i for job, _ in worked for i in job.clients)
    replies = _replies(run.setup, [answer for _, answer in worked], answered) if answered else {}
    for job, answer in worked:
        for p, i in enumerate(job.clients):
            (state, _), link = tree_map(lambda a, p=p: a[p], answer.rows)
            sent, plain = (_share(total, len(job.clients), p) for total in answer.sent)
            new[i] = waiting[i]._replace(
                row=(state, link), ready=True, reply=replies[i], loss=float(answer.losses[p]), sent=sent, plain=plain
            )
    return [new.get(flight.client, flight) for flight in flights if flight.ready or flight.client in new]


def _replies(setup: Setup, answers: Sequence[Done], clients: Sequence[int]) -> dict[int, Message]:
    """Each client's message, as the server gets it."""
    rule = setup.aggregate
    sums = merge_all({(j, a.span): a.sums for j, a in enumerate(answers) if a.span}, rule.merge)
    stacked = to_numpy(rule.finish(sums, sum(a.weight for a in answers), setup.dtype))
    del stacked["weights"]
    return {i: tree_map(lambda a, p=p: a[p], stacked) for p, i in enumerate(clients)}


def _share(total: int, clients: int, position: int) -> int:
    """A client's part of a job's bytes: equal parts, the first ones larger by one where they do not divide."""
    return total // clients + (position < total % clients)


def stacked(flights: Sequence[Flight], blank: Flight) -> SavedRows:
    """Flights as a checkpoint takes them; ``blank`` has the kinds and shapes of all."""
    columns = (
        tree_map(lambda *a: np.stack(a), *flights) if flights else tree_map(lambda a: np.asarray(a)[None][:0], blank)
    )
    return SavedRows(np.arange(len(flights)), columns)


def unstacked(saved: SavedRows, blank: Flight) -> tuple[Flight, ...]:
    """The inverse of ``stacked``."""
    kinds = {name: type(value) for name, value in blank._asdict().items()}
    flights = []
    for p in range(len(saved.values.lands)):
        cells = tree_map(lambda a, p=p: a[p], saved.values)._asdict()
        plain = {name: kinds[name](cells[name]) for name in cells if kinds[name] in (int, float, bool)}
        flights.append(Flight(**(cells | plain)))
    return tuple(flights)
