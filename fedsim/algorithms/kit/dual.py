"""What dual methods share: the gradient of the conjugate of a peer's loss, exactly, for quadratic losses."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedsim.algorithms.kit.gradients import full_gradient
from fedsim.algorithms.kit.strongly_convex import StronglyConvex
from fedsim.errors import require
from fedsim.objective import Objective


@dataclass(frozen=True)
class Dual(StronglyConvex):
    """The hyper-parameters; dual algorithms, which know a loss by the gradient of its conjugate, inherit them."""

    def bounds(self, mu: float | None, smooth: float | None) -> tuple[float, float]:
        """As of its parent; besides, the losses must be known to be quadratic.

        Raises:
            InputError: they are not.
        """
        must = f"be least squares with a linear model without bias for {type(self).__name__}, a dual method"
        do = "use data=quadratic, or algorithm=dadao, adom_plus for other losses"
        require(mu is not None, "data", must, "another loss", do)
        return super().bounds(mu, smooth)

    def primal(self, obj: Objective, x: Tensor, y: Tensor) -> Tensor:
        """grad f*(y) [d], the point where the gradient of f is y [d], f being quadratic and with its weight decay.

        One Newton step from x [d], any point; the Hessian [d, d] is d differences of gradients over all of the
        client's samples.
        """
        g = full_gradient(obj, x)
        one = torch.eye(len(x), dtype=x.dtype, device=x.device)
        columns = torch.func.vmap(lambda e: full_gradient(obj, x + e) - g, chunk_size=64)(one)
        step: Tensor = torch.linalg.solve(columns.T + self.weight_decay * one, g + self.weight_decay * x - y)
        return x - step
