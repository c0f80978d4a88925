"""Curves with bands as SVG inside a page: text and lines take the page's colours, in light and dark and on paper.

Written directly rather than by matplotlib: a chart is a tenth of the size, drawn in a hundredth of the time (a report
holds dozens), and its styles are the page's classes. ``record.figures`` draws the same for files and TensorBoard.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from fedsim.report.statistics import UNBOUNDED, short

WIDTH, HEIGHT = 640, 380
LEFT, RIGHT, TOP, BOTTOM = 66, 12, 12, 50
LABELS = 174  # room for direct labels
LABEL_LENGTH = 18
DIRECT = 8  # most lines with labels at their ends; above, the legend tells
POINTS = 160  # of a line; more would fall on the same pixels
TINY = 1e-300


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Attributes:
        label: name.
        style: number of its colour and dashes, the same in all charts of a page.
        x: [k].
        y: [k].
        half: [k] half width of the band, NaN for none.
        seeds: [runs, k] of single runs, drawn faintly behind the line where there are several.
        bounds: where the band ends.
    """

    label: str
    style: int
    x: np.ndarray
    y: np.ndarray
    half: np.ndarray
    seeds: np.ndarray | None = None
    bounds: tuple[float, float] = UNBOUNDED


@dataclass(frozen=True)
class Scale:
    """From values to pixels.

    Attributes:
        low: value at ``start``.
        high: value at ``end``.
        start: pixel.
        end: pixel.
        log: logarithmic.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool

    def __call__(self, values: np.ndarray) -> np.ndarray:
        low, high = (math.log10(self.low), math.log10(self.high)) if self.log else (self.low, self.high)
        shown = np.log10(np.maximum(values, TINY)) if self.log else values
        pixels: np.ndarray = self.start + (shown - low) / (high - low) * (self.end - self.start)
        return pixels

    def ticks(self, most: int) -> list[float]:
        """Round values inside the scale."""
        if not self.log:
            return _steps(self.low, self.high, most)
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        stride = max(1, math.ceil((last - first) / most))
        powers = [10.0**power for power in range(first, last + 1, stride)]
        inside = [tick for tick in powers if self.low <= tick <= self.high]
        if len(inside) < 3:  # little more than a decade
            inside = [m * 10.0**p for p in range(first, last + 1) for m in (1, 2, 5)]
            inside = [tick for tick in inside if self.low <= tick <= self.high]
        return inside if len(inside) > 1 else _steps(self.low, self.high, most)


def chart(
    lines: Sequence[Line], *, x: str, y: str, log_x: bool = False, log_y: bool = False, goal: float | None = None
) -> str:
    """An ``<svg>`` element.

    Args:
        lines: drawn in this order.
        x: label of the horizontal axis, with its unit.
        y: label of the vertical axis.
        log_x: logarithmic horizontal axis; what is not positive is left out.
        log_y: the same for the vertical axis.
        goal: a value to mark with a horizontal line.
    """
    drawn = [line for line in (_visible(line, log_x, log_y) for line in lines) if len(line.x)]
    if not drawn:
        return '<p class="none">nothing to draw</p>'
    right = WIDTH - RIGHT - (LABELS if len(drawn) <= DIRECT else 0)
    across = _scale(np.concatenate([line.x for line in drawn]), LEFT, right, log_x, pad=0)
    up = _scale(np.concatenate([line.y for line in drawn]), HEIGHT - BOTTOM, TOP, log_y, pad=0.04)
    names = ", ".join(line.label for line in drawn)
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(f"{y} against {x}: {names}")}">',
        *_frame(across, up, x, y, right),
    ]
    if goal is not None and up.low < goal < up.high:
        at = _n(float(up(np.array([goal]))[0]))
        parts.append(f'<path class="goal" d="M{LEFT} {at}H{right}"/>')
        parts.append(f'<text class="goal-text" x="{LEFT + 6}" y="{_n(at - 5)}">target {goal:g}</text>')
    parts += [_band(line, across, up) for line in drawn]
    parts += [_seeds(line, across, up) for line in drawn]
    parts += [_path(line, across, up) for line in drawn]
    if len(drawn) <= DIRECT:
        parts += _end_labels(drawn, across, up, right)
    return "".join([*parts, "</svg>"])


def legend_line(style: int) -> str:
    """A short piece of a line in a method's style, as SVG, for a legend."""
    return f'<svg class="key" viewBox="0 0 34 10" aria-hidden="true"><path class="line s{style}" d="M1 5H33"/></svg>'


def _visible(line: Line, log_x: bool, log_y: bool) -> Line:
    keep = np.isfinite(line.x) & np.isfinite(line.y)
    keep &= ((line.x > 0) | (not log_x)) & ((line.y > 0) | (not log_y))
    at = np.flatnonzero(keep)
    if len(at) > POINTS:
        at = at[np.unique(np.linspace(0, len(at) - 1, POINTS).round().astype(int))]
    seeds = None if line.seeds is None else line.seeds[:, at]
    return Line(line.label, line.style, line.x[at], line.y[at], line.half[at], seeds, line.bounds)


