"""Which dimension of a value that a model drops from is its examples', found by passes with different numbers of them.

Shapes of one pass do not say it: of [10, 10, 64] the first ten may be the steps of a sequence.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fedsim.errors import InputError
from fedsim.ground.masks import NOBODY
from fedsim.models.build import twin
from fedsim.models.dropout import Masks


def mask_dims(model: nn.Module, inputs: Tensor) -> tuple[int, ...]:
    """By place, the dimension of a mask that grows with the examples; ``NOBODY`` where none does.

    Args:
        model: in training mode; it is left as it is.
        inputs: [m, ...] whose shape counts, and their type.

    Raises:
        InputError: how often the model drops depends on the number of examples.
    """
    two, three = (_shapes(twin(model), inputs.new_zeros(m, *inputs.shape[1:])) for m in (2, 3))
    if len(two) != len(three):
        raise InputError(
            f"model {type(model).__name__} drops {len(two)} times for 2 examples and {len(three)} times for 3; the "
            "number must not depend on the minibatch, or masks would have no address"
        )
    return tuple(_grown(*pair) for pair in zip(two, three, strict=True))


def refuse_in_turn(model: nn.Module, two: Tensor) -> None:
    """Refuse a model that drops from rows which the examples own in turn, as [t * m, f] from [t, m, f].

    Args:
        model: in training mode; it is left as it is.
        two: [2, ...] inputs that differ.

    Raises:
        InputError: in one line, where.
    """
    values, alone = _values(twin(model), two), _values(twin(model), two[:1])
    for place, dim in enumerate(mask_dims(model, two)):
        value, one = values[place], alone[place]
        rows = one.shape[dim]
        if dim == NOBODY or rows == 1:
            continue
        after, turn = value.narrow(dim, 0, rows), value.transpose(0, dim)[::2].transpose(0, dim)
        if not _alike(after, one) and _alike(turn, one):
            raise InputError(
                f"model {type(model).__name__} drops from a value {list(value.shape)} whose dimension {dim} holds the "
                "examples in turn, step after step, so that masks would be of steps; drop before it is reshaped, or "
                "put the examples first"
            )


class _Undropped(Masks):
    """Drops nothing, and remembers the values that it was to drop from."""

    def __init__(self, keys: Tensor) -> None:
        super().__init__(keys)
        self.values: list[Tensor] = []

    def drop(self, x: Tensor, p: float, **how: Any) -> Tensor:
        """The value as it is."""
        if p > 0 and x.numel():
            self.values.append(x)
        return x


@torch.no_grad()
def _values(model: nn.Module, inputs: Tensor) -> list[Tensor]:
    with _Undropped(torch.zeros(len(inputs), dtype=torch.int64, device=inputs.device)) as masks:
        model(inputs)
    values: list[Tensor] = masks.values
    return values


def _alike(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-3, atol=1e-6)


@torch.no_grad()
def _shapes(model: nn.Module, inputs: Tensor) -> list[tuple[int, ...]]:
    with Masks(torch.zeros(len(inputs), dtype=torch.int64, device=inputs.device)) as masks:
        model(inputs)
    shapes: list[tuple[int, ...]] = masks.shapes
    return shapes


def _grown(two: tuple[int, ...], three: tuple[int, ...]) -> int:
    """The first dimension whose size is in proportion to the examples'."""
    if len(two) != len(three):
        return NOBODY
    return next((k for k, (p, q) in enumerate(zip(two, three, strict=True)) if p and 3 * p == 2 * q), NOBODY)
