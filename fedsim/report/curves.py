"""A method's curve: the mean over its runs with a band, against every axis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedsim.report.axes import AXES
from fedsim.report.runs import RecordedRun
from fedsim.report.statistics import bands, bounds_of


@dataclass(frozen=True)
class Curve:
    """A method's mean over its runs, round by round.

    Attributes:
        rounds: [k] at which the metric was evaluated.
        mean: [k] over the runs that reached the round.
        half: [k] half widths of 95 % intervals, NaN for one run or two.
        seeds: [runs, k] of every run, NaN where it was not evaluated.
        bounds: which values are possible; bands end there.
        axes: [k] mean cost by axis; axes that nothing was measured on are left out.
    """

    rounds: np.ndarray
    mean: np.ndarray
    half: np.ndarray
    seeds: np.ndarray
    bounds: tuple[float, float]
    axes: dict[str, np.ndarray]


def curve(runs: Sequence[RecordedRun], tag: str, smooth: int = 1) -> Curve | None:
    """Means at every round that some run evaluated; a run that ended earlier no longer counts in later rounds.

    Args:
        runs: of one method.
        tag: what was measured.
        smooth: evaluations of a run of which a point is the mean, itself and those before it; 1: as measured.
    """
    rounds = np.unique(np.concatenate([run.rounds[np.isfinite(run.series(tag))] for run in runs]))
    if len(rounds) == 0:
        return None

    def aligned(run: RecordedRun, values: np.ndarray) -> np.ndarray:
        found = np.full(len(rounds), math.nan)
        evaluated = np.isfinite(run.series(tag))
        found[np.searchsorted(rounds, run.rounds[evaluated])] = values[evaluated]
        return found

    seeds = np.stack([aligned(run, smoothed(run.series(tag), smooth)) for run in runs])
    mean, half = bands(seeds)
    axes = {}
    for axis in AXES:
        values = bands(np.stack([aligned(run, axis.values(run)) for run in runs]))[0]
        if np.isfinite(values).any() and np.nanmax(values) > 0:
            axes[axis.name] = values
    return Curve(rounds, mean, half, seeds, bounds_of(tag, seeds), axes)


def smoothing(smooth: int) -> str:
    """A sentence on curves that are smoothed."""
    return f"Smoothed: a point is the mean of a run's last {smooth} evaluations. The tables are not smoothed."


def smoothed(values: np.ndarray, smooth: int) -> np.ndarray:
    """Each finite value as the mean of itself and those before it, ``smooth`` in all; of fewer at the beginning.

    >>> smoothed(np.array([1.0, np.nan, 3.0, 5.0]), 2)
    array([ 1., nan,  2.,  4.])
    """
    there = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(values[there])])
    ends = np.arange(1, len(sums))
    begins = np.maximum(0, ends - smooth)
    out: np.ndarray = values.copy()
    if smooth > 1:
        out[there] = (sums[ends] - sums[begins]) / (ends - begins)
    return out
