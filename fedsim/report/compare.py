"""One setting compared: final values, paired differences, costs to a target, curves. What every output shows."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedsim.evaluate import lower_is_better
from fedsim.ground.console import headline
from fedsim.record.run_folder import DONE
from fedsim.report.axes import AXES, Axis, spent_until
from fedsim.report.clients import ClientSpread, spread_over_clients
from fedsim.report.curves import Curve, curve
from fedsim.report.methods import Method, SharedSetting
from fedsim.report.runs import UNFINISHED, RecordedRun
from fedsim.report.statistics import Estimate, bounds_of, estimate, paired

OVERALL = re.compile(r"eval/(?!client_|peer_|unmixed_peer_|train_loss$|grad_norm2$)(?!\w*_\d+$)")
"""Metrics of the global model on all test samples, but for those of single classes."""

TOWARDS = 0.95  # the default target, as a share of the way from the initial model to the best method


@dataclass(frozen=True)
class Cost:
    """What it took to be as good as the target for the first time.

    Attributes:
        spent: by axis, over the runs that got there.
        got: runs that got there.
        of: runs.
    """

    spent: dict[str, Estimate]
    got: int
    of: int


@dataclass(frozen=True)
class Final:
    """Where a method ended, or has got so far.

    Attributes:
        values: by tag and axis, over the runs that count.
        complete: whether those are finished runs.
        at: the round, when they are not.
    """

    values: dict[str, Estimate]
    complete: bool
    at: int | None


@dataclass(frozen=True)
class Row:
    """One method in a setting.

    Attributes:
        method: label and runs.
        final: the metrics and what was spent.
        difference: of the main metric to the baseline's by seed, or None.
        cost: to the target, or None when there is no target.
        curves: by metric.
        clients: of the runs of ``final``: how the main metric is distributed over them, where that was kept.
    """

    method: Method
    final: Final
    difference: Estimate | None
    cost: Cost | None
    curves: dict[str, Curve]
    clients: ClientSpread | None = None

    @property
    def states(self) -> dict[str, int]:
        """How many runs have which status, in a fixed order."""
        found = [run.status for run in self.method.runs]
        order = (*DONE, UNFINISHED, "interrupted", "diverged", "failed")
        return {status: found.count(status) for status in dict.fromkeys((*order, *found)) if status in found}


@dataclass(frozen=True)
class Comparison:
    """A setting with its methods, best first.

    Attributes:
        setting: label and methods.
        metrics: tags, the main one first.
        rows: one for each method.
        axes: those on which something was measured.
        baseline: label of the method that differences refer to.
        target: tag and value whose first reaching is costed, or None when nothing was measured.
        unpaired: why pairs were left out, one line each.
        unread: why clients were left out, one line each.
        smooth: evaluations of a run of which a point of the curves is the mean.
    """

    setting: SharedSetting
    metrics: tuple[str, ...]
    rows: tuple[Row, ...]
    axes: tuple[Axis, ...]
    baseline: str
    target: tuple[str, float] | None
    unpaired: tuple[str, ...]
    unread: tuple[str, ...] = ()
    smooth: int = 1


def compare(
    setting: SharedSetting,
    *,
    metrics: Sequence[str] = (),
    target: tuple[str, float] | None = None,
    baseline: str = "",
    smooth: int = 1,
) -> Comparison:
    """Compare the methods of a setting.

    Args:
        setting: methods and runs.
        metrics: tags to show, the main one first; empty: accuracy or the first score, loss, what else is measured of
            the global model, consensus distance.
        target: metric and value whose first reaching is costed; None: 95 % of the way to the best method's final.
        baseline: label of the method to compare with; "" or absent here: plain FedAvg, else the first method.
        smooth: evaluations of a run of which a point of the curves is the mean.
    """
    runs = [run for method in setting.methods for run in method.runs]
    tags = _metrics(runs, metrics)
    main = target[0] if target else tags[0]
    finals = {method.label: _final(method, tags) for method in setting.methods}
    aim = target[1] if target else _aim(setting.methods, main, list(finals.values()))
    names = [method.label for method in setting.methods]
    base = next((name for name in (baseline, "FedAvg") if name in names), names[0])
    reference = next(method for method in setting.methods if method.label == base)
    unpaired: dict[str, None] = {}
    unread: dict[str, None] = {}
    rows = [
        Row(
            method,
            finals[method.label],
            None if method is reference else _difference(method, reference, tags[0], unpaired),
            None if aim is None else _cost(method, main, aim),
            {tag: found for tag in tags if (found := curve(method.runs, tag, smooth)) is not None},
            _clients(method, tags[0], unread),
        )
        for method in setting.methods
    ]
    sign = 1 if lower_is_better(tags[0]) else -1
    worst = Estimate(sign * math.inf, None, 0)
    rows.sort(
        key=lambda row: (not row.final.complete, sign * row.final.values.get(tags[0], worst).mean, row.method.label)
    )
    axes = tuple(axis for axis in AXES if any(axis.name in c.axes for row in rows for c in row.curves.values()))
    goal = None if aim is None else (main, aim)
    return Comparison(
        setting=setting,
        metrics=tags,
        rows=tuple(rows),
        axes=axes,
        baseline=base,
        target=goal,
        unpaired=tuple(unpaired),
        unread=tuple(unread),
        smooth=smooth,
    )


def _metrics(runs: Sequence[RecordedRun], asked: Sequence[str]) -> tuple[str, ...]:
    """The tags to show, of those on record; the loss alone when nothing was evaluated."""
    there = dict.fromkeys(tag for run in runs for tag in run.metrics)
    if asked:
        return tuple(tag for tag in asked if tag in there) or tuple(asked[:1])
    known = [f"eval/{name}" for name in headline(dict.fromkeys(there, 0.0))]
    others = (tag for tag in there if tag not in known and OVERALL.match(tag))
    return (*known, *others, *(tag for tag in ("gossip/consensus_distance",) if tag in there)) or ("eval/loss",)


def _last(run: RecordedRun, tag: str) -> int | None:
    """Index of the last line that measured ``tag``, or None."""
    found = np.flatnonzero(np.isfinite(run.series(tag)))
    return int(found[-1]) if len(found) else None


def _clients(method: Method, tag: str, unread: dict[str, None]) -> ClientSpread | None:
    """How a metric is distributed over the clients of the finished runs, at their last evaluations."""
    ends = [(run, _last(run, tag)) for run in method.runs if run.status in DONE]
    at = [(run, int(run.rounds[end])) for run, end in ends if end is not None]
    found, problems = spread_over_clients(at, tag.removeprefix("eval/"))
    unread |= problems
    return found


def _final(method: Method, tags: Sequence[str]) -> Final:
    """Where a method ended: finished runs at their ends, else the others at the last round that all have evaluated."""
    runs = [run for run in method.runs if run.status in DONE]
    at = {run.path: index for run in runs if (index := _last(run, tags[0])) is not None}
    common = None
    if not at:
        runs = [run for run in method.runs if run.status in (UNFINISHED, "interrupted")]
        evaluated = [set(run.rounds[np.isfinite(run.series(tags[0]))].tolist()) for run in runs]
        common = max(set.intersection(*evaluated), default=None) if evaluated else None
        at = {run.path: int(np.searchsorted(run.rounds, common)) for run in runs} if common is not None else {}
    there = [run for run in runs if run.path in at]
    ends = {tag: [run.series(tag)[at[run.path]] for run in there] for tag in tags}
    values = {tag: estimate(found, bounds_of(tag, found)) for tag, found in ends.items()}
    values |= {axis.name: estimate([axis.values(run)[at[run.path]] for run in there]) for axis in AXES}
    known = {name: value for name, value in values.items() if value is not None}
    return Final(known, bool(there) and common is None, None if common is None else int(common))


def _aim(methods: Sequence[Method], tag: str, finals: Sequence[Final]) -> float | None:
    """95 % of the way from the initial model to the best method's final, to three digits."""
    start = estimate([run.series(tag)[0] for method in methods for run in method.runs])
    ends = [final.values[tag].mean for final in finals if tag in final.values]
    if not ends or start is None:
        return None
    best = min(ends) if lower_is_better(tag) else max(ends)
    return float(f"{start.mean + TOWARDS * (best - start.mean):.3g}")


