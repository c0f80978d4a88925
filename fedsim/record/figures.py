"""Pictures for TensorBoard and papers, as matplotlib figures that touch no global state."""

from __future__ import annotations

import io
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

_COLOURS = "YlGnBu"  # light to dark, also in grey and for colour-blind readers; nothing at all is white
_INK = "#1d4f72"
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#b5548f", "#b8860b", "#2d9cdb", "#5b6570")
"""Colours of lines, told apart by colour-blind readers too (after Okabe and Ito); the same in ``report/page.css``."""
_WIDE = 60  # clients above which single columns are hard to tell apart
_COLUMNS = 400  # most columns of a picture, two pixels wide; above, a column is the mean of neighbours
_NUMBERED = 20  # classes up to which every class is ticked and every cell of a confusion matrix is numbered


def split_by_client(counts: np.ndarray, title: str) -> Figure:
    """Who holds what: the number of training samples of each class on each client, with the sizes above.

    Above 60 clients they are shown ordered by their largest class, then by its share, so that the skew remains visible
    at any number of clients; above 400, a column is the mean of neighbours in that order.

    Args:
        counts: [n, classes] samples by client and class; [n, 1] sizes alone for data without classes.
        title: one line, for example ``digits, dirichlet(alpha=0.5)``.
    """
    clients, classes = counts.shape
    label = "client"
    if classes > 1 and clients > _WIDE:
        share = counts.max(axis=1) / np.maximum(1, counts.sum(axis=1))
        counts = counts[np.lexsort((-share, counts.argmax(axis=1)))]
        label += ", ordered by largest class"
    if clients > _COLUMNS:
        label += " (a column is the mean of neighbours)"
    if classes == 1:
        figure = Figure(figsize=(8, 2.6), layout="constrained")
        _sizes(figure.subplots(), _columns(counts), clients, label)
    else:
        height = float(np.clip(0.22 * classes, 1.6, 5.0))
        figure = Figure(figsize=(8, height + 1.8), layout="constrained")
        sizes, cells = figure.subplots(2, 1, sharex=True, height_ratios=[1.0, height])
        columns = _columns(counts)
        _sizes(sizes, columns, clients, "")
        extent = (-0.5, clients - 0.5, -0.5, classes - 0.5)
        image = _cells(cells, columns.T, max(1, columns.max()), aspect="auto", origin="lower", extent=extent)
        cells.set(xlabel=label, ylabel="class")
        _ticks(cells.yaxis, 10)
        figure.colorbar(image, ax=cells, label="samples of a class", pad=0.01)
    figure.suptitle(title)
    return figure


