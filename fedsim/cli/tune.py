"""``fedsim tune``: measures kernels on this processor and writes the constants of the kernel rule that suit it best."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from fedsim.assembly.problems import did_you_mean
from fedsim.errors import InputError
from fedsim.ground.console import Terminal, note
from fedsim.kernels.choosing import Measured, Way, best, mean_seconds, way_of
from fedsim.kernels.kernel import Kernel
from fedsim.kernels.timing import CASES, measure
from fedsim.kernels.tuning import Tuning, built_in_row
from fedsim.kernels.tuning_file import users_file, write_table
from fedsim.record.provenance import cpu_capability, cpu_model

REPEATS, QUICK = 15, 3
"""How often each way is timed."""
LOOPS: tuple[Kernel, Kernel] = ("loop", "loop_last")
SAID = {"loop": "alone", "loop_last": "alone, last"}


def tune(out: Path | None, names: Sequence[str], *, quick: bool = False) -> int:
    """Measure, choose, show and write; returns the exit code.

    Args:
        out: the file; None: the one that later runs find by themselves.
        names: of the models that are measured; none: all.
        quick: time each way a few times only.

    Raises:
        InputError: there is no such model, or the file cannot be written.
    """
    if unknown := [name for name in names if name not in CASES]:
        meant = did_you_mean(unknown[0], CASES)
        raise InputError(f"--models must be some of {', '.join(CASES)}, got {unknown[0]}; {meant}".rstrip("; "))
    capability = cpu_capability()
    path = users_file(capability) if out is None else out
    if path is None:
        raise InputError("--out must be given where there is no home folder, got nothing; add --out FILE")
    place = path.resolve()  # of a link what it leads to, so that it stays one
    _require_place(place)
    measured = _measured(list(dict.fromkeys(names)) or list(CASES), QUICK if quick else REPEATS)
    before = built_in_row(capability, "cpu")
    chosen = best(measured, before)
    _show(measured, before, chosen)
    about = {"capability": capability, "processor": cpu_model(), "torch": torch.__version__}
    about |= {"made": datetime.now(timezone.utc).isoformat(timespec="seconds")}
    try:
        write_table(place, chosen, {**about, "measured": [_as_json(one) for one in measured]})
    except OSError as error:
        raise _unwritable(path, str(error.strerror)) from error
    how = "runs on this processor use it from now on" if out is None else f"use it with engine.tuning={path}"
    note(f"written to {path}: {how}; engine.tuning=builtin takes the built-in constants")
    return 0


def _require_place(path: Path) -> None:
    """Raise InputError where the file could not be written after all the measuring."""
    if path.exists() and not path.is_file():
        raise _unwritable(path, "a folder" if path.is_dir() else "something else")
    folder = next(folder for folder in path.parents if folder.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise _unwritable(path, f"{folder}, in which nothing can be made")


def _unwritable(path: Path, got: str) -> InputError:
    return InputError(
        f"--out must be a file that can be written, got {path}: {got}; choose another one with --out FILE"
    )


def _measured(names: Sequence[str], repeats: int) -> list[Measured]:
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=None), MofNCompleteColumn(), TimeElapsedColumn())
    found = []
    with Progress(*columns, console=Console(stderr=True)) as bars:
        bar = bars.add_task("measuring", total=repeats * len(names))
        for number, name in enumerate(names):
            bars.update(bar, description=f"measuring {name}", completed=repeats * number)
            found.append(measure(name, repeats, lambda: bars.advance(bar)))
        bars.update(bar, description="measured", completed=repeats * len(names))
    return found


def _show(measured: Sequence[Measured], before: Tuning, chosen: Tuning) -> None:
    """What was measured, what was chosen, and what that gains."""
    times = Table(title="milliseconds of a client and step, one core", header_style="dim", border_style="dim")
    for head in ("model", "one by one", "channels last", "built in", "chosen", "gain"):
        times.add_column(head, justify="right" if head != "model" else "left", overflow="fold")
    for one in measured:
        ways = [way_of(one.shape, tuning) for tuning in (before, chosen)]
        alone = (one.seconds.get(Way(kernel, 1)) for kernel in LOOPS)
        taken = (f"{_ms(one.at(way))} {_said(way)}" for way in ways)
        gain = one.at(ways[0]) / one.at(ways[1])
        times.add_row(one.name, *(_ms(s) for s in alone), *taken, f"{gain:.2f}")
    constants = Table(title="constants", header_style="dim", border_style="dim")
    for head in ("", "built in", "chosen"):
        constants.add_column(head, justify="right" if head else "left")
    for name, value in asdict(before).items():
        constants.add_row(name, *(_word(v) for v in (value, getattr(chosen, name))))
    terminal = Terminal()
    terminal.print(times)
    terminal.print(constants)
    gain = mean_seconds(measured, before) / mean_seconds(measured, chosen)
    note(f"chosen over built in: {gain:.2f} times faster, in the geometric mean of these models")


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1000 * seconds:.3g}"


def _said(way: Way) -> str:
    """A way in few words: ``(5 stacked)``."""
    return f"({way.block} stacked)" if way.kernel == "stacked" else f"({SAID[way.kernel]})"


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:,}"


def _as_json(one: Measured) -> dict[str, Any]:
    ways = [{**way._asdict(), "seconds": seconds} for way, seconds in one.seconds.items()]
    return {"model": one.name, **asdict(one.shape), "ways": ways}
