"""A method's curve: the mean over its runs with a band, against every axis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedsim.report.axes import AXES
from fedsim.report.runs import RecordedRun
from fedsim.report.statistics import bands


@dataclass(frozen=True)
class Curve:
    """A method's mean over its runs, round by round.

    Attributes:
        rounds: [k] at which the metric was evaluated.
        mean: [k] over the runs that reached the round.
        half: [k] half widths of 95 % intervals, NaN for one run.
        axes: [k] mean cost by axis; axes that nothing was measured on are left out.
    """

    rounds: np.ndarray
    mean: np.ndarray
    half: np.ndarray
    axes: dict[str, np.ndarray]


def curve(runs: Sequence[RecordedRun], tag: str) -> Curve | None:
    """Means at every round that some run evaluated; a run that ended earlier no longer counts in later rounds."""
    rounds = np.unique(np.concatenate([run.rounds[np.isfinite(run.series(tag))] for run in runs]))
    if len(rounds) == 0:
        return None

    def aligned(run: RecordedRun, values: np.ndarray) -> np.ndarray:
        found = np.full(len(rounds), math.nan)
        evaluated = np.isfinite(run.series(tag))
        found[np.searchsorted(rounds, run.rounds[evaluated])] = values[evaluated]
        return found

    mean, half = bands(np.stack([aligned(run, run.series(tag)) for run in runs]))
    axes = {}
    for axis in AXES:
        values = bands(np.stack([aligned(run, axis.values(run)) for run in runs]))[0]
        if np.isfinite(values).any() and np.nanmax(values) > 0:
            axes[axis.name] = values
    return Curve(rounds, mean, half, axes)
