"""QSGD: each magnitude is rounded at random to one of s + 1 even levels of its bucket's norm.

Alistarh, Grubic, Li, Tomioka, Vojnovic, "QSGD: Communication-Efficient SGD via Gradient Quantization and Encoding",
NeurIPS 2017, arXiv 1610.02132, section 3.1. Deviations: levels have a fixed number of bits instead of Elias codes; a
bucket of norm 0 is 0.

Quality: omega = min(B / s^2, sqrt(B) / s) for buckets of B. Wire: one norm a bucket, 1 +
ceil(log2(s + 1)) bits an entry.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedsim.channel.base import Bytes, Noise, Send
from fedsim.channel.buckets import check_bucket, from_rows, to_rows, width
from fedsim.channel.rounding import round_at_random
from fedsim.channel.wire import Levels, narrowest
from fedsim.errors import require
from fedsim.fields import check_fields
from fedsim.traits import LayerTraits


@dataclass(frozen=True)
class QSGD:
    """Unbiased rounding to levels of the l2 norm.

    Attributes:
        levels: s, in [1, 2^15).
        bucket: B, entries that share a norm, >= 1; None: the whole vector.
    """

    traits: ClassVar[LayerTraits] = LayerTraits(loses=True, unbiased=True)
    levels: int = 7
    bucket: int | None = 512

    def __post_init__(self) -> None:
        check_fields(self)
        require(1 <= self.levels < 2**15, "levels", "be in [1, 32767]", self.levels)
        check_bucket(self.bucket)

    def init(self, v: Tensor) -> tuple[()]:
        """No memory."""
        return ()

    def __call__(self, v: Tensor, link: tuple[()], noise: Noise, send: Send) -> tuple[Tensor, tuple[()], Bytes]:
        """Send v [d]."""
        d, s = v.shape[0], self.levels
        rows = to_rows(v, self.bucket)
        # In float64, where no square of a float32 overflows.
        norms = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64).to(v.dtype)
        share = from_rows(rows / torch.where(norms > 0, norms, 1).unsqueeze(1), d)  # in [-1, 1]
        q = round_at_random(share * s, noise.uniform(v), s).to(narrowest(-s, s))
        norms, (levels,), size = send(norms, Levels(q, -s, s))
        shares = to_rows(levels.tensor.to(v.dtype) / s, self.bucket)
        return from_rows(shares * norms.unsqueeze(1), d), link, size

    def delta(self, d: int) -> float | None:
        """None: what arrives is unbiased, see ``omega``."""
        return None

    def omega(self, d: int) -> float | None:
        """min(B / s^2, sqrt(B) / s)."""
        b = width(d, self.bucket)
        return min(b / self.levels**2, math.sqrt(b) / self.levels)
