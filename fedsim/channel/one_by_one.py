"""Code that needs one client's real values (their order, a matrix factorisation), under vmap too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fedsim.ground.layout import aligned
from fedsim.ground.opaque import opaque


def one_by_one(alone: Callable[..., Tensor], *arguments: Any, at_once: Callable[..., Tensor] | None = None) -> Tensor:
    """Call ``alone(*arguments)``; inside vmap for each client in turn, with the bits that one client alone has.

    On a GPU, where a turn each would take the time of many, all of them ``at_once``.

    Under vmap there is one value for all clients and no real number to look at; and batched factorisations may round
    otherwise than single ones, so that a client's message would depend on the size of its block.

    Args:
        alone: takes one client's tensors, may look at their values, returns a tensor of a shape known beforehand.
        arguments: tensors, and whatever else ``alone`` needs.
        at_once: the same for b clients' tensors [b, ...], without a look at their values.
    """
    on_gpu = any(isinstance(a, Tensor) and a.device.type != "cpu" for a in arguments)
    if on_gpu and at_once is not None:
        many = at_once

        def of_one(*own: Any) -> Tensor:
            return many(*(a[None] if isinstance(a, Tensor) else a for a in own))[0]

        found: Tensor = opaque(of_one, many, *arguments)
        return found

    def one(*own: Any) -> Tensor:
        return alone(*(aligned(a) if isinstance(a, Tensor) else a for a in own))

    def together(*stacked: Any) -> Tensor:
        b = next(len(a) for a in stacked if isinstance(a, Tensor))
        return torch.stack([one(*(a[i] if isinstance(a, Tensor) else a for a in stacked)) for i in range(b)])

    out: Tensor = opaque(one, together, *arguments)
    return out
