"""Who computes in which round.

A cohort is a function of (seed, round) and the number of clients only, so that algorithms compared at equal seeds see
equal cohorts, and a resumed run sees those of the uninterrupted one.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from fedsim.errors import InputError, first_line, require
from fedsim.fields import check_fields
from fedsim.ground import addresses
from fedsim.ground.rng import numpy_stream


class Schedule(Protocol):
    """A rule for cohorts: a frozen dataclass of options."""

    def check(self, population: int, rounds: int) -> None:
        """Raise InputError unless every round of 0..rounds-1 has a cohort among clients 0..population-1."""
        ...

    def expected(self, population: int) -> int:
        """Typical size of a cohort, >= 1."""
        ...

    def clients(self, index: int, population: int, seed: int) -> tuple[int, ...]:
        """The cohort of round ``index`` (0-based): ascending ids; empty only where the rule says that it may be."""
        ...


COHORT = 10
"""Clients in a round where a cohort is ``auto``, or all of fewer."""


@dataclass(frozen=True)
class All:
    """Every client in every round."""

    def check(self, population: int, rounds: int) -> None:
        """Nothing to refuse: any number of clients will do."""

    def expected(self, population: int) -> int:
        """All n."""
        return population

    def clients(self, index: int, population: int, seed: int) -> tuple[int, ...]:
        """Clients 0..n-1."""
        return tuple(range(population))


@dataclass(frozen=True)
class Uniform:
    """A fixed number of clients a round, drawn uniformly without replacement.

    >>> cohort = Uniform(cohort=3).clients(index=7, population=100, seed=0)
    >>> len(cohort), cohort == Uniform(cohort=3).clients(7, 100, seed=0)
    (3, True)

    Attributes:
        cohort: clients in a round, in 1..n; ``auto``: ten, or all of fewer.
    """

    cohort: int | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        check_fields(self)
        _require_cohort(self.cohort)

    def check(self, population: int, rounds: int) -> None:
        """Raise InputError where ``cohort`` is larger than the number of clients."""
        _require_cohort(self.cohort, population)

    def expected(self, population: int) -> int:
        """The size of every cohort."""
        return cohort_size(self.cohort, population)

    def clients(self, index: int, population: int, seed: int) -> tuple[int, ...]:
        """The cohort of round ``index``, at stream (seed, "cohort", index)."""
        return _draw(self.expected(population), population, numpy_stream(seed, addresses.COHORT, index))


@dataclass(frozen=True)
class Cyclic:
    """Clients in turn: the population, shuffled once, is cut into groups, which take part one after another.

    Two rounds with the same client always lie as many rounds apart as there are groups, ``population // cohort``: what
    ``privacy=banded_matrix`` wants.

    Attributes:
        cohort: clients in the smallest group, in 1..n; where it does not divide n, others have more; ``auto``: ten, or
            all of fewer.
    """

    cohort: int | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        check_fields(self)
        _require_cohort(self.cohort)

    def check(self, population: int, rounds: int) -> None:
        """The cohort fits the population."""
        _require_cohort(self.cohort, population)

    def expected(self, population: int) -> int:
        """The mean size of a group, rounded."""
        return round(population / self._groups(population))

    def clients(self, index: int, population: int, seed: int) -> tuple[int, ...]:
        """Group ``index`` modulo their number; the shuffle is at stream (seed, "cohort")."""
        groups = self._groups(population)
        order = numpy_stream(seed, addresses.COHORT).permutation(population)
        return tuple(np.sort(order[index % groups :: groups]).tolist())

    def _groups(self, population: int) -> int:
        return population // cohort_size(self.cohort, population)


@dataclass(frozen=True)
class Bernoulli:
    """Each client independently with probability ``rate``.

    Drawn again when nobody came this is FL-Simulator's rule (its ``server.py``); with empty cohorts kept it is Poisson
    sampling, which the bounds of privacy accountants are for. Drawn as a binomial size and a uniform cohort of that
    size, which is the same law; cohorts that are not empty at the first draw are the same ones either way.

    Attributes:
        rate: probability of a client to take part in a round, in (0, 1].
        empty: what happens when nobody came: ``redraw``, which raises every client's probability to
            rate / (1 - (1 - rate)^n); ``keep``: a round without clients, in which a server that adds noise steps on
            noise alone, and any other one stays as it is; ``auto``: kept in a private run, else drawn again.
    """

    rate: float
    empty: Literal["auto", "redraw", "keep"] = "auto"

    def __post_init__(self) -> None:
        check_fields(self)
        require(0 < self.rate <= 1, "rate", "be in (0, 1]", self.rate)

    def check(self, population: int, rounds: int) -> None:
        """Raise InputError where empty cohorts are drawn again and nearly every draw would be empty."""
        # A draw is empty with probability (1 - rate)^n <= e^-0.05 then, 1,000 draws in a row with at most e^-50.
        least = 0.05 / population
        must = f"be >= {least:g} for {population} clients, or nearly every draw is empty"
        require(self.empty == "keep" or self.rate >= least, "schedule.rate", must, self.rate)

    def expected(self, population: int) -> int:
        """rate * n, rounded, at least 1."""
        return max(1, round(self.rate * population))

    def clients(self, index: int, population: int, seed: int) -> tuple[int, ...]:
        """The cohort of round ``index``, at stream (seed, "cohort", index)."""
        rng = numpy_stream(seed, addresses.COHORT, index)
        for _ in range(1000):
            size = int(rng.binomial(population, self.rate))
            if size or self.empty == "keep":
                return _draw(size, population, rng)
        raise InputError(f"schedule.rate must be higher: 1,000 draws of round {index} were empty, got {self.rate}")


def as_accounted(schedule: Schedule) -> Schedule:
    """The schedule as a private run draws it: cohorts may be empty, so that clients come with the rate that is claimed.

    Raises:
        InputError: empty cohorts are to be drawn again.
    """
    if not isinstance(schedule, Bernoulli) or schedule.rate == 1:
        return schedule
    do = "leave it out, or add schedule.empty=keep"
    must = "be keep or auto in a private run, whose epsilon is that of Poisson sampling at schedule.rate"
    require(schedule.empty != "redraw", "schedule.empty", must, schedule.empty, do)
    return replace(schedule, empty="keep")


@dataclass(frozen=True)
class Cohorts:
    """The cohorts of a file, one for each round.

    Attributes:
        path: JSON file with a list of lists of client ids; cohort r is that of round r, in any order.
    """

    path: str

    def __post_init__(self) -> None:
        check_fields(self)
        _ = self.cohorts  # a file that cannot be read is an error at construction

    @cached_property
    def cohorts(self) -> tuple[tuple[int, ...], ...]:
        """The file's cohorts, ids ascending; read once."""
        try:
            read = json.loads(Path(self.path).expanduser().read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"path must be a readable JSON file, got {self.path!r} ({first_line(error)})") from error
        require(
            _is_cohorts(read), "path", "hold a JSON list of lists of client ids, such as [[0, 3], [1, 2]]", self.path
        )
        return tuple(tuple(sorted(cohort)) for cohort in read)

    def check(self, population: int, rounds: int) -> None:
        """Raise InputError unless there are enough cohorts, none empty, each client of them existing and named once."""
        have = len(self.cohorts)
        require(have >= rounds, "schedule.path", f"hold a cohort for each of the {rounds} rounds", have)
        for index, cohort in enumerate(self.cohorts):
            where = f"schedule.path: cohort {index} of {self.path} must"
            if not cohort:
                raise InputError(f"{where} name at least one client, got []")
            if cohort[0] < 0 or cohort[-1] >= population:
                got = cohort[0] if cohort[0] < 0 else cohort[-1]
                raise InputError(f"{where} name clients in 0..{population - 1}, got {got}")
            if twice := [a for a, b in pairwise(cohort) if a == b]:
                raise InputError(f"{where} name each client once, got {twice[0]} more than once")

    def expected(self, population: int) -> int:
        """The mean size, rounded."""
        return max(1, round(sum(map(len, self.cohorts)) / max(1, len(self.cohorts))))

    def clients(self, index: int, population: int, seed: int) -> tuple[int, ...]:
        """Cohort ``index`` of the file."""
        return self.cohorts[index]


