"""What stands around the tables: how many runs, what to be wary of, how to read it, where it comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedsim.record.strangers import strangers
from fedsim.report.compare import Comparison
from fedsim.report.runs import UNFINISHED, RecordedRun


def summary(runs: Sequence[RecordedRun], methods: int, groups: int) -> str:
    """A sentence that says how many runs there are, of what status, and how many methods, settings and seeds."""
    states = [run.status for run in runs]
    counts = ", ".join(f"{states.count(status)} {status}" for status in dict.fromkeys(sorted(states)))
    seeds = len({run.seed for run in runs})
    shape = [_count(methods, "method"), *([_count(groups, "setting")] if groups > 1 else []), _count(seeds, "seed")]
    return f"{_count(len(runs), 'run')} ({counts}): {', '.join(shape)}."


def _why(run: RecordedRun) -> str:
    """What a run's summary, or the sweep's record of it, says about its end."""
    message = run.summary.get("message") or run.job.get("message")
    return f" ({message})" if message else ""


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def warnings(runs: Sequence[RecordedRun], repeats: Sequence[RecordedRun]) -> tuple[str, ...]:
    """Sentences on what makes the numbers less comparable: runs that did not finish, other code, machines."""
    notes = []
    states = [run.status for run in runs]
    if UNFINISHED in states:
        notes.append(f"{_count(states.count(UNFINISHED), 'run')} without a summary: still running, or killed.")
    for status in ("stopped", "interrupted", "diverged", "failed"):
        which = [f"{run.path}{_why(run)}" for run in runs if run.status == status]
        if which:
            notes.append(f"{_count(len(which), 'run')} {status}: {'; '.join(which)}")
    if repeats:
        paths = ", ".join(str(run.path) for run in repeats)
        notes.append(f"{_count(len(repeats), 'repeat')} of another run's configuration and seed left out: {paths}")
    names = dict.fromkeys(name for run in runs for name in strangers(run.config))
    if names:
        notes.append(f"Classes that are not fedsim's, of which nothing was imported or run here: {', '.join(names)}.")
    codes = {str(run.provenance.get("git")) + str(run.provenance.get("versions")) for run in runs}
    if len(codes) > 1:
        notes.append(f"The runs come from {len(codes)} different versions of the code or its libraries.")
    if any((run.provenance.get("git") or {}).get("dirty") for run in runs):
        notes.append("Some runs come from a checkout with uncommitted changes.")
    machines = {
        str([run.provenance.get(k) for k in ("cpu", "device", "threads")])
        + str([run.flat.get(f"engine.{k}") for k in ("backend", "actors")])
        for run in runs
    }
    if len(machines) > 1:
        notes.append(
            f"Seconds come from {len(machines)} different machines or engine settings: compare them with care."
        )
    return tuple(notes)


def reading(comparisons: Sequence[Comparison]) -> tuple[str, ...]:
    """Sentences that say how the numbers were computed."""
    lines = [
        "Values are means over seeds ± half the width of a 95 % interval (Student's t over the finished runs); of one "
        "seed or two the values themselves stand there, in the order of the seeds. Intervals of accuracies and other "
        "shares end at 0 and 1, and are then written as [from, to]. Bands in the charts are the same intervals round "
        "by round, over the runs that got so far; faint lines are the single seeds.",
        "Runs with equal seeds share the partition (its digest, and that of the data, were compared for every pair), "
        "and by construction the cohorts, the initial weights and the batches. Differences are therefore taken seed by "
        "seed; ▲ and ▼ mark those whose 95 % interval leaves zero out, better and worse.",
        "Final values are those of the last evaluation, not the best one. A method none of whose runs is finished "
        "shows where its runs are, at the last round that all of them have reached.",
        "Megabytes (1e6 bytes) are those of the encoded messages on all links since the start. Seconds are the wall "
        "time of rounds, without setting up and evaluation.",
    ]
    if len(comparisons) > 1:
        lines.append(
            "A setting is what differs besides the methods and the seed; methods are compared within one. "
            "fedsim-report --method KEY counts a key as the method's."
        )
    if any(comparison.target for comparison in comparisons):
        lines.append(
            "A target counts as reached at the first evaluation that is as good; costs are means over the runs that "
            "got there, bold only where all did. By default the target is 95 % of the way from the initial model to "
            "the best method's final."
        )
    if any(row.clients for comparison in comparisons for row in comparison.rows):
        lines.append(
            "Distributions over clients are those of the last evaluation of finished runs, the clients of all seeds "
            "together, those with test samples. Where the metric shall be large, a curve further right is better; "
            "a steep one is fair."
        )
    return tuple(lines)


def origin(runs: Sequence[RecordedRun]) -> dict[str, str]:
    """Versions and machines, each fact once with every value it took."""
    facts: dict[str, dict[str, None]] = {}

    def add(what: str, value: Any) -> None:
        if value not in (None, "", {}):
            facts.setdefault(what, {})[str(value)] = None

    for run in runs:
        known: Mapping[str, Any] = run.provenance
        git = known.get("git") or {}
        add("code", (git.get("commit") or "")[:12] + (" with changes" if git.get("dirty") else ""))
        for package, version in (known.get("versions") or {}).items():
            add(package, version)
        for key in ("python", "platform"):
            add(key, known.get(key))
        cpu = known.get("cpu") or {}
        add("cpu", ", ".join(str(cpu[k]) + (" cores" if k == "cores" else "") for k in cpu))
        add("device", known.get("device"))
        add("threads", known.get("threads"))
        add("data", " ".join(str(v)[:16] for v in (known.get("data") or {}).values()))
    started = sorted(str(run.provenance["started"]) for run in runs if run.provenance.get("started"))
    if started:
        facts["started"] = {f"{started[0]} to {started[-1]}" if started[0] != started[-1] else started[0]: None}
    return {what: "; ".join(values) for what, values in facts.items()}
