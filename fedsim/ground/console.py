"""What a run shows in a terminal: a live bar, a final table, one clear line per error.

Written through rich: colours and the live bar on terminals only, NO_COLOR respected, ASCII where the encoding asks for
it. Into a pipe or a file go plain lines; a notebook has a bar of its own. One MB is 1e6 bytes.
"""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.box import ROUNDED
from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, Task, TextColumn
from rich.progress import Progress as Bar
from rich.table import Column, Table
from rich.text import Text

from fedsim.ground.notebook import CellBar

LINES = 10  # of a run's progress when there is no terminal
NARROW = 80  # columns; a bar in less shows one score

STATUS_STYLES = {"finished": "bold green", "stopped": "bold green", "interrupted": "bold yellow"}


class Terminal(Console):
    """Standard output; when its reader goes away (``fedsim ... | head``) the run goes on in silence."""

    def __init__(self) -> None:
        super().__init__(highlight=False)

    def on_broken_pipe(self) -> None:
        """Send the rest to the null device instead of ending the process: a run is worth more than its display."""
        self.quiet = True
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


class Elapsed(ProgressColumn):
    """Time since the bar appeared, ticking between rounds."""

    def render(self, task: Task) -> Text:
        """The time of one task."""
        return Text(clock((task.finished_time if task.finished else task.elapsed) or 0.0))


