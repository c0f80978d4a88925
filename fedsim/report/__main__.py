"""``fedsim-report DIR...``: a comparison of all runs below the folders, as HTML, Markdown, LaTeX, CSV and Parquet."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.box import ROUNDED
from rich.markup import escape
from rich.table import Table as Shown

from fedsim.errors import InputError, require
from fedsim.ground.console import Terminal, error
from fedsim.report.export import NO_PARQUET
from fedsim.report.page import Report
from fedsim.report.report import build_report, write
from fedsim.report.runs import find_runs
from fedsim.report.sweeps import read_runs
from fedsim.report.tables import Table, costs, results_table

SHOWN = 5  # columns in the terminal; the files have all


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0, or 2 for a user's error."""
    args = _parser().parse_args(argv)
    console = Terminal()
    try:
        runs, notes = read_runs(find_runs(args.folders))
        if not runs:
            raise InputError("\n".join(notes))
        require(args.smooth >= 1, "--smooth", "be a number of evaluations >= 1", args.smooth)
        target = _target(args.target)
        metrics = [_tag(name) for name in args.metric]
        title = args.title or f"Comparison of the runs in {', '.join(folder.resolve().name for folder in args.folders)}"
        report = build_report(
            runs,
            title=title,
            metrics=metrics,
            target=target,
            baseline=args.baseline,
            method_keys=args.method,
            notes=notes,
            smooth=args.smooth,
        )
        out = args.out or args.folders[0] / "report"
        parquet = importlib.util.find_spec("pyarrow") is not None
        files = write(report, out, parquet=parquet)
        if not args.no_figures:
            from fedsim.report.curve_files import write_charts

            files += write_charts(report, out)
    except InputError as problem:
        for line in str(problem).splitlines():
            error(line)
        return 2
    except OSError as problem:
        error(f"{problem.filename}: {problem.strerror}; choose another folder with --out")
        return 2
    _show(report, console)
    for line in [*report.notes, *([] if parquet else [NO_PARQUET])]:
        console.print(f"[yellow]note[/]  {escape(line)}", soft_wrap=True)
    for file in files:
        console.print(f"[bold]wrote[/] {escape(str(file))}", soft_wrap=True)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fedsim-report", description=str(__doc__).partition(": ")[2])
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="run folders, or folders with runs below")
    parser.add_argument("--out", type=Path, help="where the report goes (default: DIR/report of the first DIR)")
    parser.add_argument("--title", help="heading of the report")
    parser.add_argument(
        "--target",
        metavar="METRIC=VALUE",
        help="what reaching is costed, for example accuracy=0.9 (default: 95 %% of the way)",
    )
    parser.add_argument(
        "--metric", action="append", default=[], metavar="METRIC", help="metrics to show, the main one first; repeat it"
    )
    parser.add_argument(
        "--baseline",
        default="",
        metavar="METHOD",
        help="label of the method that differences refer to (default: FedAvg)",
    )
    parser.add_argument(
        "--method",
        action="append",
        default=[],
        metavar="KEY",
        help="a further key that makes a method, for example local.steps or schedule; repeat it",
    )
    parser.add_argument(
        "--smooth",
        type=int,
        default=1,
        metavar="N",
        help="draw means of each run's last N evaluations, and say so (default: 1, as measured)",
    )
    parser.add_argument("--no-figures", action="store_true", help="leave out curves.pdf and TensorBoard's picture")
    return parser


def _target(text: str | None) -> tuple[str, float] | None:
    if text is None:
        return None
    name, _, value = text.partition("=")
    try:
        return _tag(name), float(value)
    except ValueError:
        raise InputError(f"--target must be METRIC=VALUE, for example accuracy=0.9, got {text!r}") from None


def _tag(name: str) -> str:
    return name if "/" in name else f"eval/{name}"


def _show(report: Report, console: Terminal) -> None:
    for comparison in report.comparisons:
        for table in (results_table(comparison), costs(comparison)):
            if table is not None:
                console.print(_rich(table, comparison.setting.label))


def _rich(table: Table, label: str) -> Shown:
    shown = Shown(title=escape(f"{label}: {table.title}" if label else table.title), box=ROUNDED, border_style="dim")
    for number, column in enumerate(table.columns[:SHOWN]):
        shown.add_column(escape(column), justify="right" if number else "left")
    colours = {1: "green", -1: "red", 0: ""}
    for row in table.rows:
        texts = []
        for cell in row[:SHOWN]:
            style = "bold" if cell.best else colours[cell.sign]
            texts.append(f"[{style}]{escape(cell.text)}[/]" if style else escape(cell.text))
        shown.add_row(*texts)
    return shown


if __name__ == "__main__":
    sys.exit(main())
