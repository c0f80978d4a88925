"""The curves of a report as files: a PDF for papers, and pictures for TensorBoard beside the runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.figure import Figure

from fedsim.evaluate import lower_is_better
from fedsim.ground.files import atomic_file
from fedsim.record.figures import curves
from fedsim.record.hparams_page import experiment
from fedsim.record.tensorboard import PICTURES, EventFile, Picture, own_event_files
from fedsim.report.axes import Axis
from fedsim.report.compare import Comparison
from fedsim.report.curves import smoothing
from fedsim.report.page import SHOWN, Report
from fedsim.report.tables import name

MOST = 3  # settings drawn, at a second each; the page has all
DECADE = 10  # losses that span more are drawn on a logarithmic scale
DRAWN = ("rounds", "MB", "epsilon", "virtual time")  # axes in files; the page has all


def write_charts(report: Report, folder: Path) -> list[Path]:
    """Write the charts of the first settings.

    ``curves.pdf`` has a page for each chart; ``tensorboard/`` has those against rounds and the columns of the
    hyper-parameters page, and replaces what an earlier report left there.
    """
    charts = [chart for comparison in report.comparisons[:MOST] for chart in _charts(comparison)]
    if not charts:
        return []
    for old in own_event_files(folder / "tensorboard", PICTURES):
        old.unlink()
    events = EventFile(folder / "tensorboard", None)
    runs = [run for comparison in report.comparisons for row in comparison.rows for run in row.method.runs]
    events.columns(experiment([run.flat for run in runs], {tag for run in runs for tag in run.metrics if "/" in tag}))
    with atomic_file(folder / "curves.pdf") as file, PdfPages(file, metadata={"CreationDate": None}) as pages:
        for tag, axis, figure in charts:
            if axis.name == "rounds":
                events.picture(tag, Picture.of(figure), 0)
                figure.set_layout_engine("none")  # it has its layout now, and finding one is half of the work
            pages.savefig(figure)
    events.close()
    return [folder / "curves.pdf", folder / "tensorboard"]


def _charts(comparison: Comparison) -> Iterator[tuple[str, Axis, Figure]]:
    """A tag, an axis and a figure for each metric and axis."""
    where = f"{comparison.setting.label}/" if comparison.setting.label else ""
    for tag in comparison.metrics:
        for axis in comparison.axes:
            found = {
                row.method.label: curve
                for row in comparison.rows[:SHOWN]
                if (curve := row.curves.get(tag)) is not None and axis.name in curve.axes
            }
            if axis.name not in DRAWN or not found:
                continue
            series = {label: (curve.axes[axis.name], curve.mean) for label, curve in found.items()}
            behind = {label: (curve.seeds, curve.half, curve.bounds) for label, curve in found.items()}
            means = np.concatenate([curve.mean for curve in found.values()])
            log = ("y",) if lower_is_better(tag) and 0 < DECADE * means.min() < means.max() else ()
            said = [comparison.setting.label, smoothing(comparison.smooth) if comparison.smooth > 1 else ""]
            figure = curves(series, "\n".join(filter(None, said)), x=axis.label, y=name(tag), log=log, behind=behind)
            yield f"comparison/{where}{name(tag)}", axis, figure
