"""Sign: one bit an entry and one scale a bucket.

Scale l1, the mean magnitude: Karimireddy, Rebjock, Stich, Jaggi, "Error Feedback Fixes SignSGD and other Gradient
Compression Schemes", ICML 2019, arXiv 1901.09847, section 4. Scale l2, the root mean square: Tang, Gan, Awan,
Rajbhandari, Li, Lian, Liu, Zhang, He, "1-bit Adam: Communication Efficient Large-Scale Training with Adam's Convergence
Speed", ICML 2021, arXiv 2102.02888 (its implementation in DeepSpeed). Deviation: sign(0) = +1, one bit having no third
value.

Quality: l1 delta = 1 / bucket at worst, ||v||_1^2 / (d ||v||_2^2) exactly; l2 is not contractive (its error can exceed
||v||^2 for sparse v). Wire: d bits and one number a bucket.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fedsim.channel.base import Bytes, Noise, Send
from fedsim.channel.buckets import check_bucket, counts, from_rows, to_rows, width
from fedsim.channel.wire import Signs
from fedsim.fields import check_fields
from fedsim.traits import LayerTraits


@dataclass(frozen=True)
class Sign:
    """Sends the signs and one scale for each bucket.

    Attributes:
        scale: l1 (mean magnitude) or l2 (root mean square).
        bucket: entries that share a scale, >= 1; None: the whole vector.
    """

    scale: Literal["l1", "l2"] = "l1"
    bucket: int | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        check_bucket(self.bucket)

    def init(self, v: Tensor) -> tuple[()]:
        """No memory."""
        return ()

    @property
    def traits(self) -> LayerTraits:
        """Loses magnitudes, and is biased."""
        return LayerTraits(loses=True, nonexpansive=True, contractive=self.scale == "l1")

    def __call__(self, v: Tensor, link: tuple[()], noise: Noise, send: Send) -> tuple[Tensor, tuple[()], Bytes]:
        """Send v [d]."""
        d = v.shape[0]
        order = 1 if self.scale == "l1" else 2
        norms = torch.linalg.vector_norm(to_rows(v, self.bucket), order, dim=1, dtype=torch.float64)
        scales = (norms / counts(d, self.bucket, v) ** (1 / order)).to(v.dtype)
        scales, (positive,), size = send(scales, Signs(v >= 0))
        signs = torch.where(positive.tensor, 1, -1).to(v.dtype)
        return from_rows(to_rows(signs, self.bucket) * scales.unsqueeze(1), d), link, size

    def delta(self, d: int) -> float | None:
        """1 / bucket for l1."""
        return 1 / width(d, self.bucket) if self.scale == "l1" else None

    def omega(self, d: int) -> float | None:
        """None: what arrives is biased."""
        return None
