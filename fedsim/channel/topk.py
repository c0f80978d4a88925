"""Top-K: only the k entries of largest magnitude travel, with their positions.

Stich, Cordonnier, Jaggi, "Sparsified SGD with Memory", NeurIPS 2018, arXiv 1809.07599, definition 2.1.
Deviation: none; ties, which the paper leaves open, go to the lowest position, so that exactly k entries travel.

Quality: delta = k / d. Wire: k values and their positions, about k (2 + log2(d / k)) bits; all d values when k >= d.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedsim.channel.base import Bytes, Noise, Send
from fedsim.channel.one_by_one import one_by_one
from fedsim.channel.sparse import check_kept, entries_to_keep
from fedsim.channel.wire import Positions
from fedsim.fields import check_fields
from fedsim.traits import LayerTraits

_STRIDE = 64  # one entry in 64 is looked at to guess the threshold of a long vector


@dataclass(frozen=True)
class TopK:
    """Keeps the k largest magnitudes; NaN counts as infinitely large.

    Attributes:
        k: entries kept, >= 1; used instead of ``ratio`` when given.
        ratio: fraction kept, in (0, 1]; k = ceil(ratio * d).
    """

    traits: ClassVar[LayerTraits] = LayerTraits(loses=True, nonexpansive=True, entrywise=True, contractive=True)
    k: int | None = None
    ratio: float | None = 0.01

    def __post_init__(self) -> None:
        check_fields(self)
        check_kept(self.k, self.ratio)

    def init(self, v: Tensor) -> tuple[()]:
        """No memory."""
        return ()

    def __call__(self, v: Tensor, link: tuple[()], noise: Noise, send: Send) -> tuple[Tensor, tuple[()], Bytes]:
        """Send v [d]."""
        d = v.shape[0]
        k = entries_to_keep(self.k, self.ratio, d)
        if k == d:
            got, _, size = send(v)
            return got, link, size
        index = one_by_one(largest_positions, v, k, at_once=largest_of_many)
        values, (positions,), size = send(v.gather(0, index), Positions(index, d))
        return torch.zeros_like(v).scatter(0, positions.tensor, values), link, size

    def delta(self, d: int) -> float | None:
        """k / d."""
        return entries_to_keep(self.k, self.ratio, d) / d

    def omega(self, d: int) -> float | None:
        """None: what arrives is biased."""
        return None


def largest_positions(v: Tensor, k: int) -> Tensor:
    """Positions of the 1 <= k <= d largest magnitudes of v [d]: [k] int64, ascending; of equals the lowest.

    The threshold of a long vector is first guessed from a sample, a little too low; only what lies above is sorted
    out. The result is exact: a guess that leaves fewer than k entries is dropped.
    """
    magnitude = v.abs().nan_to_num(nan=math.inf, posinf=math.inf)
    chosen = _candidates(magnitude, k)
    values = magnitude[chosen]
    threshold = values.topk(k, sorted=False).values.min()
    above, equal = values > threshold, values == threshold
    # Of equal magnitudes the first are taken, however torch orders them: the result is the same on every machine.
    return chosen[above | (equal & (equal.cumsum(0) <= k - above.sum()))]


def largest_of_many(v: Tensor, k: int) -> Tensor:
    """The same of each of b vectors [b, d]: [b, k]. On a GPU a guess would have to be looked at."""
    magnitude = v.abs().nan_to_num(nan=math.inf, posinf=math.inf)
    threshold = magnitude.topk(k, dim=1, sorted=False).values.amin(1, keepdim=True)
    above, equal = magnitude > threshold, magnitude == threshold
    chosen = above | (equal & (equal.cumsum(1) <= k - above.sum(1, keepdim=True)))
    place = torch.where(chosen, chosen.cumsum(1) - 1, k)  # what is not chosen is written behind them
    positions = torch.arange(v.shape[1], device=v.device).expand_as(place)
    return place.new_empty(len(v), k + 1).scatter_(1, place, positions)[:, :k]


def _candidates(magnitude: Tensor, k: int) -> Tensor:
    """Ascending positions of at least k entries, the k largest and their equals among them."""
    sample = magnitude[::_STRIDE]
    expected = k / _STRIDE
    rank = math.ceil(expected + 4 * math.sqrt(expected)) + 1  # four standard deviations below the true threshold
    if 4 * rank < len(sample):
        guess = sample.topk(rank, sorted=False).values.min()
        chosen = (magnitude >= guess).nonzero().squeeze(1)
        if len(chosen) >= k:
            return chosen
    return torch.arange(len(magnitude), device=magnitude.device)
