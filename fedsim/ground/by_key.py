"""Random numbers of many clients at once, computed where they are needed: for GPUs, on which nothing is drawn in turn.

Each client's are a function of its key (``ground.rng.key`` of the address), whoever shares its block; bits come from
``ground.masks``. They are other numbers than those that a CPU draws at the same address.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fedsim.ground.masks import bits, counter, words


def uniform(keys: Tensor, shape: Sequence[int]) -> Tensor:
    """Uniform on [0, 1), multiples of 2^-24, float32: [b, *shape] by keys [b]."""
    drawn = _bits(keys, 0, math.prod(shape))
    return ((drawn >> 8) & (2**24 - 1)).float().mul_(2.0**-24).view(len(keys), *shape)


def normal(keys: Tensor, shape: Sequence[int]) -> Tensor:
    """Standard normal, float32: [b, *shape] by keys [b]; Box and Muller's two of two uniform ones."""
    n = math.prod(shape)
    half = -(-n // 2)
    # 31 bits, of which small ones are exact in float32: radii reach 6.6.
    chance = (_bits(keys, 0, half) & (2**31 - 1)).float().add_(0.5).mul_(2.0**-31)
    radius = chance.log_().mul_(-2).sqrt_()
    angle = _bits(keys, 1, half).float().mul_(math.pi * 2.0**-31)
    return torch.cat([radius * angle.cos(), radius * angle.sin()], 1)[:, :n].reshape(len(keys), *shape)


def subset(keys: Tensor, k: int, d: int) -> Tensor:
    """k of d positions without replacement, ascending: [b, k] int64 by keys [b]."""
    order = (_bits(keys, 0, d).long() << 32) | (_bits(keys, 1, d).long() & (2**32 - 1))
    return order.topk(k, dim=1, largest=False, sorted=False).indices.sort(1).values


def _bits(keys: Tensor, place: int, n: int) -> Tensor:
    """int32 random bits [b, n]."""
    first, second = words(keys, place)
    return bits(first[:, None], second[:, None], counter(n, keys.device))
