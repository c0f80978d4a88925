"""Rand-K: k entries at random positions travel.

Stich, Cordonnier, Jaggi, "Sparsified SGD with Memory", NeurIPS 2018, arXiv 1809.07599, definition 2.1 (biased);
Konecny, Richtarik, "Randomized Distributed Mean Estimation: Accuracy vs. Communication", 2018, arXiv 1611.07555 (times
d / k).
Positions are drawn without replacement. Deviation: a vector that is not finite comes out as NaN even where its bad
entry was not drawn, so that divergence is seen.

Quality: delta = k / d biased, omega = d / k - 1 unbiased. Wire: k values, and their positions or with a shared seed
eight bytes; all d values when k >= d.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fedsim.channel.base import Bytes, Noise, Send
from fedsim.channel.sparse import check_kept, entries_to_keep
from fedsim.channel.wire import Positions, Seed
from fedsim.fields import check_fields
from fedsim.traits import LayerTraits


@dataclass(frozen=True)
class RandK:
    """Keeps k entries drawn without replacement.

    Attributes:
        k: entries kept, >= 1; used instead of ``ratio`` when given.
        ratio: fraction kept, in (0, 1]; k = ceil(ratio * d).
        unbiased: multiply what is kept by d / k.
        shared_seed: send the seed of the positions instead of the positions.
    """

    k: int | None = None
    ratio: float | None = 0.01
    unbiased: bool = False
    shared_seed: bool = True

    def __post_init__(self) -> None:
        check_fields(self)
        check_kept(self.k, self.ratio)

    def init(self, v: Tensor) -> tuple[()]:
        """No memory."""
        return ()

    @property
    def traits(self) -> LayerTraits:
        """Loses entries; unbiased where it scales them up."""
        return LayerTraits(
            loses=True,
            linear=True,
            lipschitz=not self.unbiased,
            nonexpansive=not self.unbiased,
            entrywise=not self.unbiased,
            unbiased=self.unbiased,
            contractive=not self.unbiased,
        )

    def __call__(self, v: Tensor, link: tuple[()], noise: Noise, send: Send) -> tuple[Tensor, tuple[()], Bytes]:
        """Send v [d]."""
        d = v.shape[0]
        k = entries_to_keep(self.k, self.ratio, d)
        if k == d:
            got, _, size = send(v)
            return got, link, size
        index = noise.subset(k, v)
        values = v.gather(0, index) * (d / k if self.unbiased else 1)
        values = torch.where(v.isfinite().all(), values, math.nan)
        beside = Seed(noise.seed(v), k, d) if self.shared_seed else Positions(index, d)
        values, _, size = send(values, beside)
        return torch.zeros_like(v).scatter(0, index, values), link, size

    def delta(self, d: int) -> float | None:
        """k / d in expectation, of the biased form."""
        return None if self.unbiased else entries_to_keep(self.k, self.ratio, d) / d

    def omega(self, d: int) -> float | None:
        """d / k - 1, of the unbiased form."""
        return d / entries_to_keep(self.k, self.ratio, d) - 1 if self.unbiased else None
