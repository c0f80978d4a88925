"""What a run promises: which mechanism makes it private, how much noise, and how epsilon is computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any, Literal, Protocol

from fedsim.algorithms.kit.around import name_of, with_noise
from fedsim.errors import InputError, require
from fedsim.fields import check_fields
from fedsim.local import Local
from fedsim.privacy.accountant import Accountant
from fedsim.privacy.adaptive import AdaptiveNoise
from fedsim.privacy.banded import BandedNoise
from fedsim.privacy.central import CentralNoise, require_deployment
from fedsim.privacy.discrete import DiscreteNoise
from fedsim.privacy.ledger import AccountedRun, Counts, Ledger, check_minibatches, remarks_on, steps_of
from fedsim.privacy.local import LocalNoise
from fedsim.privacy.matrix_mechanism import BandedFactor, banded_factor
from fedsim.privacy.secure_sum import SecureSum
from fedsim.privacy.wrapped import Wrapped
from fedsim.schedule import Schedule, as_accounted
from fedsim.traits.declared import traits_of
from fedsim.traits.releases import Release


class Privacy(Protocol):
    """A promise; ``None`` in its place promises nothing."""

    target_epsilon: float | None
    noise_multiplier: float | None

    @property
    def accountant(self) -> Accountant:
        """How epsilon is computed."""
        ...

    def applied(self, algorithm: Any, noise_multiplier: float, run: AccountedRun) -> Any:
        """The algorithm with the mechanism and this much noise."""
        ...

    def remarks(self, run: AccountedRun) -> tuple[str, ...]:
        """What must stand beside the number, beyond what the accountant says."""
        ...


@dataclass(frozen=True)
class Promise:
    """The keys that every mechanism has.

    Attributes:
        delta: of (epsilon, delta), in (0, 1), usually below 1 / units.
        target_epsilon: noise is chosen so that the whole run costs this much, > 0; None: as ``noise_multiplier`` says.
        noise_multiplier: noise over sensitivity, > 0; None: as ``target_epsilon`` says.
        kind: the accountant: ``pld`` (tight) or ``rdp``.
        fixed_as_poisson: count cohorts of fixed size as Poisson sampling, which they are not; the summary says so.
    """

    delta: float
    target_epsilon: float | None = None
    noise_multiplier: float | None = None
    kind: Literal["pld", "rdp"] = "pld"
    fixed_as_poisson: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        require(0 < self.delta < 1, "delta", "be in (0, 1)", self.delta, "usual is below 1 / number of units")
        given = [self.target_epsilon, self.noise_multiplier]
        require(given.count(None) == 1, "target_epsilon", "be given, or else noise_multiplier, not both", given)
        for name in ("target_epsilon", "noise_multiplier"):
            value = getattr(self, name)
            require(value is None or value > 0, name, "be > 0", value)

    @property
    def accountant(self) -> Accountant:
        """How epsilon is computed."""
        return Accountant(self.kind, self.delta, self.fixed_as_poisson)

    def remarks(self, run: AccountedRun) -> tuple[str, ...]:
        """Nothing beyond what the accountant says."""
        return ()


@dataclass(frozen=True)
class Own(Promise):
    """The algorithm is private by itself (``algorithm=diff2``): its noise is set, and its epsilon reported.

    Attributes:
        calibration: how noise follows from ``target_epsilon``: ``library``: by the accountant, tightly; ``paper``: by
            the formula of the algorithm's paper, which the accountant finds to cost less (both are reported).
    """

    calibration: Literal["library", "paper"] = "library"

    def __post_init__(self) -> None:
        super().__post_init__()
        given = self.target_epsilon is not None or self.calibration == "library"
        require(given, "target_epsilon", "be given for calibration=paper", None)

    def applied(self, algorithm: Any, noise_multiplier: float, run: AccountedRun) -> Any:
        """The algorithm with this noise multiplier."""
        if traits_of(algorithm).noise == "none":
            name = name_of(algorithm)
            raise InputError(f"privacy=own needs a private algorithm such as diff2, got {name}; choose a mechanism")
        return with_noise(algorithm, noise_multiplier)

    def nominal(self, algorithm: Any, run: AccountedRun) -> float | None:
        """The noise multiplier of the paper's formula, or None for the accountant's."""
        if self.calibration == "library" or self.target_epsilon is None:
            return None
        if "paper_multiplier" not in traits_of(algorithm).hooks:
            name = name_of(algorithm)
            raise InputError(f"calibration must be library for {name}, whose paper gives no constants, got paper")
        return float(algorithm.paper_multiplier(self.target_epsilon, self.delta, run.rounds))


@dataclass(frozen=True)
class CentralGaussian(Promise):
    """Client-level: clients clip their messages, the server adds noise to their mean (``fedsim.privacy.central``).

    >>> from fedsim import Mean, simulate
    >>> from fedsim.algorithms.fedavg import FedAvg
    >>> from fedsim.data import Digits
    >>> from fedsim.models import linear
    >>> from fedsim.partition import Iid
    >>> parts = {"data": Digits(), "partition": Iid(clients=4), "model": linear, "aggregate": Mean(weights="uniform")}
    >>> private = CentralGaussian(delta=1e-5, noise_multiplier=2.0, clip=0.5)
    >>> result = simulate(FedAvg(lr=0.1), **parts, rounds=1, privacy=private)
    >>> result.summary["privacy/epsilon"] < 3
    True

    Attributes:
        clip: largest norm of a client's message, > 0.
        noise_cohort: noise and epsilon as if so many clients came to a round, of ``noise_population``; None: as it is.
        noise_population: clients of the deployment that noise and epsilon are for, >= noise_cohort.
    """

    clip: float = 1.0
    noise_cohort: int | None = None
    noise_population: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_bound(self.clip)
        require_deployment(self.noise_cohort, self.noise_population)

    def applied(self, algorithm: Any, noise_multiplier: float, run: AccountedRun) -> Any:
        """The algorithm between clipping and noise."""
        cohort, population = self.noise_cohort, self.noise_population
        return CentralNoise(algorithm, self.clip, noise_multiplier, run.expected, cohort, population)

    def remarks(self, run: AccountedRun) -> tuple[str, ...]:
        """A line where noise and epsilon are those of another deployment than what ran."""
        if self.noise_cohort is None:
            return ()
        ran = f"{run.expected} of {run.population}"
        meant = f"{self.noise_cohort} of {self.noise_population} clients"
        return (f"noise and epsilon are those of Poisson cohorts of {meant}, not of the {ran} that ran",)


@dataclass(frozen=True)
class AdaptiveGaussian(CentralGaussian):
    """``CentralGaussian`` whose bound follows a quantile of the norms (``fedsim.privacy.adaptive``).

    Attributes:
        clip: the first round's bound, > 0.
        quantile: of the norms that the bound is to follow, in [0, 1].
        rate: how fast it does, > 0: C <- C exp(-rate (fraction within - quantile)).
        bits_std: of the noise on the number of norms within, which its noise_multiplier must be below twice of, > 0;
            None: a twentieth of the cohort.
    """

    clip: float = 0.1
    quantile: float = AdaptiveNoise.quantile
    rate: float = AdaptiveNoise.rate
    bits_std: float | None = AdaptiveNoise.bits_std

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.quantile <= 1, "quantile", "be in [0, 1]", self.quantile)
        require(self.rate > 0, "rate", "be > 0", self.rate)
        require(self.bits_std is None or self.bits_std > 0, "bits_std", "be > 0", self.bits_std)

    def applied(self, algorithm: Any, noise_multiplier: float, run: AccountedRun) -> Any:
        """The algorithm between clipping and noise."""
        cohorts = (run.expected, self.noise_cohort, self.noise_population)
        bound = (self.quantile, self.rate, self.bits_std)
        return AdaptiveNoise(algorithm, self.clip, noise_multiplier, *cohorts, *bound)


@dataclass(frozen=True)
class LocalGaussian(Promise):
    """Client-level without a trusted server: every client clips its message and adds the noise itself.

    The mechanism and its papers: ``fedsim.privacy.local``.

    Attributes:
        clip: largest norm of a client's message, > 0.
    """

    clip: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_bound(self.clip)

    def applied(self, algorithm: Any, noise_multiplier: float, run: AccountedRun) -> Any:
        """The algorithm with clipping and noise at the clients."""
        return LocalNoise(algorithm, self.clip, noise_multiplier)


@dataclass(frozen=True)
class BandedMatrix(Promise):
    """Client-level DP-FTRL: the server's noise is correlated over rounds and cancels (``fedsim.privacy.banded``).

    Attributes:
        clip: largest norm of a client's message, > 0.
        min_separation: least distance of two rounds with the same client, >= 1; None: what the schedule keeps.
        bands: of C, in 1..min_separation; None: as many; 1 is independent noise in every round.
    """

    clip: float = 1.0
    min_separation: int | None = None
    bands: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_bound(self.clip)
        for name in ("min_separation", "bands"):
            require(getattr(self, name) is None or getattr(self, name) >= 1, name, "be >= 1", getattr(self, name))

    def applied(self, algorithm: Any, noise_multiplier: float, run: AccountedRun) -> Any:
        """The algorithm between clipping and noise."""
        separation = self.separation(run)
        bands = separation if self.bands is None else self.bands  # more bands would overlap between participations
        must = f"be in 1..{separation}, the rounds that the schedule keeps between two of the same client"
        require(bands <= separation, "bands", must, bands)
        factor = factor_of(run.rounds, min(bands, run.rounds))
        return BandedNoise(algorithm, self.clip, noise_multiplier, run.expected, factor, separation)

    def separation(self, run: AccountedRun) -> int:
        """Rounds that lie at least between two of the same client, verified on the run's cohorts."""
        kept = run.separation
        if self.min_separation is None:
            return kept
        do = "add schedule=cyclic, or lower it"
        require(self.min_separation <= kept, "min_separation", f"be <= {kept}, which the schedule keeps", kept, do)
        return self.min_separation

    def remarks(self, run: AccountedRun) -> tuple[str, ...]:
        """A line on what is assumed of the cohorts."""
        apart = self.separation(run)
        return (f"a client's rounds lie at least {apart} apart, which the cohorts keep; nothing is earned by sampling",)


