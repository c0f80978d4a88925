"""What a run promises: which mechanism makes it private, how much noise, and how epsilon is computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

from fedsim.channel.channel import Channel
from fedsim.channel.order import kind
from fedsim.errors import InputError, require
from fedsim.privacy.accountant import Accountant
from fedsim.privacy.central import CentralNoise
from fedsim.privacy.local import LocalNoise
from fedsim.privacy.releases import Release, merged
from fedsim.schedule import Bernoulli, Schedule, Uniform
from fedsim.types import Round


class Privacy(Protocol):
    """A promise; ``None`` in its place promises nothing."""

    target_epsilon: float | None
    noise_multiplier: float | None

    @property
    def accountant(self) -> Accountant:
        """How epsilon is computed."""
        ...

    def applied(self, algorithm: Any, noise_multiplier: float, expected: int) -> Any:
        """The algorithm with the mechanism and this much noise; ``expected`` is the usual size of a cohort."""
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


@dataclass(frozen=True)
class Own(Promise):
    """The algorithm is private by itself (``algorithm=diff2``): its noise is set, and its epsilon reported."""

    def applied(self, algorithm: Any, noise_multiplier: float, expected: int) -> Any:
        """The algorithm with this noise multiplier."""
        if not hasattr(algorithm, "releases"):
            name = type(algorithm).__name__
            raise InputError(f"privacy=own needs a private algorithm such as diff2, got {name}; choose a mechanism")
        return replace(algorithm, noise_multiplier=noise_multiplier)


@dataclass(frozen=True)
class CentralGaussian(Promise):
    """Client-level: clients clip their messages, the server adds noise to their mean (DP-FedAvg).

    Attributes:
        clip: largest norm of a client's message, > 0.
    """

    clip: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.clip > 0, "clip", "be > 0", self.clip)

    def applied(self, algorithm: Any, noise_multiplier: float, expected: int) -> Any:
        """The algorithm between clipping and noise."""
        return CentralNoise(algorithm, self.clip, noise_multiplier, expected)


@dataclass(frozen=True)
class LocalGaussian(CentralGaussian):
    """Client-level without a trusted server: every client clips its message and adds the noise itself."""

    def applied(self, algorithm: Any, noise_multiplier: float, expected: int) -> Any:
        """The algorithm with clipping and noise at the clients."""
        return LocalNoise(algorithm, self.clip, noise_multiplier)


def check_channel(algorithm: Any, channel: Channel) -> None:
    """Raise InputError where the server adds the noise and a layer lets messages grow beyond their clipped norm."""
    if getattr(algorithm, "noise", "clients" if isinstance(algorithm, LocalNoise) else "server") == "clients":
        return
    for layer in channel.layers:
        if kind(layer) != "layerwise" and not getattr(layer.middleware, "nonexpansive", False):
            why = "remembers earlier messages" if kind(layer) == "feedback" else "can make a message longer"
            raise InputError(
                f"channel must not have {layer.name} under noise of the server: it {why}, so the clip bound, which "
                "the noise is measured by, does not hold at the server; use topk, sign or a biased randk, or let the "
                "clients add the noise (privacy=local_gaussian, algorithm.noise=clients), before any layer"
            )


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


def draw_of(schedule: Schedule, population: int) -> Draw:
    """How a schedule draws; fixed lists of cohorts earn no amplification."""
    if isinstance(schedule, Bernoulli):
        return Draw("poisson", rate=schedule.rate)
    if isinstance(schedule, Uniform) and schedule.cohort < population:
        return Draw("fixed", cohort=schedule.cohort, population=population)
    return Draw()


@dataclass(frozen=True)
class Ledger:
    """What a run lets out, round by round."""

    algorithm: Any
    accountant: Accountant
    draw: Draw
    population: int
    smallest: int

    def releases(self, rounds: int) -> tuple[Release, ...]:
        """Everything that the first ``rounds`` rounds let out, equal releases counted."""
        draw = Draw() if getattr(self.algorithm, "unsampled", False) else self.draw
        each = (self.algorithm.releases(Round(t, (), self.population, self.smallest)) for t in range(rounds))
        return tuple(draw.of(release) for release in merged(release for some in each for release in some))

    @property
    def noise_multiplier(self) -> float:
        """Of the private algorithm."""
        return float(self.algorithm.noise_multiplier)

    def epsilon(self, rounds: int) -> float:
        """Epsilon after ``rounds`` rounds."""
        return self.accountant.running(self.releases(rounds)) if rounds else 0.0


def promised(
    privacy: Privacy, algorithm: Any, schedule: Schedule, sizes: Sequence[int], rounds: int
) -> tuple[Any, Ledger]:
    """The private algorithm, its noise calibrated if a target is given, and its ledger.

    Args:
        privacy: what the run promises.
        algorithm: to be made private.
        schedule: how cohorts are drawn.
        sizes: [n] samples of each client.
        rounds: of the run.

    Raises:
        InputError: the accountant has no bound for what would be let out.
    """

    def ledger(noise_multiplier: float) -> Ledger:
        private = privacy.applied(algorithm, noise_multiplier, schedule.expected(len(sizes)))
        return Ledger(private, privacy.accountant, draw_of(schedule, len(sizes)), len(sizes), min(sizes))

    at: Callable[[float], Sequence[Release]] = lambda z: ledger(z).releases(rounds)  # noqa: E731
    z = privacy.noise_multiplier
    if privacy.target_epsilon is not None:
        z = privacy.accountant.calibrate(at, privacy.target_epsilon)
    if z is None:
        raise InputError("privacy.noise_multiplier must be given, or privacy.target_epsilon")
    made = ledger(z)
    made.accountant.epsilon(made.releases(1))  # says now what has no bound
    return made.algorithm, made
