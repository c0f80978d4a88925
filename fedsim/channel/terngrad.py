"""TernGrad: each entry becomes -m, 0 or m, m being the largest magnitude.

Wen, Xu, Yan, Wu, Wang, Chen, Li, "TernGrad: Ternary Gradients to Reduce Communication in Distributed Deep Learning",
NeurIPS 2017, arXiv 1705.07878, equations 1-3. Deviation: no gradient clipping before, which makes the published code
biased; put a ``clip`` layer in front where it is wanted.

Quality: omega = ||v||_inf ||v||_1 / ||v||_2^2 - 1 <= (sqrt(d) - 1) / 2, attained where one entry is 1 + sqrt(d) times
the others. Wire: one number, and five entries in a byte.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedsim.channel.base import Bytes, Noise, Send
from fedsim.channel.buckets import to_rows
from fedsim.channel.wire import Trits
from fedsim.traits import LayerTraits


@dataclass(frozen=True)
class TernGrad:
    """Unbiased rounding to three values."""

    traits: ClassVar[LayerTraits] = LayerTraits(loses=True, unbiased=True)

    def init(self, v: Tensor) -> tuple[()]:
        """No memory."""
        return ()

    def __call__(self, v: Tensor, link: tuple[()], noise: Noise, send: Send) -> tuple[Tensor, tuple[()], Bytes]:
        """Send v [d]."""
        peak = to_rows(v, None).abs().amax(1)  # [1]
        kept = noise.uniform(v) < v.abs() / torch.where(peak > 0, peak, 1)
        trits = torch.where(kept, torch.where(v < 0, -1, 1), 0).to(torch.int8)
        peak, (signs,), size = send(peak, Trits(trits))
        return signs.tensor.to(v.dtype) * peak, link, size

    def delta(self, d: int) -> float | None:
        """Unbiased."""
        return None

    def omega(self, d: int) -> float | None:
        """(sqrt(d) - 1) / 2."""
        return (math.sqrt(d) - 1) / 2
