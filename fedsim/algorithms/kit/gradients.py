"""The gradient of a client's risk at one point, where a method takes it there instead of stepping on minibatches."""

from __future__ import annotations

import torch
from torch import Tensor

from fedsim.objective import Objective
from fedsim.types import Batch


def mean_gradient(obj: Objective, x: Tensor) -> Tensor:
    """The mean [d] over the client's K minibatches of the round of their gradients at x [d]."""

    def add(total: Tensor, batch: Batch) -> Tensor:
        return total + obj.grad(x, batch)

    return obj.run(add, torch.zeros_like(x)) / obj.steps


def full_gradient(obj: Objective, x: Tensor) -> Tensor:
    """The mean [d] over all the client's examples of their gradients at x [d]."""

    def add(total: Tensor, batch: Batch) -> Tensor:
        real = batch.y.shape[0] if batch.mask is None else batch.mask.sum()
        return total + real * obj.grad(x, batch)

    return obj.sweep(add, torch.zeros_like(x)) / obj.examples
