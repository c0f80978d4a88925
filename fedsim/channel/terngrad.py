"""TernGrad: each entry becomes -m, 0 or m, m being the largest magnitude.

Wen, Xu, Yan, Wu, Wang, Chen, Li, "TernGrad: Ternary Gradients to Reduce Communication in Distributed Deep Learning",
NeurIPS 2017, arXiv 1705.07878, equations 1-3. They also clip entries, by layer of the network, at c standard deviations
of the layer's entries, c = 2.5 in the published codes: ``clip=2.5``, with ``channel=[layerwise,terngrad]``. Clipping
makes the layer biased and is off by default; where all entries are equal (sigma is 0) nothing is clipped.

Quality: omega = ||v||_inf ||v||_1 / ||v||_2^2 - 1 <= (sqrt(d) - 1) / 2, attained where one entry is 1 + sqrt(d) times
the others. Wire: one number, and five entries in a byte.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fedsim.channel.base import Bytes, Noise, Send
from fedsim.channel.buckets import from_rows, to_rows
from fedsim.channel.wire import Trits
from fedsim.errors import require
from fedsim.fields import check_fields
from fedsim.traits import LayerTraits


@dataclass(frozen=True)
class TernGrad:
    """Unbiased rounding to three values.

    Attributes:
        clip: entries are cut at so many standard deviations of the vector's entries, > 0; None: not, which is unbiased.
    """

    clip: float | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        require(self.clip is None or self.clip > 0, "clip", "be > 0, or null for no clipping", self.clip)

    def init(self, v: Tensor) -> tuple[()]:
        """No memory."""
        return ()

    @property
    def traits(self) -> LayerTraits:
        """The words; clipping makes it biased."""
        return LayerTraits(loses=True, unbiased=self.clip is None)

    def __call__(self, v: Tensor, link: tuple[()], noise: Noise, send: Send) -> tuple[Tensor, tuple[()], Bytes]:
        """Send v [d]."""
        rows = to_rows(v, None)  # [1, d]
        if self.clip is not None:
            sigma = (rows - rows.mean(1, keepdim=True)).square().mean(1).sqrt()  # [1]
            most = torch.where(sigma > 0, self.clip * sigma, torch.inf)
            rows = rows.clamp(-most[:, None], most[:, None])
            v = from_rows(rows, v.shape[0])
        peak = rows.abs().amax(1)  # [1]
        kept = noise.uniform(v) < v.abs() / torch.where(peak > 0, peak, 1)
        trits = torch.where(kept, torch.where(v < 0, -1, 1), 0).to(torch.int8)
        peak, (signs,), size = send(peak, Trits(trits))
        return signs.tensor.to(v.dtype) * peak, link, size

    def delta(self, d: int) -> float | None:
        """None: unbiased, or without a bound."""
        return None

    def omega(self, d: int) -> float | None:
        """(sqrt(d) - 1) / 2; None when clipping makes it biased."""
        return (math.sqrt(d) - 1) / 2 if self.clip is None else None
