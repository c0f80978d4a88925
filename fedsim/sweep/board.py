"""What a sweep shows: one live table while it runs (plain lines where there is no terminal), one table at its end."""

from __future__ import annotations

import json
import os
import shlex
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from types import TracebackType
from typing import Any

from rich.box import ROUNDED
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from fedsim.evaluate import lower_is_better
from fedsim.ground.console import STATUS_STYLES, Terminal, clock, error, headline, number
from fedsim.record.provenance import git_state
from fedsim.sweep.state import State

ENDED = ("finished", "stopped", "diverged", "failed", "interrupted")
STYLES = {**STATUS_STYLES, "pending": "dim", "running": "bold cyan"}
TAIL = 2**16  # bytes; a line of metrics.jsonl is shorter


@dataclass
class _Run:
    """What is known about a job that is running."""

    begun: float
    first: tuple[int, float] | None = None  # round and time of the first look: eta leaves out what came before
    done: int = 0
    scores: str = ""


class Board:
    """The progress of a sweep, as a context manager.

    Args:
        sweep: its folder.
        states: its jobs, those done before included.
        console: where to, default standard output.
    """

    def __init__(self, sweep: Path, states: Sequence[State], console: Console | None = None) -> None:
        self._sweep = sweep
        self._states = {state.identity: state for state in states}
        self._runs: dict[str, _Run] = {}
        self._console = console or Terminal()
        self._live: Live | None = None
        if self._console.is_terminal and not self._console.is_dumb_terminal and self._console.file.isatty():
            self._live = Live(console=self._console, auto_refresh=False, transient=True)

    def __enter__(self) -> Board:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        if self._live:
            self._live.stop()

    def started(self, state: State) -> None:
        """A job begins."""
        self._runs[state.identity] = _Run(time.monotonic())

    def ended(self, state: State) -> None:
        """A job is over, whatever its status."""
        self._states[state.identity] = state
        run = self._runs.pop(state.identity)
        if state.status in ("failed", "diverged"):
            error(failure_line(state, self._sweep))
        if self._live is None:
            done = sum(one.status in ENDED for one in self._states.values())
            took = clock(time.monotonic() - run.begun)
            parts = (f"[{done}/{len(self._states)}]", state.name, state.status, _scores(state.summary), took)
            self._console.print("  ".join(part for part in parts if part), markup=False, soft_wrap=True)

    def stopped(self) -> None:
        """Say that Ctrl-C stopped the sweep, and how to go on."""
        self._console.print("stopped; the same command goes on from here")

    def refresh(self) -> None:
        """Look at what the jobs have written since."""
        if self._live is None:
            return
        for key, run in self._runs.items():
            record = last_record(self._sweep / self._states[key].folder)
            if record:
                run.done = int(record["round"])
                run.first = run.first or (run.done, time.monotonic())
                run.scores = "  ".join(f"{name} {number(value)}" for name, value in headline(record).items())
        self._live.update(self._table(max(5, self._console.height - 6)), refresh=True)

    def _table(self, rows: int) -> Table:
        counts = Counter("running" if key in self._runs else s.status for key, s in self._states.items())
        caption = ", ".join(f"{count} {status}" for status, count in counts.items())
        table = Table(box=ROUNDED, border_style="dim", caption=caption)
        for name in ("job", "status", "round", "scores", "eta"):
            table.add_column(name, no_wrap=name != "job")
        order = sorted(self._states.values(), key=lambda s: (s.identity not in self._runs, s.status in ENDED, s.number))
        shown = {state.identity for state in order[:rows]}
        for key, state in self._states.items():
            if key not in shown:
                continue
            run = self._runs.get(key)
            status = "running" if run else state.status
            done, scores = (run.done, run.scores) if run else (state.rounds, _scores(state.summary))
            left = ""
            if run and run.first and run.done > run.first[0]:
                per_round = (time.monotonic() - run.first[1]) / (run.done - run.first[0])
                left = clock(per_round * (state.rounds_total - run.done))
            table.add_row(
                Text(state.name),
                Text(status, STYLES.get(status, "bold red")),
                f"{done}/{state.rounds_total}",
                scores,
                left,
            )
        return table


