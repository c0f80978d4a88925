"""Client-level differential privacy with a trusted server: DP-FedAvg around any algorithm.

McMahan, Ramage, Talwar, Zhang, "Learning Differentially Private Recurrent Language Models", ICLR 2018,
arXiv 1710.06963, the algorithm box of DP-FedAvg with fixed clipping and the fixed-denominator estimator: clients have
equal weights, the sum of clipped messages is divided by the expected size of the cohort, not by the real one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fedsim.objective import Objective
from fedsim.privacy.releases import Release
from fedsim.privacy.wrapped import Wrapped, noisy
from fedsim.types import Message, Round


@dataclass(frozen=True)
class CentralNoise(Wrapped):
    """The mechanism.

    Attributes:
        expected: clients expected in a round, >= 1.
    """

    expected: int = 1

    def local(self, obj: Objective, client: Any, got: Message, rnd: Round) -> tuple[Message, Any]:
        """The algorithm's work; its message clipped."""
        message, state = self.base.local(obj, client, got, rnd)
        return self.clipped(message), state

    def server(self, server: Any, received: Message, rnd: Round) -> Any:
        """The algorithm's step on the sum of the messages over the expected cohort, with noise."""
        fixed = {name: value * (len(rnd.clients) / self.expected) for name, value in received.items()}
        return self.base.server(server, noisy(fixed, self.std, rnd.noise), rnd)

    @property
    def std(self) -> float:
        """Of the noise on every number of the mean."""
        return self.noise_multiplier * self.clip / self.expected

    def releases(self, rnd: Round) -> tuple[Release, ...]:
        """The noisy mean, which one client more or less moves by at most clip / expected."""
        return (Release(self.clip / self.expected, self.std),) if self.noise_multiplier else ()
