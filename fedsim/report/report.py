"""A report from runs: what to say about them as a whole, and every file of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fedsim.errors import InputError
from fedsim.ground.files import atomic_file
from fedsim.record.papers import Paper, papers
from fedsim.report.about import origin, reading, summary, warnings
from fedsim.report.command_lines import command_lines
from fedsim.report.compare import Comparison, compare
from fedsim.report.export import rows, write_csv, write_parquet
from fedsim.report.methods import settings
from fedsim.report.page import Report, html
from fedsim.report.runs import RecordedRun
from fedsim.report.tables import clients_table, costs, latex, markdown, name, results_table

FILES = ("report.html", "report.md", "table.tex", "papers.bib", "results.csv", "results.parquet")


def build_report(
    runs: Sequence[RecordedRun],
    *,
    title: str = "Comparison",
    metrics: Sequence[str] = (),
    target: tuple[str, float] | None = None,
    baseline: str = "",
    method_keys: Sequence[str] = (),
    notes: Sequence[str] = (),
    smooth: int = 1,
) -> Report:
    """What there is to say about runs.

    Args:
        runs: at least one.
        title: heading.
        metrics: tags to show, the main one first; empty: chosen from what was evaluated.
        target: tag and value whose first reaching is costed; None: 95 % of the way to the best method's final.
        baseline: label of the method that differences refer to; "": plain FedAvg, else the first.
        method_keys: further keys that make a method.
        notes: what else a reader must know, one line each.
        smooth: evaluations of a run of which a point of the curves is the mean; 1: as measured.

    Raises:
        InputError: no method has the label ``baseline``.
    """
    found, repeats = settings(runs, method_keys)
    labels = list(dict.fromkeys(method.label for setting in found for method in setting.methods))
    if baseline and baseline not in labels:
        raise InputError(f"--baseline must be one of the methods, got {baseline!r}; methods: {'; '.join(labels)}")
    compared = tuple(compare(s, metrics=metrics, target=target, baseline=baseline, smooth=smooth) for s in found)
    by_label: dict[str, list[RecordedRun]] = {}
    for comparison in compared:
        for row in comparison.rows:
            by_label.setdefault(row.method.label, []).extend(row.method.runs)
    cited: dict[str, Paper] = {}
    commands = {}
    for label, theirs in by_label.items():
        listed = {paper.title: paper for run in theirs for paper in papers(run.config)}
        cited |= {paper.key: paper for paper in listed.values()}
        commands[label] = (command_lines(theirs), [paper.key for paper in listed.values()])
    return Report(
        title,
        summary(runs, len(labels), len(found)),
        (*notes, *warnings(runs, repeats)),
        reading(compared),
        compared,
        commands,
        origin(runs),
        "\n\n".join(paper.bibtex() for paper in cited.values()),
    )


def write(report: Report, folder: Path, *, parquet: bool = True) -> list[Path]:
    """Write every file of a report into ``folder``, each whole or not at all; returns them."""
    folder.mkdir(parents=True, exist_ok=True)
    tables = [latex(results_table(c), _caption(c)) for c in report.comparisons]
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
        parts += [f"## {comparison.setting.label or 'Results'}", markdown(results_table(comparison))]
        parts += [f"Not paired: {line}." for line in comparison.unpaired]
        spent = costs(comparison)
        for table in (spent, clients_table(comparison)):
            parts += [f"### {table.title}", markdown(table)] if table else []
        parts += [f"{line}." for line in comparison.unread]
    parts.append("## Commands")
    parts += [f"{label}:\n\n```bash\n{chr(10).join(lines)}\n```" for label, (lines, _) in report.commands.items()]
    parts += ["## How to read this", "\n".join(f"- {line}" for line in report.reading)]
    parts += ["## Origin", "\n".join(f"- {what}: {value}" for what, value in report.origin.items())]
    parts += ["## BibTeX", f"```bibtex\n{report.bibtex}\n```"]
    return "\n\n".join(parts) + "\n"


def _caption(comparison: Comparison) -> str:
    where = f" ({comparison.setting.label})" if comparison.setting.label else ""
    few = all(
        row.final.values[tag].half is None
        for row in comparison.rows
        if (tag := comparison.metrics[0]) in row.final.values
    )
    shown = "values of the seeds" if few else "mean and 95 % interval over seeds"
    return f"Final {name(comparison.metrics[0])}{where}: {shown}."
