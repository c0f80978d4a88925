"""A report from runs: what to say about them as a whole, and every file of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedsim.errors import InputError
from fedsim.papers import Paper, papers
from fedsim.report.commands import command
from fedsim.report.compare import Comparison, compare
from fedsim.report.export import rows, write_csv, write_parquet
from fedsim.report.methods import settings
from fedsim.report.page import Report, html
from fedsim.report.runs import UNFINISHED, Run
from fedsim.report.tables import costs, latex, markdown, name, results
from fedsim.run_folder import atomic_file

FILES = ("report.html", "report.md", "table.tex", "papers.bib", "results.csv", "results.parquet")


def build(
    runs: Sequence[Run],
    *,
    title: str = "Comparison",
    metrics: Sequence[str] = (),
    target: tuple[str, float] | None = None,
    baseline: str = "",
    method_keys: Sequence[str] = (),
) -> Report:
    """What there is to say about runs.

    Args:
        runs: at least one.
        title: heading.
        metrics: tags to show, the main one first; empty: chosen from what was evaluated.
        target: tag and value whose first reaching is costed; None: 95 % of the way to the best method's final.
        baseline: label of the method that differences refer to; "": plain FedAvg, else the first.
        method_keys: further keys that make a method.

    Raises:
        InputError: no method has the label ``baseline``.
    """
    found, repeats = settings(runs, method_keys)
    labels = list(dict.fromkeys(method.label for setting in found for method in setting.methods))
    if baseline and baseline not in labels:
        raise InputError(f"--baseline must be one of the methods, got {baseline!r}; methods: {'; '.join(labels)}")
    compared = tuple(compare(s, metrics=metrics, target=target, baseline=baseline) for s in found)
    by_label: dict[str, list[Run]] = {}
    for comparison in compared:
        for row in comparison.rows:
            by_label.setdefault(row.method.label, []).extend(row.method.runs)
    cited: dict[str, Paper] = {}
    commands = {}
    for label, theirs in by_label.items():
        listed = {paper.title: paper for run in theirs for paper in papers(run.config)}
        cited |= {paper.key: paper for paper in listed.values()}
        commands[label] = (command(theirs), [paper.key for paper in listed.values()])
    return Report(
        title,
        _summary(runs, len(labels), len(found)),
        _notes(runs, repeats),
        _reading(compared),
        compared,
        commands,
        _origin(runs),
        "\n\n".join(paper.bibtex() for paper in cited.values()),
    )


def write(report: Report, folder: Path, *, parquet: bool = True) -> list[Path]:
    """Write every file of a report into ``folder``, each whole or not at all; returns them."""
    folder.mkdir(parents=True, exist_ok=True)
    tables = [latex(results(c), _caption(c)) for c in report.comparisons]
    texts = {
        "report.html": html(report),
        "report.md": to_markdown(report),
        "table.tex": "% \\usepackage{booktabs}\n" + "\n\n".join(tables) + "\n",
        "papers.bib": report.bibtex + "\n",
    }
    for file_name, text in texts.items():
        with atomic_file(folder / file_name) as file:
            file.write(text.encode())
    records = rows(report.comparisons)
    write_csv(folder / "results.csv", records)
    if parquet:
        write_parquet(folder / "results.parquet", records)
    return [folder / file_name for file_name in FILES if parquet or file_name != "results.parquet"]


def to_markdown(report: Report) -> str:
    """The report without its charts."""
    parts = [f"# {report.title}", report.summary, *(f"> {note}" for note in report.notes)]
    for comparison in report.comparisons:
        parts += [f"## {comparison.setting.label or 'Results'}", markdown(results(comparison))]
        parts += [f"Not paired: {line}." for line in comparison.unpaired]
        spent = costs(comparison)
        parts += [f"### {spent.title}", markdown(spent)] if spent else []
    parts.append("## Commands")
    parts += [f"{label}:\n\n```bash\n{chr(10).join(lines)}\n```" for label, (lines, _) in report.commands.items()]
    parts += ["## How to read this", "\n".join(f"- {line}" for line in report.reading)]
    parts += ["## Origin", "\n".join(f"- {what}: {value}" for what, value in report.origin.items())]
    parts += ["## BibTeX", f"```bibtex\n{report.bibtex}\n```"]
    return "\n\n".join(parts) + "\n"


def _caption(comparison: Comparison) -> str:
    where = f" ({comparison.setting.label})" if comparison.setting.label else ""
    return f"Final {name(comparison.metrics[0])}{where}: mean and 95 % interval over seeds."


def _summary(runs: Sequence[Run], methods: int, groups: int) -> str:
    states = [run.status for run in runs]
    counts = ", ".join(f"{states.count(status)} {status}" for status in dict.fromkeys(sorted(states)))
    seeds = len({run.seed for run in runs})
    shape = [_count(methods, "method"), *([_count(groups, "setting")] if groups > 1 else []), _count(seeds, "seed")]
    return f"{_count(len(runs), 'run')} ({counts}): {', '.join(shape)}."


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _notes(runs: Sequence[Run], repeats: Sequence[Run]) -> tuple[str, ...]:
    """What a reader must know before believing the numbers."""
    notes = []
    states = [run.status for run in runs]
    if UNFINISHED in states:
        notes.append(f"{_count(states.count(UNFINISHED), 'run')} without a summary: still running, or killed.")
    for status in ("interrupted", "diverged", "failed"):
        if status in states:
            which = ", ".join(str(run.path) for run in runs if run.status == status)
            notes.append(f"{_count(states.count(status), 'run')} {status}, not in the final values: {which}")
    if repeats:
        which = ", ".join(str(run.path) for run in repeats)
        notes.append(f"{_count(len(repeats), 'repeat')} of another run's configuration and seed left out: {which}")
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


def _reading(comparisons: Sequence[Comparison]) -> tuple[str, ...]:
    lines = [
        "Values are means over seeds ± half the width of a 95 % interval (Student's t over the finished runs); one "
        "seed has no interval. Bands in the charts are the same intervals round by round, over the runs that got so "
        "far.",
        "Runs with equal seeds share the partition (its digest, and that of the data, were compared for every pair), "
        "and by construction the cohorts, the initial weights and the batches. Differences are therefore taken seed by "
        "seed; ▲ and ▼ mark those whose 95 % interval leaves zero out, better and worse.",
        "Final values are those of the last evaluation, not the best one. A method none of whose runs is finished "
        "shows where its runs are, at the last round that all of them have reached.",
        "Megabytes (1e6 bytes) are those of the encoded messages on all links since the start. Seconds are the wall "
        "time of rounds, without setting up and evaluation.",
    ]
    if any(comparison.target for comparison in comparisons):
        lines.append(
            "A target counts as reached at the first evaluation that is as good; costs are means over the runs that "
            "got there, bold only where all did. By default the target is 95 % of the way from the initial model to "
            "the best method's final."
        )
    return tuple(lines)


def _origin(runs: Sequence[Run]) -> dict[str, str]:
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
