"""Continuized dual coordinate descent: two peers that meet both compute, and step against the difference.

Even, Berthier, Bach, Flammarion, Gaillard, Hendrikx, Massoulie, Taylor, "A Continuized View on Nesterov Acceleration
for Stochastic Gradient Descent and Randomized Gossip", NeurIPS 2021, arXiv 2106.07644, the algorithm of its appendix on
decentralized optimization; it has no algorithm box.

Deviations: eta has the factor 2 where the public code of DADAO (arXiv 2208.00779) puts it, which is sqrt(2) times what
a Lyapunov argument of ours gives with the other two steps; y steps by mu / 2 on every edge, the whole coordinate
step, where the paper multiplies by the edge's resistance over the largest; a peer's model is that of its last meeting.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import sqrt
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from fedsim.algorithms.kit.dual import Dual
from fedsim.algorithms.kit.protocols import Constants
from fedsim.algorithms.kit.roles import ModelPeer
from fedsim.errors import require
from fedsim.objective import Objective
from fedsim.traits import Traits
from fedsim.types import Message, Round


class ContinuizedPeer(NamedTuple):
    """What a peer keeps."""

    x: Tensor  # [d] grad f_i*(y) when it last met a neighbour, the model; x0 before
    y: Tensor  # [d] dual point, sums to zero over the peers; grad f_i of the optimum in the end
    y_tilde: Tensor  # [d] its momentum, likewise


@dataclass(frozen=True)
class Continuized(ModelPeer, Dual):
    """Accelerated coordinate descent on the dual, an edge at a time, for least squares with a linear model.

    Attributes:
        chi1: of the graph with its rates, > 0; 0: computed.
        chi2: likewise.
    """

    traits: ClassVar[Traits] = Traits(role="events", coupled=True)

    chi1: float = 0.0
    chi2: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("chi1", "chi2"):
            require(getattr(self, name) >= 0, name, "be > 0, or 0 to have it computed", getattr(self, name))

    def tuned(self, constants: Constants) -> Continuized:
        """With the graph's chi1 and chi2 and the losses' mu and L, unless they were given."""
        mu, smooth = self.bounds(constants.mu, constants.smooth)
        chi1, chi2 = self.chi1 or constants.chi1, self.chi2 or constants.chi2
        return replace(self, mu=mu, smooth=smooth, chi1=chi1, chi2=chi2)

    def init_client(self, x0: Tensor) -> ContinuizedPeer:
        """The dual points at zero; x0 is only where the first gradient is taken."""
        zero = torch.zeros_like(x0)
        return ContinuizedPeer(x0, zero, zero)

    def flow(self, peer: ContinuizedPeer, dt: Tensor) -> ContinuizedPeer:
        """y' = eta (y~ - y), y~' = eta (y - y~): their mean stays, their difference shrinks by exp(-2 eta dt)."""
        eta = sqrt(self.mu / (2 * self.chi1 * self.chi2 * self.smooth))
        # the exact solution after dt; expm1 keeps its digits where events follow each other closely
        moved = 0.5 * (-torch.expm1(-2 * eta * dt)).to(peer.y.dtype) * (peer.y_tilde - peer.y)
        return peer._replace(y=peer.y + moved, y_tilde=peer.y_tilde - moved)

    def local(self, obj: Objective, peer: ContinuizedPeer, rnd: Round) -> ContinuizedPeer:
        """The gradient of the conjugate, of both peers of a meeting."""
        return peer._replace(x=self.primal(obj, peer.x, peer.y))

    def meet(self, peer: ContinuizedPeer, got: Message, rnd: Round) -> ContinuizedPeer:
        """y and y~ step against the difference of the two models."""
        # one coordinate step of the dual is one along an edge: both ends move by the difference of their primal points
        gamma, gamma_t = self.mu / 2, sqrt(self.smooth * self.mu * self.chi1 / (4 * self.chi2))
        m = peer.x - got["x"]
        return peer._replace(y=peer.y - gamma * m, y_tilde=peer.y_tilde - gamma_t * m)
