"""The tables of a comparison, once as data and then as Markdown and LaTeX."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedsim.evaluate import lower_is_better
from fedsim.report.clients import QUANTILES, ClientSpread
from fedsim.report.compare import Comparison, Cost, Row
from fedsim.report.statistics import Estimate, short

ROUNDING = 1e-9  # half widths below this share of the mean are rounding of equal values
LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
}


@dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
        text: with ± where there is an interval.
        best: the best of its column.
        sign: 1 for a difference that is surely better than the baseline, -1 for surely worse, else 0.
    """

    text: str
    best: bool = False
    sign: int = 0


@dataclass(frozen=True)
class Table:
    """Rows under columns; the first column names the method.

    Attributes:
        title: one line.
        columns: headings.
        rows: cells by row.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


def name(tag: str) -> str:
    """A metric as a heading: ``eval/accuracy`` -> ``accuracy``."""
    return tag.removeprefix("eval/").rpartition("/")[2].replace("_", " ")


def plus_minus(value: Estimate | None) -> str:
    """A mean and the half width of its interval, rounded to two digits of the latter: ``0.897 ± 0.012``.

    An interval that would leave what is possible has its ends: ``0.95 [0.81, 1.00]``. The values themselves, where
    there are too few for an interval: ``0.8969, 0.9012``.
    """
    if value is None:
        return "–"
    if value.half is None:
        return ", ".join(dict.fromkeys(map(short, value.values))) or short(value.mean)
    if value.half <= ROUNDING * abs(value.mean):
        return f"{short(value.mean)} ± 0"
    decimals = 1 - math.floor(math.log10(value.half))
    if decimals > 6 or value.half >= 1e6:
        return f"{value.mean:.4g} ± {value.half:.2g}"
    digits = max(0, decimals)
    if value.cut is not None:
        return f"{value.mean:,.{digits}f} [{value.cut[0]:,.{digits}f}, {value.cut[1]:,.{digits}f}]"
    return f"{value.mean:,.{digits}f} ± {value.half:,.{digits}f}"


def _signed(value: Estimate) -> str:
    """A difference with its sign, or those of too few pairs for an interval."""
    shown = [value.mean] if value.half is not None else value.values or [value.mean]
    if len(shown) > 1:
        return ", ".join(f"{'+' if one >= 0 else ''}{short(one)}" for one in shown)
    return f"{'+' if value.mean >= 0 else ''}{plus_minus(value)}"


def results_table(comparison: Comparison) -> Table:
    """Final values, the difference to the baseline, and what was spent."""
    main, *others = comparison.metrics
    spent = [axis.name for axis in comparison.axes if axis.name != "rounds"]
    paired = any(row.difference is not None for row in comparison.rows)
    against = ["paired difference"] if paired else []
    columns = ("method", "runs", name(main), *against, *(name(tag) for tag in others), *spent)
    best = {tag: _best(comparison.rows, tag) for tag in comparison.metrics}

    def value(row: Row, tag: str) -> Cell:
        so_far = "" if row.final.at is None else f" (round {row.final.at})"
        found, top = row.final.values.get(tag), best[tag]
        wins = row.final.complete and found is not None and top is not None and found.mean == top.mean
        return Cell(plus_minus(found) + so_far, wins)

    def difference(row: Row) -> Cell:
        if row.method.label == comparison.baseline:
            return Cell("baseline")
        if row.difference is None:
            return Cell("–")
        sign = row.difference.sign * (-1 if lower_is_better(main) else 1)
        pairs = row.difference.count
        few = "" if pairs == len(row.method.runs) else f" ({pairs} pair{'s' if pairs > 1 else ''})"
        return Cell(f"{_signed(row.difference)}{few}", sign=sign)

    rows = tuple(
        (
            Cell(row.method.label),
            Cell(runs(row)),
            value(row, main),
            *([difference(row)] if paired else []),
            *(value(row, tag) for tag in others),
            *(Cell(plus_minus(row.final.values.get(axis))) for axis in spent),
        )
        for row in comparison.rows
    )
    return Table("Results", columns, rows)


def costs(comparison: Comparison) -> Table | None:
    """What it took to reach the target for the first time."""
    if comparison.target is None:
        return None
    tag, target = comparison.target
    axes = [axis.name for axis in comparison.axes]
    rows = [(row.method.label, row.cost) for row in comparison.rows if row.cost is not None]
    sure = [cost.spent for _, cost in rows if cost.got == cost.of]
    least = {axis: min((spent[axis].mean for spent in sure if axis in spent), default=math.nan) for axis in axes}

    def cell(cost: Cost, axis: str) -> Cell:
        spent = cost.spent.get(axis)
        wins = len(rows) > 1 and cost.got == cost.of and spent is not None and spent.mean == least[axis]
        return Cell(plus_minus(spent), wins)

    cells = tuple(
        (Cell(label), Cell(f"{cost.got} of {cost.of}"), *(cell(cost, axis) for axis in axes)) for label, cost in rows
    )
    return Table(f"Cost of {name(tag)} {target:g}", ("method", "runs that reach it", *axes), cells)


def clients_table(comparison: Comparison) -> Table | None:
    """How the main metric is distributed over clients, where every client's value was kept."""
    rows = [(row.method.label, row.clients) for row in comparison.rows if row.clients is not None]
    if not rows:
        return None
    sign = -1 if lower_is_better(comparison.metrics[0]) else 1

    def cells(label: str, spread: ClientSpread) -> tuple[Cell, ...]:
        worst_first = spread.values[::sign]
        found = [worst_first[0], *np.quantile(spread.values, [q if sign > 0 else 1 - q for q in QUANTILES.values()])]
        numbers = [*found, worst_first[-1]]
        return Cell(label), Cell(f"{len(spread.values):,}"), *(Cell(short(float(value))) for value in numbers)

    title = f"{name(comparison.metrics[0]).capitalize()} over clients, at the last evaluation"
    columns = ("method", "clients", "worst", *QUANTILES, "best")
    return Table(title, columns, tuple(cells(*row) for row in rows))


