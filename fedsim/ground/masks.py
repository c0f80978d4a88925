"""Random bits for dropout: a function of (key of an example, place in the model, index in the example's activation).

Nothing is drawn: bits are computed, on whole blocks, by integer operations that wrap. Keys are 64-bit, derived from an
address by the finalizer of SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA
2014; constants of Stafford's variant 13). The bits of number i are ``P(P(i) ^ k1) ^ k2``: a scrambled counter, which
all examples share, in the cipher of Even and Mansour (J. Cryptology 1997) on words of 32 bits. Its permutation P is
Wellons' ``lowbias32`` (github skeeto/hash-prospector, public domain), its keys are the halves of the place's.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import prod

import torch
from torch import Tensor

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15; all constants as the signed numbers that torch computes with
_STAFFORD = (-4658895280553007687, -7723592293110705685)  # 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
NOBODY = -1
"""In place of the examples' dimension of a value that has none, such as a weight."""
_WELLONS = (0x7FEB352D, 0x846CA68B - 2**32)


def derived(key: Tensor, n: Tensor | int) -> Tensor:
    """The n-th key below a key, n = -1, 0, 1, ...; both int64, of shapes that broadcast."""
    z = key + ((n + 1) * _GOLDEN if isinstance(n, Tensor) else ((n + 1) * _GOLDEN + 2**63) % 2**64 - 2**63)
    z = (z ^ ((z >> 30) & (2**34 - 1))) * _STAFFORD[0]  # a right shift repeats the sign, which the mask takes out
    z = (z ^ ((z >> 27) & (2**37 - 1))) * _STAFFORD[1]
    return z ^ ((z >> 31) & (2**33 - 1))


def words(keys: Tensor, place: int) -> tuple[Tensor, Tensor]:
    """The key of each example at a place of the model, as two int32 words."""
    mine = derived(keys, place)
    return mine.to(torch.int32), (mine >> 32).to(torch.int32)


def bits(first: Tensor, second: Tensor, counter: Tensor) -> Tensor:
    """int32 random bits of the numbers with this scrambled ``counter``, under a key of two words; shapes broadcast."""
    return _permuted(counter ^ first).bitwise_xor_(second)


@lru_cache(64)
def counter(count: int, device: torch.device) -> Tensor:
    """The scrambled numbers 0 to ``count`` - 1, int32; not to be written into."""
    return _permuted(torch.arange(count, dtype=torch.int32, device=device))


def _permuted(x: Tensor) -> Tensor:
    """``lowbias32``, in place."""
    for shift, factor in ((16, _WELLONS[0]), (15, _WELLONS[1])):
        x.bitwise_xor_((x >> shift).bitwise_and_(2 ** (32 - shift) - 1)).mul_(factor)
    return x.bitwise_xor_((x >> 16).bitwise_and_(0xFFFF))


def bits_of(keys: Tensor, place: int, shape: Sequence[int], dim: int = 0) -> Tensor:
    """Bits of a value [*shape], of which each example has its own: int32 [*lead, *shape] by keys [*lead, m].

    Examples are this dimension, which may hold several rows of each, one example after the other. Where ``dim`` is
    ``NOBODY``, or the dimension cannot be theirs, the value (a weight) is the first example's.
    """
    *lead, m = keys.shape
    first, second = words(keys, place)
    if dim == NOBODY or dim >= len(shape) or shape[dim] % m:
        m, dim, own, first, second = 1, 0, (1, *shape), first[..., :1], second[..., :1]
    else:
        own = (*shape[:dim], 1, shape[dim] // m, *shape[dim + 1 :])
    mine = (*lead, *(1,) * dim, m, *(1,) * (len(own) - dim - 1))
    drawn = bits(first.reshape(mine), second.reshape(mine), counter(prod(own), keys.device).view(own))
    return drawn.reshape(*lead, *shape)


def kept(drawn: Tensor, p: float, dtype: torch.dtype) -> Tensor:
    """1 with probability 1 - p and else 0, by random bits; resolved to 2^-32."""
    first = min(max(round(p * 2**32) - 2**31, 1 - 2**31), 2**31 - 1)  # of those that are kept
    # Not by a comparison: truth values take twice the time, and become numbers once more.
    return drawn.clamp(first - 1, first).sub_(first - 1).to(dtype)


ALPHA = 1.7580993408473766
"""SELU's lambda times its alpha; minus this is what alpha dropout puts in place of what it drops."""


def dropped(x: Tensor, keep: Tensor, p: float, *, alpha: bool = False, inplace: bool = False) -> Tensor:
    """What torch's dropout gives for a mask ``keep`` of 1 and 0, which is overwritten; it broadcasts with x."""
    if not alpha or p >= 1:
        factor = keep.mul_(1 / (1 - p)) if p < 1 else keep.zero_()
        return x.mul_(factor) if inplace else x * factor
    a = ((ALPHA**2 * p + 1) * (1 - p)) ** -0.5
    shift = (keep - 1).mul_(ALPHA * a).add_(ALPHA * a * p)
    factor = keep.mul_(a)
    return x.mul_(factor).add_(shift) if inplace else x * factor + shift
