"""What cannot be run together, said again in every round for what a user's own rules give later."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedsim.algorithms.kit.around import name_of
from fedsim.errors import InputError
from fedsim.ground.own_code import own_code
from fedsim.schedule import Schedule
from fedsim.topology import Mixing
from fedsim.traits.declared import traits_of


def require_cohort(clients: tuple[int, ...], n: int, rule: str, index: int = 0) -> None:
    """Raise InputError unless the cohort of round ``index`` (0-based) is some of the clients, ascending."""
    where, must = f"schedule: {rule}.clients", f"return a tuple of client numbers in 0..{n - 1}, ascending"
    whole = isinstance(clients, tuple) and all(
        isinstance(i, (int, np.integer)) and not isinstance(i, bool) for i in clients
    )
    good = whole and list(clients) == sorted(set(clients)) and all(0 <= i < n for i in clients)
    if not good:
        got = repr(clients)
        shown = got if len(got) <= 100 else f"{got[:100]}..."
        raise InputError(f"{where} must {must}, got {shown}" + (f" for index {index}" if index else ""))


def cohort_of(schedule: Schedule, index: int, n: int, seed: int) -> tuple[int, ...]:
    """The cohort of a round; raises InputError where a user's own schedule fails at it, or names no clients."""
    with own_code("schedule", schedule):
        clients = schedule.clients(index, n, seed)
    if not builtin(schedule):
        require_cohort(clients, n, type(schedule).__name__, index)
    return clients


def builtin(rule: object) -> bool:
    """Whether a schedule or partition is one of fedsim's, which is tested: looking at a million clients takes time."""
    return type(rule).__module__.partition(".")[0] == "fedsim"


def require_mixing(algorithm: Any, mixing: Mixing) -> None:
    """Raise InputError unless the algorithm can gossip with this W."""
    name = name_of(algorithm)
    rows = traits_of(algorithm).mixes == "rows"
    if not (mixing.row_stochastic if rows else mixing.column_stochastic):
        other = "topology.weights=metropolis" if rows else "topology.weights=push_sum"
        more = ", or algorithm=sgp, which needs no such rows" if rows else ""
        must = f"give {'rows' if rows else 'columns'} that sum to 1 for {name}"
        raise InputError(f"topology.weights must {must}, got others; use {other}{more}")
    if traits_of(algorithm).static and not mixing.static:
        raise InputError(
            f"topology must not change with the round for {name}, which is made for one graph; "
            "choose another topology, or topology.fresh=false"
        )
