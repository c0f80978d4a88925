"""DP-FTRL around any algorithm: noise correlated over rounds, so that it cancels in the sum of all updates so far.

Choquette-Choo, Ganesh, McKenna, McMahan, Rush, Thakurta, Xu, "(Amplified) Banded Matrix Factorization: A unified
approach to private training", NeurIPS 2023, arXiv 2306.08153, algorithm 1 without amplification; the factorisation is
``fedsim.privacy.matrix_mechanism``. Nothing is assumed about how cohorts are drawn but that a client's rounds lie at
least ``separation`` apart, which is verified; a client then takes part in at most ceil(T / separation) of T rounds, and
its terms' columns of C do not overlap.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fedsim.errors import require
from fedsim.ground.tree import leaves
from fedsim.objective import Objective
from fedsim.privacy.matrix_mechanism import BandedFactor
from fedsim.privacy.wrapped import Wrapped, over_expected
from fedsim.traits import Traits
from fedsim.traits.releases import Release
from fedsim.types import Message, Round


class BandedState(NamedTuple):
    """The algorithm's server state and the noise that later rounds take back."""

    base: Any
    past: Tensor  # [bands - 1, d] float64, the latest first; secret

    @property
    def x(self) -> Tensor:
        """[d] the global model."""
        found: Tensor = self.base.x
        return found


@dataclass(frozen=True)
class BandedNoise(Wrapped):
    """Clients clip their messages, the server adds correlated noise to their mean.

    Attributes:
        expected: clients expected in a round, >= 1.
        factor: C.
        separation: least distance of two rounds with the same client, >= the bands of C.
    """

    expected: int
    factor: BandedFactor
    separation: int

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.expected >= 1, "expected", "be >= 1", self.expected)
        bands = self.factor.noise_coefficients.shape[1]
        require(self.separation >= bands, "separation", f"be >= the {bands} bands of C", self.separation)

    @property
    def traits(self) -> Traits:
        """The algorithm's, and noise of the server; nothing is earned by sampling."""
        return self.private(noise="server", own_sampling=True)

    @property
    def std(self) -> float:
        """Standard deviation of the white noise Z on every number of the mean."""
        return self.noise_multiplier * self.clip / self.expected

    def kind(self, rnd: Round) -> Hashable:
        """Whether this is one of the rounds that stand for a participation."""
        # a client's rounds lie at least ``separation`` apart, so each stretch of that length holds one of them at most
        return rnd.index % self.separation == 0

    def releases(self, rnd: Round) -> tuple[Release, ...]:
        """A client's j-th participation, counted at the first round of the j-th stretch of ``separation``.

        C X with its noise is one Gaussian release whose sensitivity, for columns of norm 1 that do not overlap, is clip
        times the root of the participations: as much as that many releases of one participation each.
        """
        if not self.noise_multiplier or not self.kind(rnd):
            return ()
        return (Release(self.clip, self.noise_multiplier * self.clip),)

    def init_server(self, x0: Any) -> BandedState:
        """The algorithm's state, and no noise yet."""
        bands, d = self.factor.noise_coefficients.shape[1], sum(leaf.numel() for leaf in leaves(x0))
        return BandedState(self.base.init_server(x0), torch.zeros(bands - 1, d, dtype=torch.float64))

    def broadcast(self, server: BandedState, rnd: Round) -> Message:
        """What the algorithm broadcasts."""
        return super().broadcast(server.base, rnd)

    def local(self, obj: Objective, client: Any, got: Message, rnd: Round) -> tuple[Message, Any]:
        """The algorithm's work; its message clipped."""
        message, state = self.base.local(obj, client, got, rnd)
        return self.clipped(message, self.clip), state

    def server(self, server: BandedState, received: Message, rnd: Round) -> BandedState:
        """The algorithm's step on the sum over the expected cohort plus (C^-1 Z)_t z clip / expected."""
        summed, known = over_expected(self.payload(received), rnd, self.expected), self.known(received, rnd)
        name, value = self.vector(summed, server.past.shape[1])
        if not self.noise_multiplier:
            return server._replace(base=self.base.server(server.base, {**summed, **known}, rnd))
        rounds, bands = self.factor.noise_coefficients.shape
        require(rnd.index < rounds, "rounds", f"be at most {rounds}, which the noise was made for", rnd.index + 1)
        # row t of C^-1 Z by forward substitution: the round's white noise less what earlier rows take back
        white = rnd.noise.normal(value.reshape(-1)).double().cpu()
        row = torch.from_numpy(self.factor.noise(rnd.index, white.numpy(), [p.numpy() for p in server.past]))
        noisy = value + (self.std * row).to(value).view(value.shape)
        # b - 1 rows reach as far back as C does; they are part of the state, so that a resumed run has them
        past = torch.cat([row[None], server.past])[: bands - 1]
        return BandedState(self.base.server(server.base, {name: noisy, **known}, rnd), past)
