"""What a private mechanism let out, in the form an accountant needs.

The multiplier z = std / sensitivity carries the neighbouring relation: the sensitivity is the true one, how far the
released quantity moves at most when one unit is added, removed or replaced. Nothing downstream may account for the
relation again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from fedsim.errors import InputError, require
from fedsim.fields import check_fields

Mechanism = Literal["gaussian", "discrete_gaussian"]
Sampling = Literal["none", "poisson", "fixed"]
Unit = Literal["client", "sample", "peer"]
Relation = Literal["add_or_remove", "replace"]


@dataclass(frozen=True)
class Release:
    """One noisy quantity, let out ``count`` times.

    Attributes:
        sensitivity: largest L2 change of the released quantity when one unit changes by ``relation``, > 0, finite.
        std: standard deviation of the noise of each coordinate, same units as the sensitivity, > 0, finite.
        count: times it was let out, >= 1.
        mechanism: the law of the noise.
        sampling: "none": every unit took part; "poisson": each independently with probability ``rate``; "fixed":
            ``cohort`` of ``population`` units, drawn uniformly without replacement.
        rate: probability of "poisson", in (0, 1].
        cohort: size of a "fixed" draw, in 1..population.
        population: units a "fixed" draw chooses from.
        unit: whose participation is hidden: a client with all its samples, one sample, or a peer in gossip.
        relation: how neighbours differ. Said to the reader; the sensitivity already contains it.
    """

    sensitivity: float
    std: float
    count: int = 1
    mechanism: Mechanism = "gaussian"
    sampling: Sampling = "none"
    rate: float | None = None
    cohort: int | None = None
    population: int | None = None
    unit: Unit = "client"
    relation: Relation = "add_or_remove"

    def __post_init__(self) -> None:
        check_fields(self)
        require(self.sensitivity > 0, "sensitivity", "be > 0", self.sensitivity, "clip what is released")
        require(self.std > 0, "std", "be > 0", self.std, "without noise there is no epsilon to report")
        require(self.count >= 1, "count", "be >= 1", self.count)
        self._check_sampling()

    def _check_sampling(self) -> None:
        if self.sampling == "poisson":
            known = self.rate is not None and 0 < self.rate <= 1
            require(known, "rate", "be in (0, 1] with sampling poisson", self.rate)
        else:
            require(self.rate is None, "rate", f"be left out with sampling {self.sampling}", self.rate)
        got = (self.cohort, self.population)
        if self.sampling == "fixed":
            known = self.cohort is not None and self.population is not None and 1 <= self.cohort <= self.population
            require(known, "(cohort, population)", "satisfy 1 <= cohort <= population with sampling fixed", got)
        else:
            require(got == (None, None), "(cohort, population)", f"be left out with sampling {self.sampling}", got)

    @property
    def multiplier(self) -> float:
        """z = std / sensitivity."""
        return self.std / self.sensitivity

    @property
    def fraction(self) -> float:
        """Expected fraction of the units in one release, in (0, 1]."""
        if self.cohort is not None and self.population is not None:
            return self.cohort / self.population
        return 1.0 if self.rate is None else self.rate

    def unamplified(self) -> Release:
        """The same noise without credit for sampling: valid whatever the sampling, and larger in epsilon."""
        return replace(self, sampling="none", rate=None, cohort=None, population=None)


@dataclass(frozen=True)
class Drawn:
    """How a client's minibatches of a round come from its examples, by Poisson sampling where they are not all.

    Attributes:
        examples: n_i.
        batch: examples expected in a minibatch, in 1..n_i.
        steps: minibatches K_i.
    """

    examples: int
    batch: int
    steps: int

    @property
    def rate(self) -> float:
        """The probability of an example to be in a minibatch."""
        return self.batch / self.examples

    def release(
        self, multiplier: float, count: int, rate: float | None = None, relation: Relation = "add_or_remove"
    ) -> Release:
        """The noisy sum over one Poisson sample of the client's examples, ``count`` times; a unit is one of them.

        Args:
            multiplier: noise over sensitivity, > 0.
            count: minibatches, >= 1.
            rate: of the sampling, in (0, 1]; None: that of the minibatches.
            relation: how neighbours differ, as the sensitivity has it.
        """
        rate = self.rate if rate is None else rate
        whole = rate == 1
        return Release(
            1.0,
            multiplier,
            count,
            sampling="none" if whole else "poisson",
            rate=None if whole else rate,
            unit="sample",
            relation=relation,
        )


def merged(releases: Iterable[Release]) -> tuple[Release, ...]:
    """Equal releases once, their counts added, in order of first appearance."""
    counts: dict[Release, int] = {}
    for release in releases:
        one = replace(release, count=1)
        counts[one] = counts.get(one, 0) + release.count
    return tuple(replace(one, count=count) for one, count in counts.items())


def unit_of(releases: Iterable[Release]) -> Unit | None:
    """The unit all releases protect; None for no release.

    Raises:
        InputError: the units differ, so that no single epsilon describes the releases.
    """
    units = sorted({release.unit for release in releases})
    if len(units) > 1:
        raise InputError(f"releases must protect one kind of unit, got {', '.join(units)}; account for each apart")
    return units[0] if units else None
