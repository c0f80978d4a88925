"""What TensorBoard shows of a sweep as a whole: ``tensorboard/`` in its folder, beside the runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path

from fedsim.errors import InputError, first_line
from fedsim.ground.console import warning
from fedsim.record.hparams_page import experiment
from fedsim.record.tensorboard import PICTURES, EventFile, own_event_files
from fedsim.report.runs import RecordedRun, read_run
from fedsim.sweep.state import State

MOST = 20
"""Runs that are read for it: enough to know what varies, and quickly read."""


def write_overview(sweep: Path, states: Sequence[State]) -> None:
    """Write the columns of the hyper-parameters page, from runs spread over the sweep; again when it has grown."""
    runs = list(islice(_runs(sweep, states), MOST))
    if not runs:
        return
    folder = sweep / "tensorboard"
    try:
        old = own_event_files(folder, PICTURES)
        events = EventFile(folder, None)
        events.columns(
            experiment([run.flat for run in runs], {tag for run in runs for tag in run.metrics if "/" in tag})
        )
        events.close()
        for file in old:
            file.unlink()
    except OSError as error:
        warning(f"{folder} is not written: {first_line(error)}")


def _runs(sweep: Path, states: Sequence[State]) -> Iterator[RecordedRun]:
    """Runs that can be read: of many, the first of every few jobs."""
    step = -(-len(states) // MOST)
    for state in states[:: step or 1]:
        with suppress(InputError):  # of a job that has not begun, or failed before its first round
            yield read_run(sweep / state.folder)
