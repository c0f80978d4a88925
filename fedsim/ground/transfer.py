"""Tensors to a device and back: small ones together in one copy, for each copy has a price of its own.

Copies to a GPU come from pinned memory, and nobody waits for them; copies back are waited for. On the CPU nothing
moves.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

SMALL = 2**24
"""Bytes up to which a tensor travels with others."""

PLACE = 64
"""Bytes: where tensors that travel together begin, as torch's own memory does."""


def sent(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Tensors of the CPU, on a device; there they are copies."""
    if device.type == "cpu":
        return list(tensors)
    small = [t for t in tensors if t.nbytes <= SMALL]
    places, end = _places(small)
    host = torch.empty(end, dtype=torch.uint8, pin_memory=True)
    for tensor, at in zip(small, places, strict=True):
        _part(host, at, tensor).copy_(tensor)
    there = host.to(device, non_blocking=True)
    moved = iter([_part(there, at, tensor) for tensor, at in zip(small, places, strict=True)])
    return [next(moved) if t.nbytes <= SMALL else t.to(device) for t in tensors]


def fetched(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Tensors of any device, on the CPU."""
    away = {k: t.detach() for k, t in enumerate(tensors) if t.device.type != "cpu" and t.nbytes <= SMALL}
    if not away:
        return [t.detach().cpu() for t in tensors]
    order = sorted(away, key=lambda k: -away[k].element_size())  # so that each begins where it can
    host = torch.cat([away[k].contiguous().view(-1).view(torch.uint8) for k in order]).cpu()
    ends = accumulate(away[k].nbytes for k in order)
    back = {k: _part(host, end - away[k].nbytes, away[k]).clone() for k, end in zip(order, ends, strict=True)}
    return [back[k] if k in back else t.detach().cpu() for k, t in enumerate(tensors)]


def _places(tensors: Sequence[Tensor]) -> tuple[list[int], int]:
    """Where each begins in memory that holds all of them, and how large that is."""
    places, end = [], 0
    for tensor in tensors:
        places.append(end)
        end += -(-tensor.nbytes // PLACE) * PLACE
    return places, end


def _part(memory: Tensor, at: int, like: Tensor) -> Tensor:
    """A piece of memory as a tensor of this shape and dtype."""
    return memory[at : at + like.nbytes].view(like.dtype).view(like.shape)