@dataclass(frozen=True)
class DiscreteGaussian(Promise):
    """Client-level: clients send noisy integers whose sum modulo 2^bits is all that the server sees.

    The mechanism and its paper: ``fedsim.privacy.discrete``. Only the accountant ``rdp`` knows discrete noise.

    Attributes:
        clip: largest norm of a client's message, > 0.
        bits: of each number on the wire, in 2..48.
        deviations: standard deviations of the sum that fit before it wraps, > 0.
    """

    kind: Literal["pld", "rdp"] = "rdp"
    clip: float = 1.0
    bits: int = SecureSum.bits
    deviations: float = SecureSum.deviations

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_bound(self.clip)
        require(self.kind == "rdp", "kind", "be rdp for discrete Gaussian noise", self.kind)
        require(2 <= self.bits <= 48, "bits", "be in 2..48", self.bits)
        require(self.deviations > 0, "deviations", "be > 0", self.deviations)

    def applied(self, algorithm: Any, noise_multiplier: float, run: AccountedRun) -> Any:
        """The algorithm with rounding and integer noise at the clients."""
        if run.parameters is None:
            raise InputError("model must be one architecture for privacy=discrete_gaussian, whose noise depends on d")
        return DiscreteNoise(
            algorithm, self.clip, noise_multiplier, run.expected, run.parameters, self.bits, self.deviations
        )

    def remarks(self, run: AccountedRun) -> tuple[str, ...]:
        """A line on what clients that miss do to the noise."""
        return (f"noise made for cohorts of {run.expected}: those who miss take their share along, as accounted",)


