"""Rounding: to integers at random, without bias, and to 16-bit numbers."""

from __future__ import annotations

import torch
from torch import Tensor


def round_at_random(v: Tensor, u: Tensor, bound: int) -> Tensor:
    """v [d] to one of its two neighbouring integers, of mean v, for u [d] uniform on [0, 1).

    The result is in [-bound, bound] and keeps v's dtype; what is not finite becomes 0 or the bound.
    """
    low = v.floor()
    return (low + (u < v - low)).nan_to_num(nan=0.0).clamp(-bound, bound)


def saturated(v: Tensor, dtype: torch.dtype) -> Tensor:
    """v [d] to nearest in a narrower format of floating point.

    Finite values beyond its largest finite one become that one; NaN and infinities stay what they are.
    """
    top = torch.finfo(dtype).max
    return torch.where(v.isfinite(), v.clamp(-top, top), v).to(dtype)
