"""Unbiased rounding to integers."""

from __future__ import annotations

from torch import Tensor


def round_at_random(v: Tensor, u: Tensor, bound: int) -> Tensor:
    """v [d] to one of its two neighbouring integers, of mean v, for u [d] uniform on [0, 1).

    The result is in [-bound, bound] and keeps v's dtype; what is not finite becomes 0 or the bound.
    """
    low = v.floor()
    return (low + (u < v - low)).nan_to_num(nan=0.0).clamp(-bound, bound)
