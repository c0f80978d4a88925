"""What a run lets out of whom, round by round, and what the worst-off unit's epsilon is.

A private algorithm, or a mechanism around one, says with ``releases(rnd)`` what a round lets out that concerns every
unit alike, and where samples of different clients fare differently, with ``client_releases(rnd, drawn)`` what it lets
out of one sample of a client that takes part and draws its minibatches so. Of itself it may say, besides:

- ``kind(rnd)``: rounds of one kind let out the same; without it, every round is asked for its own.
- ``exposed(rnd)``: the clients that ``client_releases`` is about; without it, the round's cohort.
- ``own_sampling = True``: the schedule's way of drawing cohorts earns nothing beyond what the releases say.
- ``by_cohort = True``: what a round lets out depends on who came.
- ``equal_steps = True``: what it says holds for clients with the same number of local steps.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np

from fedsim.algorithms.kit.around import name_of, noisy_part
from fedsim.errors import InputError, require
from fedsim.local import Local
from fedsim.privacy.accountant import Accountant
from fedsim.privacy.wrapped import Wrapped
from fedsim.schedule import Bernoulli, Schedule, Uniform
from fedsim.traits.declared import traits_of
from fedsim.traits.releases import Drawn, Release, merged
from fedsim.types import Round


@dataclass(frozen=True)
class AccountedRun:
    """What a promise must know of the run that it is about.

    Attributes:
        schedule: who takes part when.
        sizes: [n] samples of each client.
        rounds: how many there will be.
        local: how clients draw minibatches.
        seed: of the run, which the cohorts follow from.
        parameters: d of the model; None where it is not one model for all.
    """

    schedule: Schedule
    sizes: tuple[int, ...]
    rounds: int
    local: Local
    seed: int
    parameters: int | None = None

    @property
    def population(self) -> int:
        """n, how many clients there are."""
        return len(self.sizes)

    @property
    def expected(self) -> int:
        """Usual size of a cohort."""
        return self.schedule.expected(self.population)

    def cohort(self, index: int) -> tuple[int, ...]:
        """The clients that take part in round ``index``."""
        return self.schedule.clients(index, self.population, self.seed)

    @cached_property
    def separation(self) -> int:
        """Least distance of two rounds with the same client, >= 1; the rounds of the run where none comes twice."""
        last: dict[int, int] = {}
        least = self.rounds
        for t in range(self.rounds):
            for client in self.cohort(t):
                least = min(least, t - last.get(client, -self.rounds))  # a first round is as far as can be
                last[client] = t
        return least

    def drawn(self, client: int) -> Drawn:
        """How a client draws its minibatches."""
        n = self.sizes[client]
        return Drawn(n, self.local.batch(n), self.local.count(n))


@dataclass(frozen=True)
class Draw:
    """How cohorts are drawn, in the words of a ``Release``."""

    sampling: Literal["none", "poisson", "fixed"] = "none"
    rate: float | None = None
    cohort: int | None = None
    population: int | None = None

    def of(self, release: Release) -> Release:
        """The release from a cohort that is drawn so."""
        return replace(release, sampling=self.sampling, rate=self.rate, cohort=self.cohort, population=self.population)


def draws_as(schedule: Schedule, rule: type) -> bool:
    """Whether cohorts are drawn by this rule, and not by a class of the user's that is built on it."""
    return type(schedule).clients is rule.clients  # type: ignore[attr-defined]


def draw_of(schedule: Schedule, population: int) -> Draw:
    """How a schedule draws; fixed lists of cohorts earn no amplification."""
    if isinstance(schedule, Bernoulli) and draws_as(schedule, Bernoulli) and schedule.rate < 1:
        return Draw("poisson", rate=schedule.rate)
    if isinstance(schedule, Uniform) and draws_as(schedule, Uniform) and schedule.expected(population) < population:
        return Draw("fixed", cohort=schedule.expected(population), population=population)
    return Draw()


