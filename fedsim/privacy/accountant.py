"""From releases to epsilon, by dp-accounting.

Privacy loss distributions ("pld"): J. Doroshenko, B. Ghazi, P. Kamath, R. Kumar, P. Manurangsi, Connect the dots,
PoPETs 2022, arXiv:2207.04380; a composition of unsampled Gaussians needs no discretisation, it is one Gaussian with
1/z^2 = sum 1/z_i^2 (B. Balle, Y.-X. Wang, ICML 2018, arXiv:1805.06530). Renyi ("rdp"): I. Mironov, K. Talwar,
L. Zhang, arXiv:1908.10530.

The neighbouring relation is never passed to the library: its RDP accountant ignores it and its PLD accountant doubles
the sensitivity, which a ``Release`` already contains. For Poisson sampling under replace-one neighbours the add-or-
remove bound at the doubled sensitivity is valid by joint convexity (Balle, Barthe, Gaboardi, NeurIPS 2018).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from typing import Any, Literal

import numpy as np

from fedsim.errors import InputError, require
from fedsim.fields import check_fields
from fedsim.traits.releases import Release, unit_of

_FINE, _COARSE = 1e-4, 2.5e-4  # width of a bin of privacy loss, in units of epsilon
_LEAST = 2.0**-10  # the epsilon below which bins shrink no further
_GRID = 1.1  # ratio of the round counts at which a running epsilon is computed
_PRECISE = 1e-6  # relative, of a calibrated scale

_Key = tuple[
    tuple[float, float, int], ...
]  # (multiplier, sampling rate, count), sorted, multipliers distinct at a rate


@dataclass(frozen=True)
class Accountant:
    """Epsilon at a given delta.

    Attributes:
        kind: "pld": tight; "rdp": looser, cheaper, and the only one for the discrete Gaussian.
        delta: in (0, 1).
        fixed_as_poisson: count cohorts of fixed size as Poisson sampling at rate cohort / population, as pfl-research
            and TensorFlow Federated do. The bound is then that of another sampling than the one run; ``note`` says so.
    """

    kind: Literal["pld", "rdp"] = "pld"
    delta: float = 1e-5
    fixed_as_poisson: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        require(0 < self.delta < 1, "delta", "be in (0, 1)", self.delta, "usual is below 1 / number of units")

    def epsilon(self, releases: Iterable[Release]) -> float:
        """Epsilon >= 0 of everything in ``releases`` together; 0 for nothing.

        Raises:
            InputError: dp-accounting is missing, the units differ, or no bound covers a release.
        """
        return _epsilon(self.kind, self.delta, self._key(tuple(releases)), False)

    def running(self, releases: Iterable[Release]) -> float:
        """At least ``epsilon``, cheap when asked after each of many rounds.

        Equal to ``epsilon`` except for "pld" with sampling, whose counts are rounded up to a grid so that a run of
        R rounds computes O(log R) compositions: by at most a tenth, which adds about 5 % to an epsilon that grows as
        the root of the rounds, 10 % to one that grows as the rounds do (a large one). Coarser bins add a little.
        """
        return _epsilon(self.kind, self.delta, self._key(tuple(releases)), True)

    def note(self, releases: Iterable[Release]) -> str:
        """What must stand beside the number: the unit, and where sampling and bound differ; "" for no release."""
        listed = tuple(releases)
        unit = unit_of(listed)
        if unit is None:
            return ""
        relations = " and ".join(sorted({r.relation.replace("_", " ") for r in listed}))
        said = f"{unit}-level ({relations}), {self.kind}, delta {self.delta:g}"
        fixed = sorted({(r.cohort or 0, r.population or 0) for r in listed if r.sampling == "fixed" and r.fraction < 1})
        if fixed and self.fixed_as_poisson:
            cohorts = ", ".join(f"{cohort} of {population}" for cohort, population in fixed)
            said += f"; cohorts of fixed size ({cohorts}) counted as Poisson sampling, which was not what ran"
        return said

    def calibrate(self, releases_at: Callable[[float], Sequence[Release]], target_epsilon: float) -> float:
        """The smallest scale of the noise that meets the target, to a relative 1e-6 of the scale or of epsilon.

        Args:
            releases_at: the releases of the whole run at a scale > 0; epsilon must fall as the scale rises.
            target_epsilon: > 0, finite.

        Returns:
            A scale whose ``epsilon`` does not exceed the target.

        Raises:
            InputError: the target is met without noise or by no noise.
        """
        require(0 < target_epsilon < math.inf, "target_epsilon", "be > 0 and finite", target_epsilon)
        start = 1.0
        # with sampling the tight bound is expensive: the search begins where the cheap one has ended
        if self.kind == "pld" and any(rate < 1 for _, rate, _ in self._key(tuple(releases_at(1.0)))):
            rough = Accountant("rdp", self.delta, self.fixed_as_poisson)
            start = rough.calibrate(releases_at, target_epsilon)  # above the answer: RDP is the looser bound
        return _smallest(lambda scale: self.epsilon(releases_at(scale)), target_epsilon, start)

    def _key(self, releases: tuple[Release, ...]) -> _Key:
        unit_of(releases)
        counts: dict[tuple[float, float], int] = {}  # composition knows no order: equal releases are counted
        for release in releases:
            pair = (release.multiplier, self._rate(release))
            counts[pair] = counts.get(pair, 0) + release.count
        return tuple(sorted((z, rate, count) for (z, rate), count in counts.items()))

    def _rate(self, release: Release) -> float:
        """The rate of Poisson sampling the bound is to assume; 1 for none."""
        rate = release.fraction
        if release.mechanism == "discrete_gaussian":
            do = "use the accountant rdp"
            require(self.kind == "rdp", "accountant", "be rdp for discrete Gaussian noise", self.kind, do)
            do = "report it unamplified (sampling none), which is valid for every sampling"
            require(rate == 1, "sampling", "be none for discrete Gaussian noise", release.sampling, do)
        if rate < 1 and release.sampling == "fixed" and not self.fixed_as_poisson:
            raise InputError(
                f"sampling must be none or poisson for the accountant's bound, got a fixed cohort of {release.cohort} "
                f"of {release.population}; use a Bernoulli schedule of rate {rate:g}, or set fixed_as_poisson=true to "
                "count it as Poisson sampling (the custom of other simulators), or report it unamplified"
            )
        return rate


@lru_cache(maxsize=4096)
def _epsilon(kind: str, delta: float, key: _Key, running: bool) -> float:
    if not key:
        return 0.0
    if kind == "rdp":
        return _renyi(delta, key)
    # unsampled Gaussians compose to one, whose 1/z^2 is the sum of theirs: exact, and without a grid
    whole = sum(count / z**2 for z, rate, count in key if rate == 1)
    sampled = tuple((z, rate, _up(count) if running else count) for z, rate, count in key if rate < 1)
    library = _library()
    if not sampled:
        return float(library.get_epsilon_gaussian(whole**-0.5, delta))
    # sampling only helps, and RDP only loses: both bound what follows and set its resolution
    every = sum(count / z**2 for z, _, count in key)
    bound = min(_renyi(delta, key), float(library.get_epsilon_gaussian(every**-0.5, delta)))
    width = (_COARSE if running else _FINE) * 2.0 ** math.ceil(math.log2(max(_LEAST, bound)))
    losses = [_composed(z, rate, width, count) for z, rate, count in sampled]
    if whole:  # the unsampled part joins as the one Gaussian that it is
        losses.append(_loss(whole**-0.5, 1.0, width))
    total = losses[0]
    for loss in losses[1:]:
        total = total.compose(loss)
    return float(total.get_epsilon_for_delta(delta))


def _renyi(delta: float, key: _Key) -> float:
    total = sum(count * _divergences(z, rate) for z, rate, count in key)  # Renyi divergences add up, order by order
    return float(_library().rdp.compute_epsilon(_library().rdp.RdpAccountant().orders, total, delta)[0])


@lru_cache(maxsize=4096)
def _divergences(z: float, rate: float) -> np.ndarray:
    """Renyi divergences at the library's orders of one Gaussian release."""
    library = _library()
    event = library.GaussianDpEvent(z)
    if rate < 1:  # add-or-remove neighbours, at the sensitivity that z holds already
        event = library.PoissonSampledDpEvent(rate, event)
    return np.asarray(library.rdp.RdpAccountant().compose(event).rdp)


