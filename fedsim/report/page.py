"""The page: one HTML file with everything inside, for screens of any width, light or dark, and for paper.

Nothing is requested and no script runs: the horizontal axis of the charts is chosen by radio buttons that the style
sheet reads.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files

import numpy as np

from fedsim.evaluate import lower_is_better
from fedsim.report.charts import Line, chart, legend_line
from fedsim.report.compare import Comparison, Row
from fedsim.report.curves import Curve, smoothing
from fedsim.report.tables import Table, clients_table, costs, name, results_table

SHOWN = 12  # most lines of a chart; the table has all methods
STYLES = 21  # in page.css: seven colours, each solid, dashed and dotted


@dataclass(frozen=True)
class AxisChoice:
    """A horizontal axis that a reader can choose.

    Attributes:
        slug: for ids and classes.
        button: what to click on.
        axis: name of the axis.
        label: with the unit.
        log: logarithmic.
    """

    slug: str
    button: str
    axis: str
    label: str
    log: bool


@dataclass(frozen=True)
class Report:
    """What a report says.

    Attributes:
        title: one line.
        summary: a sentence: how many runs, methods, settings, seeds.
        notes: what a reader must know before believing the numbers, one line each.
        reading: how the numbers were computed, one line each.
        comparisons: one for each setting.
        commands: {method: (command lines, keys of the papers)}.
        origin: {what: value}: versions, machines.
        bibtex: all entries.
    """

    title: str
    summary: str
    notes: tuple[str, ...]
    reading: tuple[str, ...]
    comparisons: tuple[Comparison, ...]
    commands: dict[str, tuple[list[str], list[str]]]
    origin: dict[str, str]
    bibtex: str


def html(report: Report) -> str:
    """The whole file."""
    styles = {label: number % STYLES for number, label in enumerate(report.commands)}
    choices = _choices(report.comparisons)
    inputs = "".join(
        f'<input type="radio" name="axis" id="axis-{choice.slug}"{" checked" if number == 0 else ""}>'
        for number, choice in enumerate(choices)
    )
    chosen = "".join(_chosen(choice.slug) for choice in choices)
    body = [
        f"<h1>{escape(report.title)}</h1><p class=summary>{escape(report.summary)}</p>",
        "".join(f"<p class=note>{escape(note)}</p>" for note in report.notes),
        inputs + '<input type="checkbox" id="log">',
        *(_setting(comparison, choices, styles) for comparison in report.comparisons),
        "<section><h2>Commands</h2>",
        *_commands(report),
        "</section><section><h2>How to read this</h2><ul>",
        *(f"<li>{escape(line)}</li>" for line in report.reading),
        "</ul></section><section><h2>Origin</h2><div class=wide><table class=origin>",
        *(f"<tr><th>{escape(what)}</th><td>{escape(value)}</td></tr>" for what, value in report.origin.items()),
        f"</table></div></section><section><h2>BibTeX</h2><pre>{escape(report.bibtex)}</pre></section>",
    ]
    style = files("fedsim.report").joinpath("page.css").read_text(encoding="utf-8") + chosen
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(report.title)}</title><style>{style}</style></head><body><main>"
        + "\n".join(body)
        + "</main></body></html>\n"
    )


def _choices(comparisons: Sequence[Comparison]) -> list[AxisChoice]:
    """All axes on which something was measured; megabytes, which span decades, also logarithmic."""
    choices = []
    for axis in {axis.name: axis for comparison in comparisons for axis in comparison.axes}.values():
        slug = re.sub(r"\W+", "-", axis.name).lower()
        choices.append(AxisChoice(slug, axis.name, axis.name, axis.label, False))
        if axis.name == "MB":
            choices.append(AxisChoice(f"{slug}-log", f"{axis.name} (log)", axis.name, f"{axis.label}, log scale", True))
    return choices


def _chosen(slug: str) -> str:
    """The style rules that show an axis, and its button as pressed, while its radio button is checked."""
    return (
        f"#axis-{slug}:checked~section .axis-{slug}{{display:block}}"
        f"#axis-{slug}:checked~section label[for=axis-{slug}]{{background:var(--ink);color:var(--paper)}}"
        f"#axis-{slug}:focus-visible~section label[for=axis-{slug}]{{outline:2px solid var(--s0)}}"
    )


def _setting(comparison: Comparison, choices: Sequence[AxisChoice], styles: dict[str, int]) -> str:
    parts = [
        f"<section><h2>{escape(comparison.setting.label or 'Results')}</h2>",
        _table(results_table(comparison), styles),
    ]
    parts += [f"<p class=small>Not paired: {escape(line)}.</p>" for line in comparison.unpaired]
    spent = costs(comparison)
    if spent:
        parts.append(f"<h3>{escape(spent.title)}</h3>{_table(spent, styles)}")
    parts.append(_over_clients(comparison, styles))
    rows = comparison.rows[:SHOWN]
    if any(row.curves for row in rows):
        buttons = "".join(f'<label for="axis-{choice.slug}">{escape(choice.button)}</label>' for choice in choices)
        legend = "".join(
            f"<span>{legend_line(styles[row.method.label])} {escape(row.method.label)}</span>"
            for row in rows
            if row.curves
        )
        more = len(comparison.rows) - len(rows)
        left_out = f"<p class=small>The {SHOWN} best of {SHOWN + more} methods are drawn.</p>" if more > 0 else ""
        log = '<label for="log" class="switch">log scale for losses</label>'
        parts.append(f"<h3>Curves</h3><div class=bar><b>against</b> {buttons} {log}</div>")
        parts.append(f"<div class=legend>{legend}</div>{left_out}")
        parts += [f"<p class=small>{escape(smoothing(comparison.smooth))}</p>"] if comparison.smooth > 1 else []
        parts.append(f"<div class=charts>{''.join(_charts(comparison, rows, choices, styles))}</div>")
    return "".join([*parts, "</section>"])


def _over_clients(comparison: Comparison, styles: dict[str, int]) -> str:
    """How the main metric is distributed over clients: a table, and the share of clients with at most each value."""
    table = clients_table(comparison)
    parts = [f"<p class=small>{escape(line)}.</p>" for line in comparison.unread]
    if table is not None:
        main = name(comparison.metrics[0])
        lines = [
            Line(
                row.method.label,
                styles[row.method.label],
                found.values,
                found.shares,
                np.full(len(found.values), np.nan),
            )
            for row in comparison.rows[:SHOWN]
            if (found := row.clients) is not None
        ]
        drawn = chart(lines, x=f"{main} of a client", y="share of clients with at most this")
        caption = f"<figcaption>{escape(main)} over clients</figcaption>"
        parts += [f"<h3>{escape(table.title)}</h3>", _table(table, styles)]
        parts += [f"<div class=charts><figure>{caption}{drawn}</figure></div>"]
    return "".join(parts)


def _charts(
    comparison: Comparison, rows: Sequence[Row], choices: Sequence[AxisChoice], styles: dict[str, int]
) -> Iterator[str]:
    """A figure for each metric, in it a drawing for each axis and each scale, of which the style sheet shows one."""
    for tag in comparison.metrics:
        if not any(tag in row.curves for row in rows):
            continue
        drawings = []
        for choice in choices:
            for log_y in (False, True) if lower_is_better(tag) else (False,):
                lines = [
                    _line(row.method.label, styles[row.method.label], curve, choice.axis)
                    for row in rows
                    if (curve := row.curves.get(tag)) is not None and choice.axis in curve.axes
                ]
                goal = comparison.target[1] if comparison.target and comparison.target[0] == tag else None
                drawn = chart(lines, x=choice.label, y=name(tag), log_x=choice.log, log_y=log_y, goal=goal)
                kind = (" log" if log_y else " linear") if lower_is_better(tag) else ""
                drawings.append(f'<div class="drawing axis-{choice.slug}{kind}">{drawn}</div>')
        yield f"<figure><figcaption>{escape(name(tag))}</figcaption>{''.join(drawings)}</figure>"


def _line(label: str, style: int, curve: Curve, axis: str) -> Line:
    """A method's curve against an axis."""
    return Line(label, style, curve.axes[axis], curve.mean, curve.half, curve.seeds, curve.bounds)


def _table(table: Table, styles: dict[str, int]) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in table.columns)
    rows = []
    for cells in table.rows:
        first = f"<th>{legend_line(styles[cells[0].text])} {escape(cells[0].text)}</th>"
        rest = "".join(
            f'<td class="{("best " if c.best else "") + ("", "better", "worse")[c.sign]}">{escape(c.text)}</td>'
            for c in cells[1:]
        )
        rows.append(f"<tr>{first}{rest}</tr>")
    return f"<div class=wide><table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"


def _commands(report: Report) -> Iterator[str]:
    for label, (lines, keys) in report.commands.items():
        cite = f" <span class=small>cite {escape(', '.join(keys))}</span>" if keys else ""
        yield f"<h3>{escape(label)}{cite}</h3><pre>{escape(chr(10).join(lines))}</pre>"
