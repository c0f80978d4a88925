"""Half precision: every entry travels as a 16-bit float, rounded to nearest.

IEEE 754-2019 binary16 (fp16), or bfloat16, the upper half of a float32. Finite values beyond the largest finite one
(65504 for fp16) become that one; NaN and infinities stay what they are.

Quality: error at most 2^-11 (fp16) or 2^-8 (bf16) of each entry, hence delta = 1 - 2^-22 or 1 - 2^-16, while entries
are 0 or normal numbers of the format: fp16 loses what lies beyond 65504 and blurs what lies below 6.1e-5 in magnitude.
Wire: 16 bits an entry. Layers further in compute with the rounded numbers in the run's dtype, and what they hand on
(kept entries, norms, factors) is rounded to 16 bits once more where it travels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedsim.channel.base import Bytes, Noise, Send
from fedsim.channel.rounding import saturated
from fedsim.fields import check_fields
from fedsim.traits import LayerTraits

_FORMATS = {"fp16": (torch.float16, 2.0**-11), "bf16": (torch.bfloat16, 2.0**-8)}


@dataclass(frozen=True)
class Half:
    """Rounds to 16 bits.

    Attributes:
        format: fp16 (11 significant bits, up to 65504) or bf16 (8 significant bits, the range of float32).
    """

    traits: ClassVar[LayerTraits] = LayerTraits(loses=True, contractive=True)
    format: Literal["fp16", "bf16"] = "fp16"

    def __post_init__(self) -> None:
        check_fields(self)

    def init(self, v: Tensor) -> tuple[()]:
        """No memory."""
        return ()

    def __call__(self, v: Tensor, link: tuple[()], noise: Noise, send: Send) -> tuple[Tensor, tuple[()], Bytes]:
        """Send v [d]."""
        dtype, _ = _FORMATS[self.format]
        got, _, size = send(saturated(v, dtype))
        return got.to(v.dtype), link, size

    def delta(self, d: int) -> float | None:
        """1 - (relative error)^2, within the format's normal range."""
        return 1 - _FORMATS[self.format][1] ** 2

    def omega(self, d: int) -> float | None:
        """None: what arrives is biased."""
        return None
