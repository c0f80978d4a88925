"""Flat vector [q] <-> the buffers of a model that its forward writes in training mode: running statistics, say.

They are numbers that somebody owns, as x [d] is: a client keeps them in the store, or the server averages them. Whole
numbers, such as counts of minibatches, are in the vector as numbers of its dtype.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedsim.errors import InputError


@dataclass(frozen=True)
class Buffers:
    """Where each written buffer of a model lies in the flat vector [q].

    Attributes:
        names: of the buffers, in ``model.named_buffers()`` order.
        shapes: their shapes.
        dtypes: their dtypes.
    """

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]
    dtypes: tuple[torch.dtype, ...]

    @staticmethod
    def of(model: nn.Module, names: Sequence[str]) -> Buffers:
        """The layout of these buffers of a model."""
        mine = {name: b for name, b in model.named_buffers() if name in names}
        return Buffers(tuple(mine), tuple(b.shape for b in mine.values()), tuple(b.dtype for b in mine.values()))

    @property
    def sizes(self) -> list[int]:
        """Number of entries of each buffer."""
        return [shape.numel() for shape in self.shapes]

    @property
    def whole(self) -> Tensor:
        """[q] bool, which entries are whole numbers."""
        return torch.tensor([not dtype.is_floating_point for dtype in self.dtypes]).repeat_interleave(
            torch.tensor(self.sizes)
        )

    def flatten(self, model: nn.Module, dtype: torch.dtype) -> Tensor:
        """The model's current buffers as a new vector [q].

        Raises:
            InputError: one has another shape than it had, or is a whole number that the vector's dtype has not.
        """
        parts = []
        for name, shape in zip(self.names, self.shapes, strict=True):
            value = model.get_buffer(name).detach()
            if value.shape != shape:
                raise InputError(f"model's buffer {name} must keep its shape {list(shape)}, got {list(value.shape)}")
            flat = value.reshape(-1).to(dtype)
            if not value.is_floating_point() and not torch.equal(flat.to(value.dtype), value.reshape(-1)):
                raise InputError(
                    f"model's buffer {name}, which forward writes, must hold whole numbers that "
                    f"{str(dtype).removeprefix('torch.')} has, got {value.max()}"
                )
            parts.append(flat)
        return torch.cat(parts)

    def load(self, model: nn.Module, values: Tensor) -> None:
        """Give the model buffers of these values [q], in memory of their own."""
        pieces = torch.split(values.detach(), self.sizes)
        for name, shape, dtype, piece in zip(self.names, self.shapes, self.dtypes, pieces, strict=True):
            path, _, last = name.rpartition(".")
            fresh = (piece if dtype.is_floating_point else piece.round()).to(dtype, copy=True).view(shape)
            buffer = model.get_buffer(name)
            if buffer.requires_grad:  # forward made it of parameters: what follows shall not reach back to them
                setattr(model.get_submodule(path), last, fresh)
            else:
                buffer.data = fresh