def _require_bound(clip: float) -> None:
    require(clip > 0, "clip", "be > 0: without a bound nothing is private", clip)


@lru_cache(maxsize=8)
def factor_of(rounds: int, bands: int) -> BandedFactor:
    """The factor of a run; made once, for calibration asks for it again and again."""
    return banded_factor(rounds, bands)


def promised(
    privacy: Privacy,
    algorithm: Any,
    schedule: Schedule,
    sizes: Sequence[int],
    rounds: int,
    local: Local | None = None,
    seed: int | None = None,
    parameters: int | None = None,
) -> tuple[Any, Ledger]:
    """The private algorithm, its noise calibrated if a target is given, and its ledger.

    Args:
        privacy: what the run promises.
        algorithm: to be made private.
        schedule: how cohorts are drawn.
        sizes: [n] samples of each client.
        rounds: of the run.
        local: how clients draw minibatches; None where what is let out does not depend on it.
        seed: of the run, which the cohorts follow from; likewise.
        parameters: d of the model; None where it is not one model for all.

    Raises:
        InputError: the accountant has no bound for what would be let out.
    """
    run = AccountedRun(as_accounted(schedule), tuple(sizes), rounds, local or Local(), seed or 0, parameters)
    counts = Counts()  # shared by the ledgers of all noise multipliers that are tried

    def ledger(noise_multiplier: float) -> Ledger:
        made = privacy.applied(algorithm, noise_multiplier, run)
        if isinstance(made, Wrapped):  # public fields are the mean over all clients where the cohort is hidden
            made = replace(made, steps=steps_of(run, made))
        return Ledger(made, privacy.accountant, run, counts)

    trial = ledger(1.0).algorithm  # what is checked here does not depend on how much noise there is
    if hasattr(trial, "client_releases") and (local is None or seed is None):
        raise TypeError(
            f"promised needs local and seed: clients of {type(trial).__name__} are accounted for one by one"
        )
    check_minibatches(trial, run)
    z, extra = privacy.noise_multiplier, {}
    if privacy.target_epsilon is not None:
        z = privacy.nominal(algorithm, run) if isinstance(privacy, Own) else None
        if z is not None:
            extra = {"privacy/epsilon_nominal": privacy.target_epsilon}
        else:
            z = _calibrated(ledger, privacy, rounds)
    if z is None:
        raise InputError("privacy.noise_multiplier must be given, or privacy.target_epsilon")
    made = ledger(z)
    if isinstance(made.algorithm, Wrapped):
        made.algorithm.check()
    remarks = (*privacy.remarks(run), *remarks_on(run, made.algorithm))
    made = replace(made, remarks=remarks, extra=tuple(extra.items()))
    made.accountant.epsilon(made.releases(1))  # says now what has no bound
    return made.algorithm, made


def _calibrated(ledger: Callable[[float], Ledger], privacy: Privacy, rounds: int) -> float:
    """The least noise multiplier at which no client's epsilon exceeds the target."""
    target = privacy.target_epsilon or 0.0
    _, _, client = ledger(1.0).worst(rounds)
    # who fares worst may change with the noise: calibrated for one client, then for the one that fares worse at that
    # noise, who needs more, so that the search ends
    while True:
        z = privacy.accountant.calibrate(partial(_releases_at, ledger, rounds, client), target)
        epsilon, _, worst = ledger(z).worst(rounds)
        if epsilon <= target or worst == client:
            return z
        client = worst


def _releases_at(ledger: Callable[[float], Ledger], rounds: int, client: int | None, z: float) -> Sequence[Release]:
    """What the whole run lets out of a client at the noise multiplier z."""
    return ledger(z).releases(rounds, client)
