"""What clients say of their classes: means of features or outputs by class."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fedsim.types import Batch, Owned


def class_means(
    sweep: Callable[..., tuple[Tensor, Tensor]], of: Callable[[Batch], Tensor], classes: int, width: int, like: Tensor
) -> Owned:
    """The plain mean over a client's own examples, by class.

    Args:
        sweep: ``obj.sweep``, which passes over all the client's examples once.
        of: minibatch -> [m, width], what to average.
        classes: C.
        width: of what is averaged.
        like: gives dtype and device.

    Returns:
        Values [C, width] and mask [C]: the classes of which the client has examples.
    """
    numbers = torch.arange(classes, device=like.device)

    def add(sums: tuple[Tensor, Tensor], batch: Batch) -> tuple[Tensor, Tensor]:
        members = (batch.y[:, None] == numbers).to(like.dtype)  # [m, C] one-hot rows, without indexing by data
        if batch.mask is not None:
            members = members * batch.mask[:, None]
        return sums[0] + members.t() @ of(batch), sums[1] + members.sum(0)

    zeros = torch.zeros(classes, width, dtype=like.dtype, device=like.device)
    sums, counts = sweep(add, (zeros, zeros[:, 0]))
    # rows of classes that the client does not have are 0 / 1, and the mask says that nobody shall read them
    return Owned(sums / counts.clamp(min=1)[:, None], counts > 0)


def at_class(rows: Tensor, y: Tensor) -> Tensor:
    """Row y of each example: [..., C, f], [..., m] -> [..., m, f]."""
    return torch.take_along_dim(rows, y[..., None], dim=-2)


def of_class(values: Tensor, y: Tensor) -> Tensor:
    """Value y of each example: [..., C], [..., m] -> [..., m]."""
    return torch.take_along_dim(values, y, dim=-1)
