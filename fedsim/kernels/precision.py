"""Models that compute in bfloat16 while their parameters, losses and messages stay float32."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from fedsim.ground.tree import tree_map


def lowered(device: torch.device, lower: torch.dtype | None) -> AbstractContextManager[Any]:
    """A block in which products and convolutions are taken in a lower dtype; None changes nothing."""
    return nullcontext() if lower is None else torch.autocast(device.type, lower)


def raised(value: Tensor, lower: torch.dtype | None) -> Tensor:
    """A tensor of the lower dtype as float32, others as they are."""
    return value.float() if value.dtype == lower else value


def written_out(function: Any, *args: Any, lower: bool = True) -> Any:
    """A function whose backward pass is written out, and knows no casts: inside ``lowered`` on numbers of one dtype.

    Args:
        function: an ``autograd.Function``.
        args: its arguments, a tensor first.
        lower: whether it computes in the lower dtype, else in float32.
    """
    device = args[0].device.type
    if not torch.is_autocast_enabled(device):
        return function.apply(*args)
    dtype = torch.get_autocast_dtype(device) if lower else torch.float32
    alike = (a.to(dtype) if isinstance(a, Tensor) and a.is_floating_point() else a for a in args)
    with torch.autocast(device, enabled=False):
        return function.apply(*alike)


def in_lower(run: Callable[..., Any], device: torch.device, lower: torch.dtype) -> Callable[..., Any]:
    """A forward that computes in the lower dtype; what it gives is float32."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        with lowered(device, lower):
            found = run(*args, **kwargs)
        return tree_map(lambda t: raised(t, lower), found)

    return forward