def runs(row: Row) -> str:
    """``3`` when all are finished, else how many are in which state."""
    states = row.states
    return (
        str(len(row.method.runs)) if set(states) == {"finished"} else ", ".join(f"{n} {s}" for s, n in states.items())
    )


def markdown(table: Table) -> str:
    """A pipe table."""
    lines = ["| " + " | ".join(_pipe(column) for column in table.columns) + " |"]
    lines.append("|" + "|".join([" :-- "] + [" --: "] * (len(table.columns) - 1)) + "|")
    for row in table.rows:
        texts = [f"**{_pipe(cell.text)}**" if cell.best else _pipe(cell.text) for cell in row]
        lines.append("| " + " | ".join(texts) + " |")
    return "\n".join(lines)


def latex(table: Table, caption: str) -> str:
    """A table of the booktabs package."""
    align = "l" + "r" * (len(table.columns) - 1)
    lines = [r"\begin{table}", r"\centering", rf"\caption{{{tex(caption)}}}", rf"\begin{{tabular}}{{{align}}}"]
    lines += [r"\toprule", " & ".join(tex(column) for column in table.columns) + r" \\", r"\midrule"]
    for row in table.rows:
        texts = [rf"\textbf{{{tex(cell.text)}}}" if cell.best else tex(cell.text) for cell in row]
        lines.append(" & ".join(texts) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}"])


def tex(text: str) -> str:
    """Plain text for LaTeX."""
    escaped = re.sub(r"[\\&%$#_{}~^<>]", lambda match: LATEX[match[0]], text)
    escaped = re.sub(r"^-(?=\d)", "$-$", escaped)
    return escaped.replace("±", r"$\pm$").replace("–", "--")


def _pipe(text: str) -> str:
    return text.replace("|", r"\|")


def _best(rows: Sequence[Row], tag: str) -> Estimate | None:
    """The best final value of the complete rows, when there are two to compare."""
    there = [row.final.values[tag] for row in rows if row.final.complete and tag in row.final.values]
    sign = 1 if lower_is_better(tag) else -1
    return min(there, key=lambda value: sign * value.mean) if len(there) > 1 else None