@dataclass(frozen=True)
class Events:
    """Virtual time without rounds: a Poisson clock on every peer (one gradient a unit of time) and on every edge.

    A "round" of the run is what happens between two recorded times. The edges' rates are the topology's.

    Attributes:
        t_end: virtual time until which clocks ring, > 0.
        record: ascending times in [0, t_end] at which peers are measured, the last of which ends the run; their number
            takes the place of ``rounds``. None: ``rounds`` equally spaced times, the last one t_end.
        hold: units of time that each graph of a time-varying topology lasts, > 0.
    """

    t_end: float = 100.0
    record: tuple[float, ...] | None = None
    hold: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("t_end", "hold"):
            require(getattr(self, name) > 0, name, "be > 0", getattr(self, name))
        if self.record is not None:
            require(len(self.record) > 0, "record", "name at least one time, or be null", [])
            ascending = all(a < b for a, b in pairwise(self.record))
            within = self.record[0] >= 0 and self.record[-1] <= self.t_end
            must = f"be ascending times in [0, t_end = {self.t_end:g}]"
            require(ascending and within, "record", must, list(self.record))

    def times(self, rounds: int) -> tuple[float, ...]:
        """When peers are measured: at ``record``, or ``rounds`` times."""
        return self.record or tuple(self.t_end * k / rounds for k in range(1, rounds + 1))

    def check(self, population: int, rounds: int) -> None:
        """Nothing to refuse: any number of peers will do."""

    def expected(self, population: int) -> int:
        """All n: any peer may compute between two recorded times."""
        return population

    def clients(self, index: int, population: int, seed: int) -> tuple[int, ...]:
        """All peers: each has a clock."""
        return tuple(range(population))


def cohort_size(cohort: int | Literal["auto"], population: int) -> int:
    """How many of the clients a round has."""
    return min(COHORT, population) if cohort == "auto" else cohort


def _require_cohort(cohort: int | Literal["auto"], population: int | None = None) -> None:
    """Raise InputError unless a round can have so many clients; how many there are may not be known yet."""
    if cohort == "auto":
        return
    require(cohort >= 1, "cohort", "be >= 1 or auto", cohort)
    if population is not None:
        require(cohort <= population, "schedule.cohort", f"be <= the {population} clients", cohort)


def _draw(size: int, population: int, rng: np.random.Generator) -> tuple[int, ...]:
    """A uniform subset of 0..population-1, ascending."""
    return tuple(np.sort(rng.choice(population, size=size, replace=False, shuffle=False)).tolist())


def _is_cohorts(read: Any) -> bool:
    """Whether a JSON value is a list of lists of integers (true and false are none)."""
    return isinstance(read, list) and all(
        isinstance(cohort, list) and all(type(client) is int for client in cohort) for cohort in read
    )
