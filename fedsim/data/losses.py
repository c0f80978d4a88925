"""Per-example losses for any leading dimensions, and the tasks that they are part of.

Outputs carry the examples' dimensions and then the model's output dimension; the loss of an example that is a sequence
is the mean over its positions, that of an example with several targets the mean over these.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fedsim.errors import InputError
from fedsim.fields import check_fields

Loss = Callable[[Tensor, Tensor], Tensor]

Term = Callable[..., Tensor]
"""What a method adds to the loss: (outputs [..., m, k], features [..., m, f] or None, y [..., m], *extras) -> [..., m].

The extras are tensors of one client, with the same leading dimensions, which may be any."""

Outputs = Literal["classes", "labels", "numbers", "tokens"]
"""What a model's outputs are of: one class, any of k labels, one or several numbers, the class of every position."""


def cross_entropy(outputs: Tensor, y: Tensor) -> Tensor:
    """[..., k], [...] -> [...]; with k = 1 the output is the logit of class 1 (logistic loss)."""
    if outputs.shape[-1] == 1:
        return F.softplus(torch.where(y.bool(), -outputs[..., 0], outputs[..., 0]))
    flat = F.cross_entropy(outputs.flatten(0, -2), y.flatten(), reduction="none")
    return flat.view(y.shape)


def next_token(outputs: Tensor, y: Tensor) -> Tensor:
    """[..., t, k], [..., t] -> [...]: mean cross-entropy over the t positions."""
    return cross_entropy(outputs, y).mean(-1)


def logistic(outputs: Tensor, y: Tensor) -> Tensor:
    """[..., k], [..., k] of 0 and 1 -> [...]: mean logistic loss over the k labels."""
    return F.softplus(torch.where(y.bool(), -outputs, outputs)).mean(-1)


def squared_error(outputs: Tensor, y: Tensor) -> Tensor:
    """[..., 1], [...] -> [...]: (output - target)^2; [..., k], [..., k] -> [...]: its mean over k targets."""
    if outputs.dim() == y.dim():
        return (outputs - y).square().mean(-1)
    return (outputs[..., 0] - y).square()


def half_squared_error(outputs: Tensor, y: Tensor) -> Tensor:
    """[..., 1], [...] -> [...]: 1/2 (output - target)^2."""
    return 0.5 * squared_error(outputs, y)


def guess(outputs: Tensor) -> Tensor:
    """[..., k] -> [...]: the class with the largest output (k = 1: the sign of the logit of class 1)."""
    return (outputs[..., 0] > 0).long() if outputs.shape[-1] == 1 else outputs.argmax(-1)


@dataclass(frozen=True)
class Task:
    """What a model is trained for: how outputs and targets make a loss, and what is measured of them.

    >>> def focal(outputs, y):
    ...     p = outputs.log_softmax(-1).gather(-1, y[..., None])[..., 0]
    ...     return -((1 - p.exp()) ** 2) * p
    >>> str(Task(focal, metrics=("accuracy", "macro_f1")))
    'focal'

    Attributes:
        loss: (outputs [..., k], y [...]) -> [...], the loss of each example on its own, for any leading dimensions; it
            is tried before a run starts. With ``labels`` and several ``numbers`` y is [..., k], with ``tokens`` outputs
            are [..., t, k] and y [..., t].
        metrics: names of ``fedsim.data.metrics.METRICS``, dotted paths, or objects of ``fedsim.data.metrics.Metric``;
            None: accuracy, or the mean squared error of ``numbers``. ``evaluate.metrics`` goes before them.
        outputs: what the model's outputs are of. ``classes``: y holds the class of each sample; only then can samples
            be divided by class, and only then is there a confusion matrix. ``labels``: k truth values. ``numbers``: one
            floating-point target, or k. ``tokens``: a class at each of t positions.
        name: for messages; "": that of the loss.
        summed: a client's loss is the sum over its examples, not their mean.
    """

    loss: Loss
    metrics: tuple[str | Callable[..., object], ...] | None = None
    outputs: Outputs = "classes"
    name: str = ""
    summed: bool = False

    def __post_init__(self) -> None:
        check_fields(self)

    def __str__(self) -> str:
        return self.name or getattr(self.loss, "__name__", type(self.loss).__name__)

    @property
    def classes(self) -> bool:
        """Whether every sample has a class: samples can be divided by class, and guesses make a confusion matrix."""
        return self.outputs == "classes"

    @property
    def whole(self) -> bool:
        """Whether targets are whole numbers; the others are floating-point numbers."""
        return self.outputs != "numbers"

    @property
    def least_squares(self) -> bool:
        """Whether a client's loss is 1/2 ||A x - b||^2 for a linear model: how curved it is can be computed."""
        return self.summed and self.loss is half_squared_error

    def wide(self, y: Tensor) -> bool:
        """Whether targets [n, ...] have one entry for each output, rather than one for all outputs."""
        return self.outputs == "labels" or (self.outputs == "numbers" and y.dim() > 1)


TASKS = {
    "classification": Task(cross_entropy, ("accuracy",), "classes", "classification"),
    "multilabel": Task(logistic, ("accuracy",), "labels", "multilabel"),
    "regression": Task(squared_error, ("mse",), "numbers", "regression"),
    "next_token": Task(next_token, ("accuracy",), "tokens", "next_token"),
    "least_squares": Task(half_squared_error, (), "numbers", "least_squares", summed=True),
}
"""The tasks that a data set names by a word."""


def task_of(task: str | Task) -> Task:
    """The task that a word names, or the task itself; raises InputError for another word."""
    if isinstance(task, Task):
        return task
    if task not in TASKS:
        raise InputError(f"task must be one of {', '.join(TASKS)} or a fedsim.data.Task, got {task!r}")
    return TASKS[task]


def loss_of(task: str | Task, rows_per_client: int = 1) -> Loss:
    """The per-example loss of a task.

    Args:
        task: a task, or its word.
        rows_per_client: m of the largest client, for a task whose losses are summed. The loss of a row is then m times
            as large, so that the mean over a client's m rows is their sum: 1/2 ||A_i x - b_i||^2 of ``least_squares``.
    """
    goal = task_of(task)
    if not goal.summed:
        return goal.loss
    return lambda outputs, y: rows_per_client * goal.loss(outputs, y)