@lru_cache(maxsize=16)
def _loss(z: float, rate: float, width: float) -> Any:
    """The privacy loss distribution of one Gaussian release, rounded upwards to bins of ``width``."""
    losses = _library().pld.privacy_loss_distribution
    return losses.from_gaussian_mechanism(z, sampling_prob=rate, value_discretization_interval=width)


@lru_cache(maxsize=16)
def _composed(z: float, rate: float, width: float, count: int) -> Any:
    return _loss(z, rate, width).self_compose(count)


def _up(count: int) -> int:
    """The next count of the grid: each is the one before times _GRID, or plus 1."""
    at = 1
    while at < count:
        at = max(at + 1, int(at * _GRID))
    return at


def _smallest(epsilon: Callable[[float], float], target: float, start: float) -> float:
    """The smallest scale with epsilon(scale) <= target; epsilon falls, nearly as a power of the scale."""
    good, below = start, epsilon(start)
    bad, above = start, below
    for _ in range(60):  # doubling: 2^60 times the start is no noise that anybody wants
        if below <= target:
            break
        bad, above = good, below
        good *= 2
        below = epsilon(good)
    else:
        raise InputError(f"target_epsilon must be reachable, got {target} but noise times {good:g} gives {below:.4g}")
    # the least scale lies between ``bad``, too little noise, and ``good``, enough: bracket it, then close in
    step = 1.1
    while above <= target:
        if bad < start * 2.0**-30:
            raise InputError(f"target_epsilon must need noise, got {target}: nearly none gives {above:.4g}")
        good, below = bad, above
        bad /= step
        above = epsilon(bad)
        step = min(step * 1.5, 8.0)  # the start is often close, so the first steps down are small
    low, high = math.log(above / target), math.log(below / target) if below > 0 else -math.inf
    turn = 0
    while good / bad - 1 > _PRECISE and high < -_PRECISE:
        turn += 1
        # epsilon is nearly a power of the scale: a secant in logarithms, every third time a bisection that cannot stall
        share = low / (low - high) if turn % 3 and math.isfinite(low - high) else 0.5
        scale = bad * (good / bad) ** min(max(share + 1e-9, 1e-3), 1 - 1e-3)
        got = epsilon(scale)
        if got <= target:
            good, high = scale, math.log(got / target) if got > 0 else -math.inf
        else:
            bad, low = scale, math.log(got / target)
    return good


def _library() -> Any:
    try:
        found = import_module("dp_accounting")
        absl = import_module("absl.logging")
        absl.set_verbosity(absl.ERROR)  # its warnings name Renyi orders left out, which cost nothing but tightness
        return found
    except ImportError as error:
        raise InputError(
            "epsilon needs the package dp-accounting, which is not installed; pip install 'fedsim-ray[dp]'"
        ) from error
