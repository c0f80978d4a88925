"""Linear models and multilayer perceptrons; inputs of any shape are flattened."""

from __future__ import annotations

from itertools import pairwise
from math import prod
from typing import Literal

from torch import nn

from fedsim.errors import require
from fedsim.models.body_head import ACTIVATIONS, BodyHead, require_size


def linear(input_shape: tuple[int, ...], outputs: int, single_logit: bool = True) -> BodyHead:
    """Softmax, logistic or linear regression with a bias.

    >>> sum(p.numel() for p in linear((1, 8, 8), 10).parameters())
    650

    Args:
        input_shape: shape of one sample; flattened.
        outputs: classes, or 1 for regression.
        single_logit: with two classes, use one output, the logit of class 1 (logistic regression), instead of two.
    """
    k = 1 if outputs == 2 and single_logit else outputs
    return BodyHead(nn.Flatten(), nn.Linear(prod(input_shape), k))


def linear_zero(input_shape: tuple[int, ...], outputs: int) -> BodyHead:
    """One linear output without bias, started at zero: the model of least-squares and quadratic problems.

    >>> linear_zero((4,), 1).head.weight.tolist()
    [[0.0, 0.0, 0.0, 0.0]]

    Args:
        input_shape: shape of one sample; flattened.
        outputs: must be 1.
    """
    require(outputs == 1, "outputs", "be 1 for model=linear_zero", outputs, "use model=linear for classification")
    head = nn.Linear(prod(input_shape), 1, bias=False)
    nn.init.zeros_(head.weight)
    return BodyHead(nn.Flatten(), head)


def mlp(
    input_shape: tuple[int, ...],
    outputs: int,
    hidden: tuple[int, ...] = (200,),
    activation: Literal["relu", "gelu", "tanh", "sigmoid", "silu", "softplus"] = "relu",
) -> BodyHead:
    """A multilayer perceptron.

    >>> import torch
    >>> model = mlp((1, 8, 8), 10, hidden=(64, 32), activation="tanh")
    >>> model(torch.zeros(5, 1, 8, 8)).shape
    torch.Size([5, 10])

    Args:
        input_shape: shape of one sample; flattened.
        outputs: outputs of the head.
        hidden: width of each hidden layer, at least one.
        activation: after each hidden layer.
    """
    hidden = tuple(hidden)
    require(len(hidden) > 0 and min(hidden) >= 1, "hidden", "be one or more widths >= 1", hidden, "use model=linear")
    require(activation in ACTIVATIONS, "activation", f"be one of {', '.join(ACTIVATIONS)}", activation)
    widths = (prod(input_shape), *hidden, outputs)
    require_size("hidden", hidden, sum(a * b for a, b in pairwise(widths)))
    body: list[nn.Module] = [nn.Flatten()]
    for n_in, n_out in pairwise((prod(input_shape), *hidden)):
        body += [nn.Linear(n_in, n_out), ACTIVATIONS[activation]()]
    return BodyHead(nn.Sequential(*body), nn.Linear(hidden[-1], outputs))