class Progress:
    """The progress of a run, as a context manager: a bar in a terminal or a notebook, else about ten plain lines."""

    def __init__(self, rounds: int, console: Console | None = None) -> None:
        """Prepare for ``rounds`` rounds; nothing is shown before the block is entered."""
        self._rounds = rounds
        self._console = console or Terminal()
        self._begun = time.monotonic()
        self._first: tuple[int, float] | None = None  # round and time of the first update: eta leaves set-up out
        self._scores: dict[str, float] = {}
        self._tenth = 0
        self._bar: Bar | None = None
        self._cell = CellBar(rounds) if self._console.is_jupyter else None
        if self._console.is_terminal and not self._console.is_dumb_terminal and self._console.file.isatty():
            self._bar = Bar(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=None, table_column=Column(ratio=1, min_width=4)),
                TextColumn("{task.fields[scores]}", markup=False, style="bold"),
                Elapsed(),
                TextColumn("{task.fields[eta]}", markup=False, style="dim"),
                console=self._console,
                refresh_per_second=4,
                expand=True,
            )
            self._task = self._bar.add_task("setting up", total=rounds, scores="", eta="")

    def __enter__(self) -> Progress:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        if self._bar:
            self._bar.stop()
        if self._cell:
            self._cell.close()

    def status(self, text: str) -> None:
        """Say what is going on besides rounds (``setting up: starting 2 Ray actors``), until the next update."""
        if self._bar:
            self._bar.update(self._task, description=text)
        if self._cell:
            self._cell.show(0, text)

    def update(self, record: Mapping[str, float | int]) -> None:
        """Show a round's record; scores that this round did not measure keep their last value."""
        now, done = time.monotonic(), int(record["round"])
        self._scores |= headline(record)
        self._first = first, since = self._first or (done, now)
        left = (now - since) / max(done - first, 1) * (self._rounds - done)
        eta = f"eta {clock(left)}" if first < done < self._rounds else ""
        at = f"round {done}/{self._rounds}"
        shown = list(self._scores.items())[: 1 if self._bar and self._console.width < NARROW else None]
        scores = "  ".join(f"{name} {number(value)}" for name, value in shown)
        if self._bar:
            self._bar.update(self._task, description=at, completed=done, scores=scores, eta=eta)
        elif self._cell:
            self._cell.show(done, at, scores, clock(now - self._begun), eta)
        elif (tenth := LINES * done // self._rounds) > self._tenth:
            self._tenth = tenth
            elapsed = f"elapsed {clock(now - self._begun)}"
            self._console.print(
                "  ".join(part for part in (at, scores, elapsed, eta) if part), markup=False, soft_wrap=True
            )


def headline(record: Mapping[str, float | int]) -> dict[str, float]:
    """The evaluated numbers worth a glance: the first score (accuracy where there is one), then the loss."""
    scores = [tag for tag in record if tag.startswith("eval/") and tag != "eval/loss"]
    first = ["eval/accuracy"] if "eval/accuracy" in scores else scores[:1]
    return {tag.removeprefix("eval/"): float(record[tag]) for tag in (*first, "eval/loss") if tag in record}


def rows_of(summary: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What a run came to in words: (name, value), as the final table and a notebook show them.

    Args:
        summary: ``fedsim.record.run_folder.run_summary(...)``.
    """
    yield "status", summary["status"]
    if summary["status"] == "stopped":
        yield "why", summary.get("message", "")
    for tag, value in summary.items():
        group, _, name = tag.partition("/")
        if group == "eval":
            best = "" if value["best"] is None else f"  (best {number(value['best'])} at round {value['best_round']})"
            yield name.replace("_", " "), f"{number(value['last'])}{best}"
        elif group == "comm":
            if name.endswith("_bytes"):
                between = "between peers" if name == "edge_bytes" else name.removesuffix("_bytes").replace("_", " ")
                yield between, megabytes(value)
            else:
                yield name.replace("_", " "), f"{value:,.4g} times fewer bytes than without a channel"
        elif group in ("privacy", "gossip"):
            yield name.replace("_", " "), value if isinstance(value, str) else f"{value:.4g}"
    wall_s, rounds = summary["time/wall_s"], summary["rounds"]
    yield "rounds", f"{rounds:,}"
    start_s = summary.get("time/start_s", 0.0)  # not in folders of earlier versions
    parts = [f"start {start_s:,.1f} s"] if start_s else []
    parts += [f"{(wall_s - start_s) / rounds:.2g} s per round"] if rounds else []
    yield "time", f"{wall_s:,.1f} s" + (f"  ({', '.join(parts)})" if parts else "")
    capability = summary.get("cpu_capability")  # likewise
    yield "digest", summary["digest"][:16] + (f"  (CPU capability {capability})" if capability else "")


def report(
    summary: Mapping[str, Any],
    folder: str | Path,
    *,
    extra: Mapping[str, str] | None = None,
    logdir: str | Path | None = None,
    words: Sequence[str] = (),
    console: Console | None = None,
) -> None:
    """Print what a run came to, where it is, and how to look at it.

    Args:
        summary: ``fedsim.record.run_folder.run_summary(...)``.
        folder: the run's folder.
        extra: further rows, by name, shown first (for example the algorithm and the data).
        logdir: what TensorBoard should open, default ``folder``; the parent shows runs side by side.
        words: what to say beside the folder to go on.
        console: where to, default standard output.
    """
    console = console or Terminal()
    table = Table(box=ROUNDED, show_header=False, border_style="dim")
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in (extra or {}).items():
        table.add_row(name, Text(value))
    for name, text in rows_of(summary):
        style = STATUS_STYLES.get(text, "bold red") if name == "status" else ""
        table.add_row(name, Text(text, style))
    console.print(table)
    command = shlex.join(["tensorboard", "--logdir", str(logdir or folder)])
    goes_on = summary["status"] in ("interrupted", "stopped")
    more = [("go on", shlex.join(["fedsim", f"resume={folder}", *words]))] if goes_on else []
    for name, value in (("folder", str(folder)), ("curves", command), *more):
        console.print(Text.assemble((f"{name}  ", "bold"), value), soft_wrap=True)


def note(message: str) -> None:
    """One line on standard output."""
    Terminal().print(message, markup=False, soft_wrap=True)


def error(message: str) -> None:
    """One clear line on standard error."""
    Console(stderr=True, highlight=False).print(Text.assemble(("error: ", "bold red"), message), soft_wrap=True)


def warning(message: str) -> None:
    """One clear line on standard error about something that does not stop the run."""
    Console(stderr=True, highlight=False).print(Text.assemble(("warning: ", "bold yellow"), message), soft_wrap=True)


def number(value: float) -> str:
    """Four decimals where they say enough, else four significant digits: ``0.9100``, ``3.1e-07``."""
    return f"{value:.4f}" if 0.01 <= abs(value) < 100 else f"{value:.4g}"


def megabytes(count: float) -> str:
    """Bytes as megabytes of 1e6 bytes: ``12.346 MB (1e6 bytes)``."""
    size = count / 1e6
    return f"{size:,.3f} MB (1e6 bytes)" if size >= 1 else f"{size:.3g} MB (1e6 bytes)"


def clock(seconds: float) -> str:
    """Minutes and seconds, with hours where there are any: ``1:02:03``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
