"""Means over seeds with Student's t intervals, and differences of pairs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean and how sure it is.

    Attributes:
        mean: of the values.
        half: half the width of the 95 % interval; None for fewer than two values.
        count: values.
    """

    mean: float
    half: float | None
    count: int

    @property
    def sign(self) -> int:
        """1 or -1 where the interval lies on one side of zero, else 0."""
        return 0 if self.half is None or abs(self.mean) <= self.half else int(math.copysign(1, self.mean))


def quantile(count: int) -> float:
    """The factor of the standard error in an interval over ``count`` >= 2 values."""
    return float(stdtrit(count - 1, (1 + CONFIDENCE) / 2))


def estimate(values: Sequence[float] | np.ndarray) -> Estimate | None:
    """Mean and interval of the finite values, or None when there are none."""
    finite = np.asarray(values, dtype=float)
    finite = finite[np.isfinite(finite)]
    count = len(finite)
    if count == 0:
        return None
    half = quantile(count) * float(finite.std(ddof=1)) / math.sqrt(count) if count > 1 else None
    return Estimate(float(finite.mean()), half, count)


def paired(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Estimate | None:
    """Mean and interval of the differences ours - theirs over the seeds that both have."""
    return estimate([ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())])


def bands(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means and half widths of intervals over the finite values of each column.

    Args:
        rows: [runs, k], NaN where a run has no value.

    Returns:
        [k] means, NaN where no run has a value; [k] half widths, NaN for fewer than two.
    """
    seen = np.isfinite(rows)
    count = seen.sum(axis=0)
    factors = np.array([math.nan, math.nan, *(quantile(n) for n in range(2, len(rows) + 1))])
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
