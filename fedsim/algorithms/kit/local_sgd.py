"""The local SGD that the algorithms share: learning rate per round, clipping, weight decay, momentum, SAM's ascent.

The order is FL-Simulator's (github woodenchild95/FL-Simulator, client/client.py, the code of the FedSpeed and FedSMOO
papers): the gradient with all the terms of the method, its total norm clipped, then weight decay, which is not clipped;
momentum comes last, as in torch.optim.SGD.
Sharpness-aware minimisation: Foret, Kleiner, Mobahi, Neyshabur, "Sharpness-Aware Minimization for Efficiently Improving
Generalization", ICLR 2021, arXiv 2010.01412, the algorithm box of SAM.

Deviation: FL-Simulator writes the term +x/lambda of FedProx, FedDyn, FedSpeed and FedSMOO as weight decay and so clips
-x/lambda without it; here a method's terms are clipped as one vector.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fedsim.errors import require
from fedsim.fields import check_fields
from fedsim.objective import Objective
from fedsim.traits.declared import Declared
from fedsim.types import Batch, Round


@dataclass(frozen=True)
class LocalSGD(Declared):
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
        check_fields(self)
        require(self.lr > 0, "lr", "be > 0", self.lr)
        require(0 < self.lr_decay <= 1, "lr_decay", "be in (0, 1]", self.lr_decay)
        require(self.weight_decay >= 0, "weight_decay", "be >= 0", self.weight_decay)
        require(self.clip is None or self.clip > 0, "clip", "be > 0, or null for no clipping", self.clip)

    def rate(self, rnd: Round) -> float:
        """eta of this round, lr * lr_decay^t."""
        return self.lr if self.lr_decay == 1 else self.lr * self.lr_decay**rnd.index

    def bounded(self, y: Tensor, direction: Tensor) -> Tensor:
        """``direction`` [d], the gradient with all the method's terms, clipped, then with weight decay at y [d]."""
        if self.clip is not None:  # as torch.nn.utils.clip_grad_norm_
            direction = direction * (self.clip / (direction.norm() + 1e-6)).clamp(max=1.0)
        if self.weight_decay:
            direction = direction + self.weight_decay * y
        return direction

    def step(self, y: Tensor, direction: Tensor, lr: float) -> Tensor:
        """y [d] after a step against ``direction`` [d], clipped and with weight decay."""
        return y - lr * self.bounded(y, direction)

    def descend(self, obj: Objective, y: Tensor, batch: Batch, lr: float) -> Tensor:
        """``step`` along the plain gradient, fused where it is nothing more."""
        if self.clip is None and not self.weight_decay:  # x - lr g is written once, without g in between
            return obj.descend(y, batch, lr)
        return self.step(y, obj.grad(y, batch), lr)


class _Moving(NamedTuple):
    """What momentum carries from local step to local step."""

    y: Tensor  # [p] where the client is
    v: Tensor  # [p] momentum buffer


@dataclass(frozen=True)
class MomentumSGD(LocalSGD):
    """Local SGD with heavy-ball momentum, for the methods whose local solver may be any; the loop itself is ``solve``.

    Attributes:
        momentum: m of v <- m v + direction, y <- y - lr v, in [0, 1); the buffer is zero at the start of every round.
    """

    momentum: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.momentum < 1, "momentum", "be in [0, 1)", self.momentum)

    def solve(
        self, obj: Objective, start: Tensor, lr: float, direction: Callable[[Tensor, Batch], Tensor] | None = None
    ) -> Tensor:
        """Where the client's K local steps lead, [p].

        Args:
            obj: the client's risk and minibatches.
            start: [p] the first iterate: a whole model, or the part of one that ``direction`` understands.
            lr: learning rate of this round.
            direction: (y [p], minibatch) -> [p], what the step goes against before clipping and weight decay; None:
                the plain gradient.
        """
        if not self.momentum:  # no buffer to carry, and the plain step may be fused
            if direction is None:
                return obj.run(lambda y, batch: self.descend(obj, y, batch, lr), start)
            return obj.run(lambda y, batch: self.step(y, direction(y, batch), lr), start)
        along = direction or obj.grad

        def step(now: _Moving, batch: Batch) -> _Moving:
            # as in torch.optim.SGD: clipping and weight decay before the buffer, the learning rate after it
            v = self.momentum * now.v + self.bounded(now.y, along(now.y, batch))
            return _Moving(now.y - lr * v, v)

        return obj.run(step, _Moving(start, torch.zeros_like(start))).y


def ascent(g: Tensor, rho: float, eps: float = 1e-7) -> Tensor:
    """SAM's ascent step rho g / (||g|| + eps) [d], the norm over all parameters jointly; eps as in FL-Simulator."""
    e: Tensor = rho * g / (g.norm() + eps)
    return e


def sam_grad(obj: Objective, y: Tensor, batch: Batch, rho: float, eps: float = 1e-7) -> Tensor:
    """The gradient [d] at y + ascent(gradient at y), both on the same minibatch; the ascent is free of other terms."""
    return obj.grad(y + ascent(obj.grad(y, batch), rho, eps), batch)
