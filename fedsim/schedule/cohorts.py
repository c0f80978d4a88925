"""The cohort of a round, looked at where a user's own schedule drew it, or where nobody said how large it is."""

from __future__ import annotations

import numpy as np

from fedsim.errors import InputError
from fedsim.ground.own_code import built_in, own_code
from fedsim.schedule.delays import Asynchronous
from fedsim.schedule.rules import COHORT, Cyclic, Schedule, Uniform


def cohort_of(schedule: Schedule, index: int, n: int, seed: int) -> tuple[int, ...]:
    """The cohort of a round; raises InputError where a user's own schedule fails at it, or names no clients."""
    if built_in(schedule):
        return schedule.clients(index, n, seed)
    with own_code("schedule", schedule):
        clients = schedule.clients(index, n, seed)
    require_cohort(clients, n, type(schedule).__name__, index)
    return clients


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


def smaller_cohort(schedule: Schedule, population: int) -> tuple[str, ...]:
    """A note where nobody said how many clients compute at once, and there are fewer than do so by default."""
    if isinstance(schedule, Asynchronous):
        key, size, those = "concurrency", schedule.concurrency, f"the {COHORT} that are at work at once"
    elif isinstance(schedule, (Uniform, Cyclic)):
        key, size, those = "cohort", schedule.cohort, f"the {COHORT} of a round"
    else:
        return ()
    if size != "auto" or population >= COHORT:
        return ()
    return (f"schedule.{key} is {population}: there are fewer clients than {those} by default",)
