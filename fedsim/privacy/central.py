"""Client-level differential privacy with a trusted server: DP-FedAvg around any algorithm.

McMahan, Ramage, Talwar, Zhang, "Learning Differentially Private Recurrent Language Models", ICLR 2018,
arXiv 1710.06963, the algorithm box of DP-FedAvg with fixed clipping and the fixed-denominator estimator: clients have
equal weights, the sum of clipped messages is divided by the expected size of the cohort, not by the real one.

Noise as of a larger cohort (``noise_cohort``), a custom of benchmarks: pfl-research (Granqvist et al., arXiv
2404.06430) runs cohorts of 50 with the noise that each number of a mean over 1,000 would have. The epsilon is then that
of the deployment the noise stands for, cohorts of ``noise_cohort`` among ``noise_population`` clients, each drawn
independently, and not of what ran.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fedsim.errors import require
from fedsim.objective import Objective
from fedsim.privacy.wrapped import Wrapped, noisy, over_expected
from fedsim.traits import Traits
from fedsim.traits.releases import Release
from fedsim.types import Message, Round


@dataclass(frozen=True)
class CentralNoise(Wrapped):
    """Clients clip their messages, the server adds noise to their mean.

    Attributes:
        expected: clients expected in a round, >= 1.
        noise_cohort: clients in a round of the deployment that the noise and epsilon are for; None: as ``expected``.
        noise_population: clients of that deployment, >= noise_cohort.
    """

    expected: int = 1
    noise_cohort: int | None = None
    noise_population: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.expected >= 1, "expected", "be >= 1", self.expected)
        require_deployment(self.noise_cohort, self.noise_population)

    @property
    def traits(self) -> Traits:
        """The algorithm's, and noise of the server; epsilon may be that of another draw than the schedule's."""
        return self.private(noise="server", own_sampling=self.noise_cohort is not None)

    @property
    def cohort(self) -> int:
        """Clients that the noise of a mean is measured by."""
        return self.expected if self.noise_cohort is None else self.noise_cohort

    def local(self, obj: Objective, client: Any, got: Message, rnd: Round) -> tuple[Message, Any]:
        """The algorithm's work; its message clipped."""
        message, state = self.base.local(obj, client, got, rnd)
        return self.clipped(message, self.clip), state

    def server(self, server: Any, received: Message, rnd: Round) -> Any:
        """The algorithm's step on the sum of the messages over the expected cohort, with noise."""
        # sum over the expected cohort, then noise of z clip / cohort on every number of that mean
        summed = noisy(over_expected(self.payload(received), rnd, self.expected), self.std, rnd.noise)
        return self.base.server(server, {**summed, **self.known(received, rnd)}, rnd)

    @property
    def std(self) -> float:
        """Standard deviation of the noise on every number of the mean."""
        return self.noise_multiplier * self.clip / self.cohort

    def releases(self, rnd: Round) -> tuple[Release, ...]:
        """The noisy mean, which one client more or less moves by at most clip / cohort."""
        return (self.release(self.clip / self.cohort, self.std),) if self.noise_multiplier else ()

    def release(self, sensitivity: float, std: float) -> Release:
        """A release; of the deployment's sampling where there is one."""
        if self.noise_cohort is None or self.noise_population in (None, self.noise_cohort):  # nobody is left out
            return Release(sensitivity, std)
        return Release(sensitivity, std, sampling="poisson", rate=self.noise_cohort / self.noise_population)


def require_deployment(cohort: int | None, population: int | None) -> None:
    """Raise InputError unless both numbers of a deployment are given, or neither."""
    pair = (cohort, population)
    known = pair == (None, None) or (cohort is not None and population is not None and 1 <= cohort <= population)
    must = "be null or 1 <= noise_cohort <= noise_population, both given"
    require(known, "(noise_cohort, noise_population)", must, pair)
