"""Second stage of assembly: who takes part when, and who talks to whom; whether the algorithm can work like that."""

from __future__ import annotations

from typing import Any, NamedTuple

from fedsim.algorithms.kit.around import name_of
from fedsim.assembly.parts import Parts
from fedsim.errors import require
from fedsim.ground.own_code import built_in, own_code
from fedsim.runs.events import Graphs, graphs_of
from fedsim.runs.mixings import require_mixing
from fedsim.schedule import All, Events, Schedule, as_accounted
from fedsim.schedule.cohorts import require_cohort
from fedsim.schedule.delays import Asynchronous
from fedsim.topology import Mixing, Topology
from fedsim.traits.declared import traits_of

ROUNDS_AHEAD = 1000
"""Rounds whose cohorts are looked at before the start."""


class Network(NamedTuple):
    """Who takes part when and who talks to whom."""

    schedule: Schedule  # as the run draws it
    mixing: Mixing | None = None  # W of peers in the first round; None for clients of a server
    graphs: Graphs | None = None  # of peers in virtual time


def network_of(parts: Parts, n: int) -> Network:
    """The network of ``n`` clients.

    Raises:
        InputError: a schedule or topology fails, or is not one for this algorithm.
    """
    schedule = parts.schedule if parts.privacy is None else as_accounted(parts.schedule)
    with own_code("schedule", schedule):
        schedule.check(n, parts.planned_rounds)
        require_cohorts(schedule, n, parts.planned_rounds, parts.seed)
    require_network(parts, schedule)
    network = Network(schedule) if parts.topology is None else _peers(parts, parts.topology, schedule, n)
    require_everyone(parts, schedule, n)
    return network


def _peers(parts: Parts, topology: Topology, schedule: Schedule, n: int) -> Network:
    with own_code("topology", topology):
        mixing = topology.mixing(n, 0, parts.seed)
    require_matrix(mixing, n, type(topology).__name__)
    if isinstance(schedule, Events):
        return Network(schedule, mixing, graphs_of(topology, n, parts.seed, schedule))
    require_mixing(parts.algorithm, mixing)
    return Network(schedule, mixing)


def is_peers(algorithm: Any) -> bool:
    """Whether clients of this algorithm are peers, who talk to each other and to no server."""
    return traits_of(algorithm).role != "server"


def require_cohorts(schedule: Schedule, n: int, rounds: int, seed: int) -> None:
    """Raise InputError unless a user's own schedule names clients in every round, and brings somebody in one of them.

    Before the start this looks at the first ``ROUNDS_AHEAD`` rounds; later ones are looked at as they come.
    """
    if built_in(schedule):
        return
    rule, somebody = type(schedule).__name__, False
    for index in range(min(rounds, ROUNDS_AHEAD)):
        clients = schedule.clients(index, n, seed)
        require_cohort(clients, n, rule, index)
        somebody = somebody or len(clients) > 0
    must = f"bring a client in one of the first {min(rounds, ROUNDS_AHEAD)} rounds"
    require(somebody, f"schedule: {rule}.clients", must, "no client in any of them")


def require_network(parts: Parts, schedule: Schedule) -> None:
    """Raise InputError unless there is a graph for peers, and none for clients of a server."""
    algorithm, topology, channel, downlink = parts.algorithm, parts.topology, parts.channel, parts.downlink
    said, name = traits_of(algorithm), name_of(algorithm)
    virtual, behind = isinstance(schedule, Events), said.asynchronous
    must = f"be async for {name}, whose server does not wait" if behind else f"be one of rounds for {name}, such as all"
    require(isinstance(schedule, Asynchronous) == behind, "schedule", must, schedule)
    if not is_peers(algorithm):
        must = f"be none for {name}, whose clients talk to a server"
        require(topology is None, "topology", must, topology, "leave it out, or choose a decentralized algorithm")
        must = f"be one of rounds for {name}, such as all"
        require(not virtual, "schedule", must, schedule)
        require(not behind or not downlink, "downlink", f"be [] for {name}: each client hears another model", downlink)
        return
    require(topology is not None, "topology", f"be a graph for {name}, whose peers gossip", None, "add topology=ring")
    events = said.role == "events"
    must = f"be events for {name}, whose peers act at times of their own" if events else must
    require(virtual == events, "schedule", must, schedule)
    require(not (events and channel), "channel", f"be [] for {name}: events have no channel", channel)
    require(
        not downlink, "downlink", f"be [] for {name}, which has no server; channel=[...] is between peers", downlink
    )
    must = f"be none for {name}: the mechanisms need clients of a server"
    require(parts.privacy is None, "privacy", must, parts.privacy)


def require_matrix(mixing: Mixing, n: int, rule: str) -> None:
    """Raise InputError unless a topology returned a W of the n peers."""
    where = f"topology: {rule}.mixing"
    require(isinstance(mixing, Mixing), where, "return a fedsim.topology.Mixing", type(mixing).__name__)
    require(mixing.w.shape == (n, n), where, f"return a W of the {n} peers, [{n}, {n}]", list(mixing.w.shape))


def require_everyone(parts: Parts, schedule: Schedule, n: int) -> None:
    """Raise InputError when the algorithm needs all clients in every round and the schedule does not bring them."""
    if traits_of(parts.algorithm).everyone and type(schedule) is not All:
        everyone = all(len(schedule.clients(t, n, parts.seed)) == n for t in range(parts.planned_rounds))
        must = f"let all {n} clients take part in every round for {name_of(parts.algorithm)}"
        require(everyone, "schedule", must, schedule, "add schedule=all")