def _scale(values: np.ndarray, start: float, end: float, log: bool, pad: float) -> Scale:
    low, high = float(values.min()), float(values.max())
    if log:
        low, high = (low, high) if high > low else (low / 2, high * 2)
        room = (high / low) ** pad
        return Scale(low / room, high * room, start, end, True)
    if high <= low:
        low, high = low - max(abs(low), 1) / 2, high + max(abs(high), 1) / 2
    room = pad * (high - low)
    return Scale(low - room, high + room, start, end, False)


def _frame(across: Scale, up: Scale, x: str, y: str, right: float) -> list[str]:
    bottom = HEIGHT - BOTTOM
    parts = []
    for tick in up.ticks(6):
        at = _n(float(up(np.array([tick]))[0]))
        parts.append(f'<path class="grid" d="M{LEFT} {at}H{right}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{_n(at + 4)}" text-anchor="end">{short(tick)}</text>')
    for tick in across.ticks(6):
        at = _n(float(across(np.array([tick]))[0]))
        parts.append(f'<path class="axis" d="M{at} {bottom}v5"/>')
        parts.append(f'<text x="{at}" y="{bottom + 21}" text-anchor="middle">{short(tick)}</text>')
    parts.append(f'<path class="axis" d="M{LEFT} {bottom}H{right}"/>')
    parts.append(
        f'<text class="name" x="{_n((LEFT + right) / 2)}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x)}</text>'
    )
    middle = _n((TOP + bottom) / 2)
    turned = f'transform="rotate(-90 14 {middle})"'
    parts.append(f'<text class="name" x="14" y="{middle}" text-anchor="middle" {turned}>{escape(y)}</text>')
    return parts


def _band(line: Line, across: Scale, up: Scale) -> str:
    seen = np.isfinite(line.half)
    if seen.sum() < 2:
        return ""
    x = across(line.x[seen])
    top, bottom = (
        np.clip(up(np.clip(edge, *line.bounds)), min(up.start, up.end), max(up.start, up.end))
        for edge in (line.y[seen] + line.half[seen], line.y[seen] - line.half[seen])
    )
    outline = _points(np.concatenate([x, x[::-1]]), np.concatenate([top, bottom[::-1]]))
    return f'<path class="band s{line.style}" d="{outline}Z"/>'


def _seeds(line: Line, across: Scale, up: Scale) -> str:
    """The single runs behind their mean, in one path, inside the frame."""
    if line.seeds is None or len(line.seeds) < 2:
        return ""
    drawn = []
    for values in line.seeds:
        seen = np.isfinite(values) & ((values > 0) | (not up.log))
        if seen.sum() > 1:
            y = np.clip(up(values[seen]), min(up.start, up.end), max(up.start, up.end))
            drawn.append(_points(across(line.x[seen]), y))
    return f'<path class="seed s{line.style}" d="{"".join(drawn)}"/>' if drawn else ""


def _path(line: Line, across: Scale, up: Scale) -> str:
    x, y = across(line.x), up(line.y)
    title = f"<title>{escape(line.label)}: {short(float(line.y[-1]))} at the end</title>"
    if len(x) == 1:
        return f'<circle class="dot s{line.style}" cx="{_n(x[0])}" cy="{_n(y[0])}" r="4">{title}</circle>'
    return f'<path class="line s{line.style}" d="{_points(x, y)}">{title}</path>'


def _end_labels(lines: Sequence[Line], across: Scale, up: Scale, right: float) -> list[str]:
    """Names at the ends of the lines, pushed apart so that none covers another."""
    wanted = [float(up(line.y[-1:])[0]) for line in lines]
    order = sorted(range(len(lines)), key=lambda i: wanted[i])
    gap, places = 17.0, [0.0] * len(lines)
    at = -math.inf
    for i in order:
        at = places[i] = max(wanted[i], at + gap)
    at = HEIGHT - BOTTOM + gap
    for i in reversed(order):
        at = places[i] = min(places[i], at - gap)
    parts = []
    for i, line in enumerate(lines):
        end, y = _n(float(across(line.x[-1:])[0])), _n(places[i])
        text = line.label if len(line.label) <= LABEL_LENGTH else f"{line.label[:8]}…{line.label[9 - LABEL_LENGTH :]}"
        parts.append(f'<path class="lead s{line.style}" d="M{end} {_n(wanted[i])}L{right + 8} {y}"/>')
        parts.append(f'<text class="end s{line.style}" x="{right + 11}" y="{_n(y + 4)}">{escape(text)}</text>')
    return parts


def _points(x: np.ndarray, y: np.ndarray) -> str:
    pixels = np.round(np.column_stack([x, y]), 1).ravel().tolist()
    return "M" + "L".join(["%g %g"] * len(x)) % tuple(pixels)


def _steps(low: float, high: float, most: int) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten between ``low`` and ``high``, at most about ``most``."""
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(k * step, 12) + 0.0 for k in range(first, last + 1)]


def _n(value: float) -> float | int:
    """A pixel with one decimal, as short as it gets."""
    rounded = round(float(value), 1)
    return int(rounded) if rounded == int(rounded) else rounded