def skipped(states: Sequence[State], todo: Sequence[State], console: Console | None = None) -> None:
    """Say which jobs are not run again, and what to do about it."""
    kept = [state for state in states if state not in todo]
    if not kept:
        return
    counts = Counter(state.status for state in kept)
    text = f"{len(kept)} of {len(states)} jobs are done: {', '.join(f'{n} {status}' for status, n in counts.items())}"
    here = git_state(Path(__file__))
    elsewhere = sum(1 for s in kept if s.code and here and s.code["commit"] not in (None, here["commit"]))
    notes = [f"{elsewhere} by another commit of fedsim, hydra.sweep.dir=NEW runs all anew"] if elsewhere else []
    notes += ["sweep.retry=true runs failed ones again"] if counts["failed"] else []
    (console or Terminal()).print("; ".join((text, *notes)), markup=False, soft_wrap=True)


def failure_line(state: State, sweep: Path) -> str:
    """One line about a job that failed or diverged: its name, why, and where its output is."""
    log = sweep / state.folder / "output.log"
    end = f"the run diverged: {state.message}" if state.status == "diverged" else state.message
    printed = log.exists() and log.stat().st_size > 0  # a job that was killed leaves an empty one
    return f"{state.name}: {end}" + (f" ({_relative(log)})" if printed else "")


def print_results(sweep: Path, states: Sequence[State], console: Console | None = None) -> None:
    """Print one table of what the sweep came to, mean over seeds, best first, and the commands that look closer."""
    console = console or Terminal()
    methods: dict[tuple[str, ...], list[State]] = {}
    for state in states:
        methods.setdefault(tuple(text for text in state.varied if not text.startswith("seed=")), []).append(state)
    tag = next((t for s in states if s.summary for t in headline(_flat(s.summary, "last"))), "loss")
    rows = {method: _means([s.summary for s in jobs if s.summary], f"eval/{tag}") for method, jobs in methods.items()}
    down = lower_is_better(tag)
    worst = float("inf") if down else float("-inf")
    best = sorted(methods, key=lambda method: rows[method].get("last", worst), reverse=not down)
    table = Table(box=ROUNDED, border_style="dim")
    for name in ("method", "runs", f"{tag} last", "best", "status"):
        table.add_column(name, justify="left" if name in ("method", "status") else "right")
    for method in best:
        cells = [number(rows[method][key]) if key in rows[method] else "-" for key in ("last", "best")]
        counts = Counter(state.status for state in methods[method])
        status = ", ".join(s if len(counts) == 1 else f"{count} {s}" for s, count in counts.items())
        table.add_row(Text(" ".join(method) or "-"), str(len(methods[method])), *cells, Text(status, _style(counts)))
    console.print(table)
    commands = (("curves", ["tensorboard", "--logdir"]), ("report", ["fedsim-report"]))
    for name, command in (("folder", []), *commands):
        text = shlex.join([*command, _relative(sweep)])
        console.print(Text.assemble((f"{name}  ", "bold"), text), soft_wrap=True)


def last_record(folder: Path) -> dict[str, Any] | None:
    """The last whole line of a run's metrics, None before there is one."""
    try:
        with (folder / "metrics.jsonl").open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
            lines = file.read().rpartition(b"\n")[0].splitlines()
        return {key: value for key, value in json.loads(lines[-1]).items() if value is not None} if lines else None
    except (OSError, ValueError):
        return None


def last_score(summary: Mapping[str, Any], tag: str | None = None) -> tuple[str, float]:
    """A tag of a summary, by default of the score that stands first, and its last value; NaN where it has none."""
    flat = _flat(summary, "last")
    if tag is not None and isinstance(summary.get(tag), (int, float)):  # bytes, epsilon: one number for the run
        return tag, float(summary[tag])
    name = tag or next((f"eval/{name}" for name in headline(flat)), "eval/loss")
    return name, flat.get(name, float("nan"))


def _flat(summary: Mapping[str, Any], which: str) -> dict[str, float]:
    found = {tag: value[which] for tag, value in summary.items() if tag.startswith("eval/")}
    return {tag: value for tag, value in found.items() if value is not None}


def _scores(summary: Mapping[str, Any] | None) -> str:
    if summary is None:
        return ""
    return "  ".join(f"{name} {number(value)}" for name, value in headline(_flat(summary, "last")).items())


def _means(summaries: Sequence[Mapping[str, Any]], tag: str) -> dict[str, float]:
    found = {which: [_flat(s, which)[tag] for s in summaries if tag in _flat(s, which)] for which in ("last", "best")}
    return {which: fmean(values) for which, values in found.items() if values}


def _style(counts: Mapping[Any, int]) -> str:
    return STYLES.get(next(iter(counts)), "bold red") if len(counts) == 1 else "bold yellow"


def _relative(path: Path) -> str:
    """The path from the current folder where it lies in there, else the whole path."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
