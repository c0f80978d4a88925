"""What a curve can be drawn against, and what it cost to reach a target."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fedsim.evaluate import lower_is_better
from fedsim.report.runs import RecordedRun


@dataclass(frozen=True)
class Axis:
    """One measure of cost.

    Attributes:
        name: short, for columns and files.
        label: with its unit.
        values: [rounds on record] of a run, never decreasing; NaN where it was not measured.
    """

    name: str
    label: str
    values: Callable[[RecordedRun], np.ndarray]


def _megabytes(run: RecordedRun) -> np.ndarray:
    """Megabytes sent since the start on all links: up and down, or over edges."""
    sent = [
        np.nan_to_num(values)
        for tag, values in run.metrics.items()
        if tag.startswith("comm/") and tag.endswith("_bytes") and "_total_" not in tag
    ]
    return np.cumsum(np.sum(sent, axis=0)) / 1e6 if sent else np.full(len(run.rounds), np.nan)


def _seconds(run: RecordedRun) -> np.ndarray:
    """Seconds of the rounds themselves; setting up and evaluating are not counted."""
    took = run.series("time/round_s")
    return np.cumsum(np.nan_to_num(took)) if np.isfinite(took).any() else took


def _filled(tag: str) -> Callable[[RecordedRun], np.ndarray]:
    """A tag that is not on record in every round: the last value counts until the next."""

    def values(run: RecordedRun) -> np.ndarray:
        found = run.series(tag)
        last = np.maximum.accumulate(np.where(np.isfinite(found), np.arange(len(found)), -1))
        filled: np.ndarray = np.where(last >= 0, found[last], 0.0 if np.isfinite(found).any() else math.nan)
        return filled

    return values


AXES = (
    Axis("rounds", "rounds", lambda run: run.rounds),
    Axis("MB", "megabytes sent, all links (1 MB = 1e6 bytes)", _megabytes),
    Axis("seconds", "seconds of wall time in rounds", _seconds),
    Axis("epsilon", "privacy loss epsilon", _filled("privacy/epsilon")),
    Axis("virtual time", "virtual time", _filled("time/virtual_s")),
)


def spent_until(run: RecordedRun, tag: str, target: float) -> dict[str, float] | None:
    """What the run had spent, by axis, when it first was as good as ``target``; None if it never was."""
    values = run.series(tag)
    good = np.flatnonzero(values <= target if lower_is_better(tag) else values >= target)
    if len(good) == 0:
        return None
    return {axis.name: float(axis.values(run)[good[0]]) for axis in AXES}
