"""Per-example losses and scores of each task, for any leading dimensions.

Outputs carry the examples' dimensions and then the model's output dimension; the loss of an example that is a sequence
is the mean over its positions.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from fedsim.data.dataset import Task

Loss = Callable[[Tensor, Tensor], Tensor]

Term = Callable[..., Tensor]
"""What a method adds to the loss: (outputs [..., m, k], features [..., m, f] or None, y [..., m], *extras) -> [..., m].

The extras are tensors of one client, with the same leading dimensions, which may be any."""


def cross_entropy(outputs: Tensor, y: Tensor) -> Tensor:
    """[..., k], [...] -> [...]; with k = 1 the output is the logit of class 1 (logistic loss)."""
    if outputs.shape[-1] == 1:
        return F.softplus(torch.where(y.bool(), -outputs[..., 0], outputs[..., 0]))
    flat = F.cross_entropy(outputs.flatten(0, -2), y.flatten(), reduction="none")
    return flat.view(y.shape)


def next_token(outputs: Tensor, y: Tensor) -> Tensor:
    """[..., t, k], [..., t] -> [...]: mean cross-entropy over the t positions."""
    return cross_entropy(outputs, y).mean(-1)


def squared_error(outputs: Tensor, y: Tensor) -> Tensor:
    """[..., 1], [...] -> [...]: (output - target)^2."""
    return (outputs[..., 0] - y).square()


def guess(outputs: Tensor) -> Tensor:
    """[..., k] -> [...]: the class with the largest output (k = 1: the sign of the logit of class 1)."""
    return (outputs[..., 0] > 0).long() if outputs.shape[-1] == 1 else outputs.argmax(-1)


def accuracy(outputs: Tensor, y: Tensor) -> Tensor:
    """[..., k], [...] -> [...]: 1 where the guess is the class."""
    return (guess(outputs) == y).to(outputs.dtype)


def loss_of(task: Task, rows_per_client: int = 1) -> Loss:
    """The per-example loss of a task.

    Args:
        task: see ``fedsim.data.dataset.Task``.
        rows_per_client: m of ``least_squares``, where one row's loss is m/2 (a.x - b)^2, so that the mean over a
            client's m rows is f_i(x) = 1/2 ||A_i x - b_i||^2.
    """
    if task == "classification":
        return cross_entropy
    if task == "next_token":
        return next_token
    if task == "regression":
        return squared_error
    return lambda outputs, y: (rows_per_client / 2) * squared_error(outputs, y)


def score_of(task: Task) -> Loss | None:
    """Per-example accuracy of a task, or None where accuracy has no meaning."""
    if task == "classification":
        return accuracy
    if task == "next_token":
        return lambda outputs, y: accuracy(outputs, y).mean(-1)
    return None
