"""Uniform levels: each entry is rounded at random to one of the even levels between -max and +max of its bucket.

Suresh, Yu, Kumar, McMahan, "Distributed Mean Estimation with Limited Communication", ICML 2017, arXiv 1611.00429,
section 2.2 (stochastic k-level quantization). Deviations: the grid is symmetric, with 0 on it (step max / 127 for 8
bits), and the largest magnitude of each bucket travels instead of its least and greatest value.

Quality: omega = B / (4 (2^(bits - 1) - 1)^2) for buckets of B. Wire: one number a bucket, ``bits`` bits an entry.
"""

from __future__ import annotations

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
class Uniform:
    """Unbiased rounding to 2^bits - 1 even levels.

    Attributes:
        bits: of one entry, in [2, 16].
        bucket: B, entries that share a scale, >= 1; None: the whole vector.
    """

    traits: ClassVar[LayerTraits] = LayerTraits(loses=True, unbiased=True)
    bits: int = 8
    bucket: int | None = 1024

    def __post_init__(self) -> None:
        check_fields(self)
        require(2 <= self.bits <= 16, "bits", "be in [2, 16]", self.bits)
        check_bucket(self.bucket)

    @property
    def top(self) -> int:
        """The largest level: 127 for 8 bits."""
        return (1 << (self.bits - 1)) - 1

    def init(self, v: Tensor) -> tuple[()]:
        """No memory."""
        return ()

    def __call__(self, v: Tensor, link: tuple[()], noise: Noise, send: Send) -> tuple[Tensor, tuple[()], Bytes]:
        """Send v [d]."""
        d, top = v.shape[0], self.top
        rows = to_rows(v, self.bucket)
        peaks = rows.abs().amax(1)
        share = from_rows(rows / torch.where(peaks > 0, peaks, 1).unsqueeze(1), d)  # in [-1, 1]
        q = round_at_random(share * top, noise.uniform(v), top).to(narrowest(-top, top))
        peaks, (levels,), size = send(peaks, Levels(q, -top, top))
        shares = to_rows(levels.tensor.to(v.dtype) / top, self.bucket)
        return from_rows(shares * peaks.unsqueeze(1), d), link, size

    def delta(self, d: int) -> float | None:
        """None: what arrives is unbiased, see ``omega``."""
        return None

    def omega(self, d: int) -> float | None:
        """B / (4 top^2)."""
        return width(d, self.bucket) / (4 * self.top**2)
