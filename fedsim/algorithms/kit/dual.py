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
        """mu and L as given, else what is known of the losses without weight decay, with it.

        Args:
            mu: least strong convexity of a client's loss; None says that the losses are not known to be quadratic.
            smooth: largest smoothness constant of a client's loss.

        Raises:
            InputError: the losses are not known to be quadratic, or not strongly convex.
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
        # the gradient of a quadratic is affine, so its difference over a unit vector is a column of the Hessian
        one = torch.eye(len(x), dtype=x.dtype, device=x.device)
        columns = torch.func.vmap(lambda e: full_gradient(obj, x + e) - g, chunk_size=64)(one)
        # solve (H + weight decay) step = grad f(x) + weight decay x - y: where the gradient of f equals y
        step: Tensor = torch.linalg.solve(columns.T + self.weight_decay * one, g + self.weight_decay * x - y)
        return x - step
