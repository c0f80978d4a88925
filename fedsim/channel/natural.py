"""Natural compression: each magnitude is rounded at random to one of the two powers of two around it.

Horvath, Ho, Horvath, Sahu, Canini, Richtarik, "Natural Compression for Distributed Deep Learning", MSML 2022,
arXiv 1905.10988, definition 1. At the ends of the exponents, which the paper leaves open: 0 is 0,
a subnormal becomes 0 or the least normal number (unbiased), nothing finite is rounded up to infinity (the last octave
rounds down), NaN and infinities come out as infinities.

Quality: omega = 1/8, for normal numbers below the last octave. Wire: 9 bits an entry for float32 (sign and exponent),
12 for float64. Nothing dense travels on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedsim.channel.base import Bytes, Noise, Send
from fedsim.channel.wire import Levels, Signs, narrowest
from fedsim.traits import LayerTraits

_FORMATS = {torch.float32: (torch.int32, 23, 255), torch.float64: (torch.int64, 52, 2047)}
"""dtype -> integer of its width, bits of the fraction, exponent code of infinity (IEEE 754)."""


@dataclass(frozen=True)
class Natural:
    """Unbiased rounding to powers of two."""

    traits: ClassVar[LayerTraits] = LayerTraits(loses=True, unbiased=True)

    def init(self, v: Tensor) -> tuple[()]:
        """No memory."""
        return ()

    def __call__(self, v: Tensor, link: tuple[()], noise: Noise, send: Send) -> tuple[Tensor, tuple[()], Bytes]:
        """Send v [d]."""
        # |v| = 2^e (1 + f), and its bits hold e and f side by side. Up to e + 1 with probability f: the mean is
        # 2^e (1 - f) + 2^(e + 1) f = |v|. The largest finite exponent stays, since one more would be infinity.
        kind, shift, infinite = _FORMATS[v.dtype]
        bits = v.abs().view(kind)
        fraction = (bits & ((1 << shift) - 1)).to(v.dtype) / (1 << shift)
        up = (noise.uniform(v) < fraction).to(kind)
        exponent = torch.where(v.isfinite(), ((bits >> shift) + up).clamp(max=infinite - 1), infinite)
        levels = Levels(exponent.to(narrowest(0, infinite)), 0, infinite)
        _, (positive, got), size = send(v.new_zeros(0), Signs(v >= 0), levels)
        magnitude = (got.tensor.to(kind) << shift).view(v.dtype)
        return torch.where(positive.tensor, magnitude, -magnitude), link, size

    def delta(self, d: int) -> float | None:
        """None: what arrives is unbiased, see ``omega``."""
        return None

    def omega(self, d: int) -> float | None:
        """1/8."""
        return 1 / 8