@dataclass
class Counts:
    """How many rounds of each kind there were so far, and how often each client's data were in one.

    It depends on the schedule alone, not on the noise: ledgers that try noise multipliers on one run share it.

    Attributes:
        done: rounds that are counted.
        rounds: {kind of round: how many of the counted ones are of it}.
        example: {kind: the first round of it, which stands for all}.
        clients: {kind: [n] in how many rounds of it each client was exposed}; empty where clients fare alike.
    """

    done: int = 0
    rounds: dict[Hashable, int] = field(default_factory=dict)
    example: dict[Hashable, Round] = field(default_factory=dict)
    clients: dict[Hashable, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Ledger:
    """A private run's account.

    Attributes:
        algorithm: the private algorithm.
        accountant: how epsilon is computed.
        run: what is accounted for.
        remarks: what must stand beside the number.
        extra: further entries of the summary.
        counts: of the rounds so far; ledgers of one run may share them.
    """

    algorithm: Any
    accountant: Accountant
    run: AccountedRun
    counts: Counts = field(default_factory=Counts, compare=False, repr=False)
    remarks: tuple[str, ...] = ()
    extra: tuple[tuple[str, float], ...] = ()

    @property
    def noise_multiplier(self) -> float:
        """Noise over sensitivity of the private algorithm, or of the mechanism around one."""
        return float(noisy_part(self.algorithm).noise_multiplier)

    def common(self, rounds: int) -> tuple[Release, ...]:
        """What the first ``rounds`` rounds let out that concerns every unit alike, equal releases counted."""
        counts = self._counted(rounds)
        draw = draw_of(self.run.schedule, self.run.population)
        each = [
            replace(release, count=release.count * counts.rounds[kind])
            for kind, rnd in counts.example.items()
            for release in self.algorithm.releases(rnd)
        ]
        return merged(each if traits_of(self.algorithm).own_sampling else map(draw.of, each))

    def releases(self, rounds: int, client: int | None = None) -> tuple[Release, ...]:
        """Everything that the first ``rounds`` rounds let out of a client's unit; None: of the one that fares worst."""
        if client is None:
            return self.worst(rounds)[1]
        return merged((*self.common(rounds), *self._of_client(client, rounds)))

    def epsilon(self, rounds: int) -> float:
        """Epsilon after ``rounds`` rounds, of the unit that fares worst."""
        return self.worst(rounds)[0] if rounds else 0.0

    def summary(self, rounds: int) -> dict[str, Any]:
        """What stands in summary.json beside ``privacy/epsilon``: the noise, and the promise in words."""
        _, done, client = self.worst(max(1, rounds))
        said = [self.accountant.note(done), *self.remarks]
        if client is not None:
            said.insert(1, f"the largest of all clients, that of client {client}")
        promise = "; ".join(text for text in said if text)
        return {"privacy/noise_multiplier": self.noise_multiplier, "privacy/promise": promise, **dict(self.extra)}

    def worst(self, rounds: int) -> tuple[float, tuple[Release, ...], int | None]:
        """The largest epsilon, the releases it is of, and the client, if clients differ."""
        accountant, common = self.accountant, self.common(rounds)
        exact = accountant.epsilon if rounds >= self.run.rounds else accountant.running
        if "client_releases" not in traits_of(self.algorithm).hooks:
            return exact(common), common, None
        # the tight bound is expensive, so it is asked of the likely worst first, in the order of the cheap, looser one
        cheap = replace(accountant, kind="rdp")
        listed = [(merged((*common, *own)), client) for own, client in self._candidates(rounds)]
        listed.sort(key=lambda one: (-cheap.epsilon(one[0]), one[1]))
        best: tuple[float, tuple[Release, ...], int | None] = (-1.0, *listed[0])
        for releases, client in listed:
            # the tight bounds of this client and of those after it cannot be larger than these
            if cheap.epsilon(releases) <= best[0]:
                break
            if (epsilon := exact(releases)) > best[0]:
                best = (epsilon, releases, client)
        return best

    def _candidates(self, rounds: int) -> Iterator[tuple[tuple[Release, ...], int]]:
        """What was let out of a client alone, and the client, for those that may be the one that fares worst.

        Left out are clients like another one in size and exposures, and clients of which another one let out as much or
        more in every respect: as often or oftener, at a sampling rate and with a 1 / multiplier not smaller.
        """
        counts = self._counted(rounds)
        kinds = list(counts.example)
        # one column for each client: clients with equal columns let out the same, the first of them stands for all
        alike = np.stack([np.array(self.run.sizes), *(counts.clients[kind] for kind in kinds)])
        distinct = np.unique(alike, axis=1, return_index=True)[1].tolist()
        rows: dict[int, list[float]] = {}  # three numbers for each release, each of which costs more the larger it is
        for i in distinct:
            some = [(times, r) for times, each in self._by_kind(i, rounds) for r in each]
            rows[i] = [part for times, r in some for part in (times * r.count, r.fraction, 1 / r.multiplier)]
        for width in sorted({len(row) for row in rows.values()}):  # rows with other numbers of releases do not compare
            mine = [i for i, row in rows.items() if len(row) == width]
            table = np.array([rows[i] for i in mine])
            for i, row in zip(mine, table, strict=True):  # another is nowhere smaller and somewhere larger
                if not ((table >= row).all(1) & (table > row).any(1)).any():
                    yield self._of_client(i, rounds), i

    def _of_client(self, client: int, rounds: int) -> tuple[Release, ...]:
        """What was let out of this client alone, beside what concerns all."""
        each = self._by_kind(client, rounds)
        return tuple(replace(r, count=r.count * times) for times, some in each if times for r in some)

    def _by_kind(self, client: int, rounds: int) -> Iterator[tuple[int, tuple[Release, ...]]]:
        """For each kind of round, how often the client was exposed, and what that let out each time."""
        counts, drawn = self._counted(rounds), self.run.drawn(client)
        for kind, rnd in counts.example.items():
            yield int(counts.clients[kind][client]), self.algorithm.client_releases(rnd, drawn)

    def _counted(self, rounds: int) -> Counts:
        """The counts of the first ``rounds`` rounds, which go on from those of the last call."""
        counts, n = self.counts, self.run.population
        if rounds < counts.done:  # asked for an earlier round: counted anew
            counts.done, counts.rounds, counts.example, counts.clients = 0, {}, {}, {}
        said = traits_of(self.algorithm)
        mine = "client_releases" in said.hooks
        for t in range(
            counts.done, rounds
        ):  # cohorts follow from the seed, so the run's own are counted, not their law
            cohort = self.run.cohort(t) if mine or said.by_cohort else ()
            rnd = Round(t, cohort, n, min(self.run.sizes))
            kind = self.algorithm.kind(rnd) if "kind" in said.hooks else t
            counts.rounds[kind] = counts.rounds.get(kind, 0) + 1
            counts.example.setdefault(kind, rnd)
            if mine:
                exposed = self.algorithm.exposed(rnd) if "exposed" in said.hooks else cohort
                seen = counts.clients.setdefault(kind, np.zeros(n, dtype=np.int64))
                seen[list(exposed)] += 1
        counts.done = max(counts.done, rounds)
        return counts


def check_minibatches(algorithm: Any, run: AccountedRun) -> None:
    """Raise InputError unless minibatches are drawn as the accounts of single samples assume."""
    if traits_of(algorithm).equal_steps:
        steps = sorted({run.local.count(n) for n in set(run.sizes)})
        must = f"be the same for all clients of {type(algorithm).__name__}, who share the noise"
        require(len(steps) == 1, "local.steps", must, f"{steps[0]} to {steps[-1]}", "add local.steps=1")
    if "client_releases" not in traits_of(algorithm).hooks or run.local.sampling == "poisson":
        return
    size = max(run.sizes)
    drawn = run.drawn(run.sizes.index(size))
    first = Round(0, run.cohort(0), run.population, min(run.sizes))
    if drawn.rate < 1 and any(release.unit == "sample" for release in algorithm.client_releases(first, drawn)):
        raise InputError(
            f"local.sampling must be poisson for the privacy of {type(algorithm).__name__}, whose bound is for Poisson "
            f"sampling, got {run.local.sampling}; add local.sampling=poisson or local.batch_size=full"
        )


def steps_of(run: AccountedRun, algorithm: Any) -> tuple[tuple[int, int], ...]:
    """How many clients have each number of local steps, where cohorts are drawn at random; () where all know them.

    Raises:
        InputError: the algorithm's public fields would tell who came, and it does not say what they hold.
    """
    said = traits_of(algorithm)
    if said.public:
        must = f"have public_of, which says what its public field {said.public[0]} holds, so that it tells nothing else"
        require("public_of" in said.hooks, "algorithm", must, name_of(algorithm))
    if draw_of(run.schedule, run.population).sampling == "none" or said.noise == "clients":
        return ()
    steps = [run.local.count(n) for n in run.sizes]
    return tuple(sorted(Counter(steps).items()))


def remarks_on(run: AccountedRun, algorithm: Any) -> tuple[str, ...]:
    """What the number rests on that is not in the releases, in words."""
    said = []
    words = traits_of(algorithm)
    if words.public:
        of = "all clients" if isinstance(algorithm, Wrapped) and algorithm.steps else "the cohort"
        fields = " and ".join(words.public)
        said.append(f"public, neither clipped nor noisy: the mean {fields} over {of}, which clients' sizes tell")
    if words.noise == "shares":
        said.append("each client adds a share of the noise, so only the sum of all messages is private, not each alone")
    return tuple(said)
