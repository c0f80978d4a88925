"""How many entries a sparsifier keeps."""

from __future__ import annotations

import math
from fractions import Fraction

from fedsim.errors import require


def check_kept(k: int | None, ratio: float | None) -> None:
    """Raise ``InputError`` unless at least one is given and both are in range."""
    require(k is not None or ratio is not None, "k", "be given, or ratio", k)
    require(k is None or k >= 1, "k", "be >= 1", k)
    require(ratio is None or 0 < ratio <= 1, "ratio", "be in (0, 1]", ratio)


def entries_to_keep(k: int | None, ratio: float | None, d: int) -> int:
    """How many of d entries a sparsifier keeps: min(k, d), or without k ceil(ratio * d).

    A ratio of 0.07 means 7/100: as a binary fraction it is a little more, and 0.07 * 100 would round up to 8.
    """
    return min(k, d) if k is not None else math.ceil(Fraction(str(ratio)) * d)