def _difference(method: Method, reference: Method, tag: str, unpaired: dict[str, None]) -> Estimate | None:
    """The difference to the reference, paired by seed, over finished runs with the same data and partition."""
    theirs = {run.seed: run for run in reference.runs if run.status in DONE}
    ours: dict[int, float] = {}
    base: dict[int, float] = {}
    for run in method.runs:
        other = theirs.get(run.seed)
        if other is None or run.status not in DONE:
            continue
        # Seeds pair runs only where they decide the same things: other samples on the clients, and the difference is
        # not one of methods.
        reason = _mismatch(run, other)
        ends = _last(run, tag), _last(other, tag)
        if reason:
            unpaired[f"{method.label}, seed {run.seed}: {reason} than {reference.label}'s"] = None
        elif ends[0] is not None and ends[1] is not None:
            ours[run.seed], base[run.seed] = float(run.series(tag)[ends[0]]), float(other.series(tag)[ends[1]])
    return paired(ours, base)


def _mismatch(run: RecordedRun, other: RecordedRun) -> str:
    """Why two runs with the same seed are no pair, or ""."""
    for part, name in (("data", "other data"), ("partition", "another partition")):
        digests = [(r.provenance.get(part) or {}).get("digest") for r in (run, other)]
        if None in digests:
            return f"no {part} digest on record, so perhaps {name}"
        if digests[0] != digests[1]:
            return name
    return ""


def _cost(method: Method, tag: str, target: float) -> Cost:
    runs = [run for run in method.runs if np.isfinite(run.series(tag)).any()]
    spent = [cost for run in runs if (cost := spent_until(run, tag, target)) is not None]
    means = {axis.name: estimate([cost[axis.name] for cost in spent]) for axis in AXES}
    return Cost({name: value for name, value in means.items() if value is not None}, len(spent), len(method.runs))
