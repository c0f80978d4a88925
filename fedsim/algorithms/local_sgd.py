"""The local SGD step that the algorithms share: learning rate per round, gradient clipping, weight decay, SAM's ascent.

The order is FL-Simulator's (github woodenchild95/FL-Simulator, client/client.py, the code of the FedSpeed and FedSMOO
papers): the gradient with all the terms of the method, its total norm clipped, then weight decay, which is not clipped.
Sharpness-aware minimisation: Foret, Kleiner, Mobahi, Neyshabur, "Sharpness-Aware Minimization for Efficiently Improving
Generalization", ICLR 2021, arXiv 2010.01412, Algorithm 1.

Deviation: FL-Simulator writes the term +x/lambda of FedProx, FedDyn, FedSpeed and FedSMOO as weight decay and so clips
-x/lambda without it; here a method's terms are clipped as one vector.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fedsim.errors import require
from fedsim.objective import Objective
from fedsim.types import Batch, Round


@dataclass(frozen=True)
class LocalSGD:
    """The hyper-parameters of local SGD; algorithms inherit them and have ``super().__post_init__()`` check them.

    Attributes:
        lr: local learning rate eta, > 0.
        lr_decay: factor on lr per round, in (0, 1].
        weight_decay: weight of 1/2 ||y||^2 in a local step, >= 0.
        clip: largest norm of a step's direction before weight decay, > 0; None clips nothing.
    """

    lr: float
    lr_decay: float = 1.0
    weight_decay: float = 0.0
    clip: float | None = None

    def __post_init__(self) -> None:
        require(self.lr > 0, "lr", "be > 0", self.lr)
        require(0 < self.lr_decay <= 1, "lr_decay", "be in (0, 1]", self.lr_decay)
        require(self.weight_decay >= 0, "weight_decay", "be >= 0", self.weight_decay)
        require(self.clip is None or self.clip > 0, "clip", "be > 0, or null for no clipping", self.clip)

    def rate(self, rnd: Round) -> float:
        """eta of this round, lr * lr_decay^t."""
        return self.lr * self.lr_decay**rnd.index

    def step(self, y: Tensor, direction: Tensor, lr: float) -> Tensor:
        """y [d] after a step against ``direction`` [d], the gradient with all the terms of the method."""
        if self.clip is not None:  # as torch.nn.utils.clip_grad_norm_
            direction = direction * (self.clip / (direction.norm() + 1e-6)).clamp(max=1.0)
        if self.weight_decay:
            direction = direction + self.weight_decay * y
        return y - lr * direction

    def descend(self, obj: Objective, y: Tensor, batch: Batch, lr: float) -> Tensor:
        """``step`` along the plain gradient, fused where it is nothing more."""
        if self.clip is None and not self.weight_decay:
            return obj.descend(y, batch, lr)
        return self.step(y, obj.grad(y, batch), lr)


def ascent(g: Tensor, rho: float, eps: float = 1e-7) -> Tensor:
    """SAM's ascent step rho g / (||g|| + eps) [d], the norm over all parameters jointly; eps as in FL-Simulator."""
    e: Tensor = rho * g / (g.norm() + eps)
    return e


def sam_grad(obj: Objective, y: Tensor, batch: Batch, rho: float) -> Tensor:
    """The gradient [d] at y + ascent(gradient at y), both on the same minibatch; the ascent is free of other terms."""
    return obj.grad(y + ascent(obj.grad(y, batch), rho), batch)