def curves(
    series: Mapping[str, tuple[np.ndarray, np.ndarray]],
    title: str,
    *,
    x: str,
    y: str,
    log: Collection[str] = (),
    behind: Mapping[str, tuple[np.ndarray, np.ndarray, tuple[float, float]]] | None = None,
) -> Figure:
    """Lines that compare methods, told apart by colour and dashes.

    Args:
        series: {method: (x [k], y [k])}.
        title: one line.
        x: label of the horizontal axis.
        y: label of the vertical axis.
        log: axes with a logarithmic scale, of ``x`` and ``y``; what is not positive is left out there.
        behind: {method: (single runs [runs, k], drawn faintly; half the width of a band [k], NaN where there is none;
            where bands end)}; none of it widens the axes.
    """
    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    axes = figure.subplots()
    styles = ["-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1))]
    for number, (name, (xs, ys)) in enumerate(series.items()):
        keep = ((xs > 0) | ("x" not in log)) & ((ys > 0) | ("y" not in log))
        colour, dashes = PALETTE[number % len(PALETTE)], styles[(number + number // len(PALETTE)) % len(styles)]
        axes.plot(xs[keep], ys[keep], label=name, color=colour, linestyle=dashes, linewidth=1.8)
    if "x" in log:
        axes.set_xscale("log")
    if "y" in log:
        axes.set_yscale("log")
    limits = axes.get_ylim()
    for line, (name, (xs, ys)) in zip(list(axes.lines), series.items(), strict=True):
        if behind is None:
            continue
        runs, half, ends = behind[name]
        for run in runs if len(runs) > 1 else ():
            axes.plot(xs, run, color=line.get_color(), alpha=0.3, linewidth=0.7, zorder=1)
        if np.isfinite(half).any():
            low, high = np.clip(ys - half, *ends), np.clip(ys + half, *ends)
            axes.fill_between(xs, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    axes.set_ylim(limits)
    axes.set(xlabel=x, ylabel=y, title=title)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    return figure


class ShownFigure(Figure):
    """A figure that a notebook shows, whether or not pyplot was ever imported there."""

    def _repr_png_(self) -> bytes:
        png = io.BytesIO()
        self.savefig(png, format="png", dpi=110, facecolor="white")
        return png.getvalue()


def over_rounds(rounds: np.ndarray, series: Mapping[str, np.ndarray], title: str) -> ShownFigure:
    """Metrics of one run against rounds, a drawing for each, one below the other.

    Args:
        rounds: [k].
        series: {label: [k] values, NaN where there is none}.
        title: one line.
    """
    figure = ShownFigure(figsize=(7.5, 0.6 + 2.2 * len(series)), layout="constrained")
    drawings = figure.subplots(len(series), 1, sharex=True, squeeze=False)[:, 0]
    for number, (axes, (label, values)) in enumerate(zip(drawings, series.items(), strict=True)):
        there = np.isfinite(values)
        mark = "o" if there.sum() <= 30 else ""
        axes.plot(rounds[there], values[there], color=PALETTE[number % len(PALETTE)], marker=mark, markersize=3)
        axes.set(ylabel=label.removeprefix("eval/").replace("_", " "))
        axes.grid(alpha=0.25)
    drawings[-1].set(xlabel="round")
    drawings[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.suptitle(title)
    return figure


def confusion(matrix: np.ndarray) -> Figure:
    """Predicted against true classes: colours are shares of the true class, numbers are counts (up to 20 classes).

    Args:
        matrix: [k, k] number of test samples by true (row) and predicted (column) class.
    """
    classes = len(matrix)
    shares = matrix / np.maximum(1, matrix.sum(axis=1, keepdims=True))
    side = 2.6 + 0.34 * classes if classes <= _NUMBERED else 7.0
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    axes = figure.subplots()
    image = _cells(axes, shares, 1)
    accuracy = np.trace(matrix) / max(1, matrix.sum())
    axes.set(xlabel="predicted class", ylabel="true class", title=f"accuracy {accuracy:.1%}")
    if classes <= _NUMBERED:
        axes.set(xticks=range(classes), yticks=range(classes))
        for true, predicted in zip(*np.nonzero(matrix), strict=True):
            colour = "white" if shares[true, predicted] > 0.35 else "black"
            axes.text(predicted, true, f"{matrix[true, predicted]:.0f}", ha="center", va="center", color=colour, size=8)
    else:
        _ticks(axes.xaxis, 10)
        _ticks(axes.yaxis, 10)
    figure.colorbar(image, ax=axes, label="share of the true class", shrink=0.9)
    return figure


def _cells(axes: Axes, values: np.ndarray, top: float, **how: Any) -> AxesImage:
    """A heat map of ``values`` [rows, columns]: zeros white, square-root colours so that a few differ from none."""
    shown = np.ma.masked_equal(values, 0)
    return axes.imshow(shown, cmap=_COLOURS, norm=PowerNorm(0.5, 0, top), interpolation="nearest", **how)


def _columns(counts: np.ndarray) -> np.ndarray:
    """``counts`` [n, classes], or the means of 400 groups of neighbours [400, classes] when n is above 400."""
    clients = len(counts)
    if clients <= _COLUMNS:
        return counts
    starts = np.arange(_COLUMNS) * clients // _COLUMNS
    means: np.ndarray = np.add.reduceat(counts, starts) / np.diff(starts, append=clients)[:, None]
    return means


def _sizes(axes: Axes, columns: np.ndarray, clients: int, xlabel: str) -> None:
    """A step for each client's number of samples, above the columns of the heat map."""
    axes.stairs(columns.sum(axis=1), np.linspace(-0.5, clients - 0.5, len(columns) + 1), fill=True, color=_INK)
    axes.set(xlabel=xlabel, ylabel="samples", xlim=(-0.5, clients - 0.5))
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)
    _ticks(axes.xaxis, 20 if clients <= _WIDE else 8)
    _ticks(axes.yaxis, 3)


def _ticks(axis: Axis, most: int) -> None:
    """About ``most`` ticks at whole numbers, thousands separated."""
    axis.set_major_locator(MaxNLocator(nbins=most, integer=True, min_n_ticks=1))
    axis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
