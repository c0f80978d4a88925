"""ADOM+: accelerated decentralized optimization in synchronous rounds, the method that DADAO takes apart.

Kovalev, Gasanov, Gasnikov, Richtarik, "Lower Bounds and Optimal Algorithms for Smooth and Strongly Convex Decentralized
Optimization Over Time-Varying Networks", NeurIPS 2021, arXiv 2106.04469, its Algorithm 1 (ADOM+); multi-consensus is
``gossip_steps``.

Deviations: the gossip matrix is I - W^Q with the topology's W and Q = ``gossip_steps``; the step on z that ends a round
is taken when the next one begins, which changes no iterate of x.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from fedsim.algorithms.kit.gradients import mean_gradient
from fedsim.algorithms.kit.roles import ModelPeer
from fedsim.errors import require
from fedsim.fields import check_fields
from fedsim.objective import Objective
from fedsim.traits import Traits
from fedsim.types import Message, Round


class ADOMPlusPeer(NamedTuple):
    """What a peer keeps."""

    x: Tensor  # [d] model
    x_f: Tensor  # [d]
    y: Tensor  # [d] dual of the loss
    y_f: Tensor  # [d]
    z: Tensor  # [d] dual of consensus; sums to zero over the peers
    z_f: Tensor  # [d]
    s: Tensor  # [d] y_g + z_g of this round
    q: Tensor  # [d] gamma / nu s + m, the errors that gossip has left
    mixed_s: Tensor  # [d] W^Q s
    mixed_q: Tensor  # [d] W^Q q


@dataclass(frozen=True)
class ADOMPlus(ModelPeer):
    """ADOM+ for strongly convex smooth losses and a symmetric W.

    Attributes:
        mu: least strong convexity among the clients' losses, > 0.
        smooth: largest smoothness constant L among the clients' losses, >= mu.
        gap: spectral gap of W, which a run reports as ``gossip/spectral_gap``, in (0, 1].
        weight_decay: weight of 1/2 ||x||^2 in every loss, >= 0, which ``mu`` and ``smooth`` include.
        gossip_steps: Q, exchanges in a round, >= 1.
    """

    traits: ClassVar[Traits] = Traits(role="peers", hooks=("gossip_steps",))
    mu: float = 1.0
    smooth: float = 10.0
    gap: float = 0.1
    weight_decay: float = 0.0
    gossip_steps: int = 1

    def __post_init__(self) -> None:
        check_fields(self)
        require(self.mu > 0, "mu", "be > 0", self.mu)
        require(self.smooth >= self.mu, "smooth", f"be >= mu = {self.mu:g}", self.smooth)
        require(0 < self.gap <= 1, "gap", "be in (0, 1]", self.gap)
        require(self.weight_decay >= 0, "weight_decay", "be >= 0", self.weight_decay)
        require(self.gossip_steps >= 1, "gossip_steps", "be >= 1", self.gossip_steps)

    @property
    def chi(self) -> float:
        """Condition number of gossip: ||W^Q v||^2 <= (1 - 1/chi) ||v||^2 for v that sum to zero."""
        return 1 / (1 - (1 - self.gap) ** (2 * self.gossip_steps))  # W^Q shrinks v by (1 - gap)^Q

    @property
    def sigma2(self) -> float:
        """Step of y_f, sqrt(mu / L) / (16 chi)."""
        return sqrt(self.mu / self.smooth) / (16 * self.chi)

    @property
    def sigma1(self) -> float:
        """Share of y in y_g and of z in z_g."""
        return 1 / (1 / self.sigma2 + 0.5)

    @property
    def gamma(self) -> float:
        """Step of z, nu / (14 sigma2 chi^2) with nu = mu / 2."""
        return self.mu / 2 / (14 * self.sigma2 * self.chi**2)

    def init_client(self, x0: Tensor) -> ADOMPlusPeer:
        """x at x0, everything else at zero."""
        zero = torch.zeros_like(x0)
        return ADOMPlusPeer(x0, x0, *[zero] * 8)

    def local(self, obj: Objective, peer: ADOMPlusPeer, rnd: Round) -> ADOMPlusPeer:
        """The last round's step on z, then the implicit step on x and y."""
        mu, smooth, nu = self.mu, self.smooth, self.mu / 2
        tau1, tau2 = 1 / (sqrt(smooth / mu) + 0.5), sqrt(mu / smooth)
        eta, theta = 1 / (smooth * tau2), nu / (4 * self.sigma2)
        alpha, beta = mu / 2, 1 / (2 * smooth)
        z, z_f = self._settled(peer)
        # the points in between at which Nesterov's acceleration takes gradients, of x and of y
        x_g = tau1 * peer.x + (1 - tau1) * peer.x_f
        y_g = self.sigma1 * peer.y + (1 - self.sigma1) * peer.y_f
        s = y_g + self.sigma1 * z + (1 - self.sigma1) * z_f
        g = mean_gradient(obj, x_g) + (self.weight_decay - nu) * x_g
        # the box's steps on x and y are implicit: each needs the other's new value. With x+ = known + share y+ put into
        # y+ = y + theta beta (g - y+) - theta (s / nu + x+) one linear equation for y+ is left
        known = (peer.x + eta * alpha * x_g - eta * g) / (1 + eta * alpha)
        share = eta / (1 + eta * alpha)
        y = (peer.y + theta * beta * g - theta * (s / nu + known)) / (1 + theta * beta + theta * share)
        x = known + share * y
        q = self.gamma / nu * s + peer.mixed_q  # what gossip left of the last q is m
        x_f, y_f = x_g + tau2 * (x - peer.x), y_g + self.sigma2 * (y - peer.y)
        return ADOMPlusPeer(x, x_f, y, y_f, z, z_f, s, q, s, q)

    def _settled(self, peer: ADOMPlusPeer) -> tuple[Tensor, Tensor]:
        """z and z_f [d] after the gossip of the last round."""
        delta, zeta = 1 / (17 * self.smooth), 0.5
        z_g = self.sigma1 * peer.z + (1 - self.sigma1) * peer.z_f
        # I - W^Q is applied to q and to s: what a peer sent less what gossip has made of it
        z = peer.z + self.gamma * delta * (z_g - peer.z) - (peer.q - peer.mixed_q)
        return z, z_g - zeta * (peer.s - peer.mixed_s)

    def offer(self, peer: ADOMPlusPeer, rnd: Round) -> Message:
        """s and q, as far as they are mixed: 2 d numbers."""
        return {"s": peer.mixed_s, "q": peer.mixed_q}

    def mix(self, peer: ADOMPlusPeer, mixed: Message, rnd: Round) -> ADOMPlusPeer:
        """One more product with W."""
        return peer._replace(mixed_s=mixed["s"], mixed_q=mixed["q"])
