"""Means over seeds with Student's t intervals, from three seeds on, and differences of pairs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.special import stdtrit

from fedsim.evaluate import is_share

CONFIDENCE = 0.95
FEWEST = 3
"""Values from which on there is an interval: that of two is 12.7 standard errors to each side."""

UNBOUNDED = (-math.inf, math.inf)
SHARE = (0.0, 1.0)


@dataclass(frozen=True)
class Estimate:
    """A mean and how sure it is.

    Attributes:
        mean: of the values.
        half: half the width of the 95 % interval; None for fewer than three values.
        count: values.
        values: themselves, in the order of the seeds.
        bounds: which values are possible; the interval ends there.
    """

    mean: float
    half: float | None
    count: int
    values: tuple[float, ...] = field(default=(), compare=False)
    bounds: tuple[float, float] = field(default=UNBOUNDED, compare=False)

    @property
    def cut(self) -> tuple[float, float] | None:
        """Where the interval begins and ends if it would leave the bounds; else None."""
        if self.half is None:
            return None
        low, high = self.mean - self.half, self.mean + self.half
        inside = max(low, self.bounds[0]), min(high, self.bounds[1])
        return inside if inside != (low, high) else None

    @property
    def sign(self) -> int:
        """1 or -1 where the interval lies on one side of zero, else 0."""
        return 0 if self.half is None or abs(self.mean) <= self.half else int(math.copysign(1, self.mean))


def quantile(count: int) -> float:
    """The factor of the standard error in an interval over ``count`` >= 2 values."""
    return float(stdtrit(count - 1, (1 + CONFIDENCE) / 2))


def bounds_of(tag: str, values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """Which values a metric can have: 0 to 1 for accuracies and the like, unless these values are others (per cent)."""
    finite = np.asarray(values, dtype=float)
    finite = finite[np.isfinite(finite)]
    return SHARE if is_share(tag) and bool(((finite >= 0) & (finite <= 1)).all()) else UNBOUNDED


def estimate(values: Sequence[float] | np.ndarray, bounds: tuple[float, float] = UNBOUNDED) -> Estimate | None:
    """Mean and interval of the finite values, or None when there are none."""
    finite = np.asarray(values, dtype=float)
    finite = finite[np.isfinite(finite)]
    count = len(finite)
    if count == 0:
        return None
    half = quantile(count) * float(finite.std(ddof=1)) / math.sqrt(count) if count >= FEWEST else None
    return Estimate(float(finite.mean()), half, count, tuple(finite.tolist()), bounds)


def paired(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Estimate | None:
    """Mean and interval of the differences ours - theirs over the seeds that both have."""
    return estimate([ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())])


def bands(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means and half widths of intervals over the finite values of each column.

    Args:
        rows: [runs, k], NaN where a run has no value.

    Returns:
        [k] means, NaN where no run has a value; [k] half widths, NaN for fewer than three.
    """
    seen = np.isfinite(rows)
    count = seen.sum(axis=0)
    factors = np.array([math.nan if n < FEWEST else quantile(n) for n in range(len(rows) + 1)])
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(seen, rows, 0).sum(axis=0) / count
        spread = np.where(seen, rows - mean, 0)
        half = factors[count] * np.sqrt((spread**2).sum(axis=0) / (count - 1) / count)
    return mean, half


def short(value: float) -> str:
    """A number in little room: ``0.8969``, ``1,500``, ``1e-05``."""
    if value and (abs(value) >= 1e7 or abs(value) < 1e-3):
        return f"{value:.3g}"
    return f"{round(value):,}" if abs(value) >= 1000 else f"{value:.4g}"
