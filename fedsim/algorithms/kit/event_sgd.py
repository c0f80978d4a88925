"""What SGD in virtual time shares: one gradient at each event of a peer, with momentum and weight decay."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fedsim.algorithms.kit.gradients import mean_gradient
from fedsim.algorithms.kit.roles import ModelPeer
from fedsim.errors import require
from fedsim.fields import check_fields
from fedsim.objective import Objective


@dataclass(frozen=True)
class EventSGD(ModelPeer):
    """The hyper-parameters; algorithms inherit them.

    Attributes:
        lr: learning rate gamma, > 0.
        momentum: m of v <- m v + gradient, x <- x - lr v, in [0, 1); v stays with the peer.
        weight_decay: weight of 1/2 ||x||^2, >= 0.
    """

    lr: float
    momentum: float = 0.0
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self)
        require(self.lr > 0, "lr", "be > 0", self.lr)
        require(0 <= self.momentum < 1, "momentum", "be in [0, 1)", self.momentum)
        require(self.weight_decay >= 0, "weight_decay", "be >= 0", self.weight_decay)

    def push(self, obj: Objective, x: Tensor, v: Tensor) -> Tensor:
        """The new v [d]: the mean gradient at x [d] of the event's minibatches, with weight decay, on top of m v."""
        return self.momentum * v + mean_gradient(obj, x) + self.weight_decay * x
