"""Gradient tracking: peers also gossip about the gradient, so that a constant lr reaches the exact optimum.

Nedic, Olshevsky, Shi, "Achieving Geometric Convergence for Distributed Optimization over Time-Varying Graphs", SIAM
Journal on Optimization 2017, arXiv 1607.03218, the algorithm box of DIGing; with minibatches: Pu, Nedic, "Distributed
Stochastic Gradient Tracking Methods", Mathematical Programming 2021, arXiv 1805.11454, the algorithm box of DSGT
(GT-SGD).

    DIGing:  X+ = W X - lr Y       DSGT:  X+ = W (X - lr Y)       both:  Y+ = W Y + G(X+) - G(X), at first Y = G(X)

Deviations: with K local steps the gradient is the mean over K minibatches, all at the same x; the lr may decay. W must
be doubly stochastic. Everybody computes in every round, or the mean of y would not be that of the gradients.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from fedsim.algorithms.kit.gradients import mean_gradient
from fedsim.algorithms.kit.local_sgd import LocalSGD
from fedsim.algorithms.kit.roles import ModelPeer
from fedsim.objective import Objective
from fedsim.traits import Traits
from fedsim.types import Message, Round


class GradientTrackingPeer(NamedTuple):
    """What a peer keeps."""

    x: Tensor  # [d] its model
    y: Tensor  # [d] its estimate of the mean gradient
    g: Tensor  # [d] its own gradient where it last computed one


@dataclass(frozen=True)
class GradientTracking(ModelPeer, LocalSGD):
    """Gradient tracking over a doubly stochastic W.

    Attributes:
        form: where the step is taken: ``diging`` after mixing, ``dsgt`` before it, which allows a larger lr.
    """

    traits: ClassVar[Traits] = Traits(role="peers", everyone=True)
    form: Literal["diging", "dsgt"] = "diging"

    def init_client(self, x0: Tensor) -> GradientTrackingPeer:
        """Every peer starts from the same model; the first y is the first gradient."""
        return GradientTrackingPeer(x0, torch.zeros_like(x0), torch.zeros_like(x0))

    def local(self, obj: Objective, peer: GradientTrackingPeer, rnd: Round) -> GradientTrackingPeer:
        """y <- y + g - the g before, g the mean gradient at x over the K minibatches."""
        g = self.bounded(peer.x, mean_gradient(obj, peer.x))
        # g starts at zero, so that the first y is the first gradient; from then on mean y = mean g over all peers
        return GradientTrackingPeer(peer.x, peer.y + g - peer.g, g)

    def offer(self, peer: GradientTrackingPeer, rnd: Round) -> Message:
        """The model, for ``dsgt`` after its step, and y, [d] each."""
        return {"x": peer.x if self.form == "diging" else peer.x - self.rate(rnd) * peer.y, "y": peer.y}

    def mix(self, peer: GradientTrackingPeer, mixed: Message, rnd: Round) -> GradientTrackingPeer:
        """x_i <- sum_j w_ij x_j - lr y_i, without the step for ``dsgt``; y_i <- sum_j w_ij y_j."""
        x = mixed["x"] - self.rate(rnd) * peer.y if self.form == "diging" else mixed["x"]
        return GradientTrackingPeer(x, mixed["y"], peer.g)
