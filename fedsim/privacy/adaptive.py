"""Client-level differential privacy with a trusted server and a clipping bound that follows the norms.

Andrew, Thakkar, McMahan, Ramaswamy, "Differentially Private Learning with Adaptive Clipping", NeurIPS 2021, arXiv
1905.03871, algorithm 1, around any algorithm; the arithmetic is ``fedsim.privacy.clipping``. Each client adds one bit
to its message, whether its norm was within the bound; updates and bits together cost what updates alone would.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fedsim.errors import require
from fedsim.ground.tree import leaves
from fedsim.objective import Objective
from fedsim.privacy.central import CentralNoise
from fedsim.privacy.clipping import fraction_std, next_clip, noisy_fraction, value_multiplier
from fedsim.privacy.wrapped import noisy, over_expected
from fedsim.traits.releases import Release
from fedsim.types import Message, Round


class AdaptiveState(NamedTuple):
    """The algorithm's server state and the bound, all of it released."""

    base: Any
    clip: Tensor  # scalar, C of the next round

    @property
    def x(self) -> Tensor:
        """[d] the global model."""
        found: Tensor = self.base.x
        return found


@dataclass(frozen=True)
class AdaptiveNoise(CentralNoise):
    """The mechanism; ``clip`` is the first round's bound.

    Attributes:
        quantile: of the norms that the bound is to follow, in [0, 1].
        rate: eta_C, how fast it does, > 0.
        bits_std: of the noise on the sum of bits, > 0; None: the paper's, a twentieth of the cohort.
    """

    quantile: float = 0.5
    rate: float = 0.2
    bits_std: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.quantile <= 1, "quantile", "be in [0, 1]", self.quantile)
        require(self.rate > 0, "rate", "be > 0", self.rate)
        require(self.bits_std is None or self.bits_std > 0, "bits_std", "be > 0", self.bits_std)

    @property
    def split(self) -> tuple[float, float]:
        """Multiplier of the updates' noise, and standard deviation of that on the sum of bits."""
        bits_std = fraction_std(self.cohort) if self.bits_std is None else self.bits_std
        return value_multiplier(self.noise_multiplier, bits_std), bits_std

    def check(self) -> None:
        """The bits' share must leave some of the budget to the updates."""
        if self.noise_multiplier:
            _ = self.split  # raises where it does not

    def init_server(self, x0: Any) -> AdaptiveState:
        """The algorithm's state, and the first bound."""
        like = leaves(x0)[0]
        return AdaptiveState(self.base.init_server(x0), torch.tensor(self.clip, dtype=like.dtype, device=like.device))

    def broadcast(self, server: AdaptiveState, rnd: Round) -> Message:
        """What the algorithm broadcasts, and the bound."""
        return {**self.base.broadcast(server.base, rnd), "clip": server.clip}

    def local(self, obj: Objective, client: Any, got: Message, rnd: Round) -> tuple[Message, Any]:
        """The algorithm's work; its message clipped, with the bit +1/2 for a norm within the bound, else -1/2."""
        rest = {name: value for name, value in got.items() if name != "clip"}
        message, state = self.base.local(obj, client, rest, rnd)
        # +-1/2 rather than 0 and 1: one client more or less then moves the sum of bits by 1/2 only
        within = (self.norm(message) <= got["clip"]).to(got["clip"].dtype) - 0.5
        return {**self.clipped(message, got["clip"]), "within": within}, state

    def server(self, server: AdaptiveState, received: Message, rnd: Round) -> AdaptiveState:
        """The algorithm's step on the noisy sum over the expected cohort; C <- C exp(-rate (fraction - quantile))."""
        clip, arrived = float(server.clip), len(rnd.clients)
        values = {name: value for name, value in self.payload(received).items() if name != "within"}
        summed = over_expected(values, rnd, self.expected)
        noise = 0.0
        if self.noise_multiplier:
            z, bits_std = self.split
            summed = noisy(summed, z * clip / self.cohort, rnd.noise)
            # made for ``cohort`` clients (the deployment's), brought to the size of the ``expected`` that really come
            noise = bits_std * self.expected / self.cohort * float(rnd.noise.at(1).normal(server.clip))
        within = round(arrived * (float(received["within"]) + 0.5))
        fraction = noisy_fraction(within, arrived, self.expected, noise)
        following = torch.full_like(server.clip, next_clip(clip, fraction, self.quantile, self.rate))
        summed |= self.known(received, rnd)
        return AdaptiveState(self.base.server(server.base, summed, rnd), following)

    def releases(self, rnd: Round) -> tuple[Release, ...]:
        """Sum and bits together, which cost as much as one release with the multiplier z."""
        return (self.release(1.0, self.noise_multiplier),) if self.noise_multiplier else ()
