"""MSDA: dual accelerated gradient steps in rounds, each with several exchanges of Chebyshev gossip.

Scaman, Bach, Bubeck, Lee, Massoulie, "Optimal Algorithms for Smooth and Strongly Convex Distributed Optimization in
Networks", ICML 2017, arXiv 1702.08704, its Algorithm 2.

Deviations: the gossip matrix is I - W with the topology's W, and its eigenvalues are taken to lie in [gap, 2 - gap], so
that I minus c3 times it is W; Chebyshev polynomials are computed in the scale of theta, divided by the paper's a_k; the
dual step that ends a round is taken when the next one begins, which changes no iterate.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import sqrt
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from fedsim.algorithms.kit.dual import Dual
from fedsim.algorithms.kit.protocols import RoundConstants
from fedsim.errors import require
from fedsim.objective import Objective
from fedsim.traits import Traits
from fedsim.types import Message, Round


class MSDAPeer(NamedTuple):
    """What a peer keeps."""

    theta: Tensor  # [d] grad f_i*(x), the model
    x: Tensor  # [d] dual point, sums to zero over the peers; grad f_i of the optimum in the end
    y: Tensor  # [d] dual point before momentum, likewise
    mixed: Tensor  # [d] P_k(W) theta after k exchanges
    before: Tensor  # [d] P_{k-1}(W) theta
    omega: Tensor  # [] weight of the next exchange, 2 c2 a_k / a_{k+1}; 1 for the first


@dataclass(frozen=True)
class MSDA(Dual):
    """Multi-step dual accelerated gradient for a symmetric W that stays, and least squares with a linear model.

    Attributes:
        gap: spectral gap of W, in (0, 1]; 0: computed.
    """

    traits: ClassVar[Traits] = Traits(role="peers", static=True, hooks=("tuned", "gossip_steps"))

    gap: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.gap <= 1, "gap", "be in (0, 1], or 0 to have it computed", self.gap)

    def tuned(self, constants: RoundConstants) -> MSDA:
        """With the gap of W and the losses' mu and L, unless they were given."""
        mu, smooth = self.bounds(constants.mu, constants.smooth)
        return replace(self, mu=mu, smooth=smooth, gap=self.gap or constants.gap)

    @property
    def gamma(self) -> float:
        """Least over largest eigenvalue of the Laplacian, by their bounds gap and 2 - gap."""
        return self.gap / (2 - self.gap)

    @property
    def gossip_steps(self) -> int:
        """K, exchanges in a round."""
        return int(1 / sqrt(self.gamma) + 1e-9)  # 1e-9: roots of squares round down

    def init_client(self, x0: Tensor) -> MSDAPeer:
        """The dual points at zero; x0 is only where the first gradient is taken."""
        zero = torch.zeros_like(x0)
        return MSDAPeer(x0, zero, zero, x0, x0, torch.ones((), dtype=x0.dtype))

    def model(self, peer: MSDAPeer) -> Tensor:
        """theta [d]."""
        return peer.theta

    def local(self, obj: Objective, peer: MSDAPeer, rnd: Round) -> MSDAPeer:
        """The last round's step with what gossip has left of theta, then the new theta."""
        # c1 is the K-th power of the paper's, by which K exchanges of Chebyshev gossip narrow the spectrum
        c1 = ((1 - sqrt(self.gamma)) / (1 + sqrt(self.gamma))) ** self.gossip_steps
        eta = self.mu * (1 + c1**2) / (1 + c1) ** 2
        root = (1 + c1) * sqrt(self.smooth / self.mu)
        momentum = (root - (1 - c1)) / (root + (1 - c1))
        y = peer.x - eta * (peer.theta - peer.mixed)  # I - P_K(W), applied to theta
        x = (1 + momentum) * y - momentum * peer.y
        theta = self.primal(obj, peer.theta, x)
        return MSDAPeer(theta, x, y, theta, theta, torch.ones_like(peer.omega))

    def offer(self, peer: MSDAPeer, rnd: Round) -> Message:
        """theta [d], as far as it is mixed."""
        return {"theta": peer.mixed}

    def mix(self, peer: MSDAPeer, mixed: Message, rnd: Round) -> MSDAPeer:
        """One more Chebyshev polynomial: P_{k+1} = omega W P_k + (1 - omega) P_{k-1}."""
        omega = peer.omega
        # the weights follow from those of Chebyshev polynomials; the first exchange is plain W (omega = 1)
        ahead = 1 / (1 - (1 - self.gap) ** 2 / 4 * torch.where(omega > 1, omega, 2.0))
        after = omega * mixed["theta"] + (1 - omega) * peer.before
        return peer._replace(mixed=after, before=peer.mixed, omega=ahead)
