"""Runs that are interrupted: by a schedule, or by signals once they have written some records."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import ClassVar

from fedsim.schedule import Uniform


@dataclass(frozen=True)
class Stopped(Uniform):
    """Uniform cohorts; Ctrl-C comes as one of these rounds begins."""

    rounds: ClassVar[set[int]] = set()

    def clients(self, index: int, population: int, seed: int) -> tuple[int, ...]:
        if index in self.rounds and sys._getframe(1).f_code.co_name == "cohort_of":
            self.rounds.discard(index)
            signal.raise_signal(signal.SIGINT)
        return super().clients(index, population, seed)


@contextmanager
def signalled(folder: Path, *numbers: int) -> Iterator[None]:
    """Signals to this process, one right after the other, once the run in ``folder`` has written three lines."""
    metrics, ended = folder / "metrics.jsonl", threading.Event()

    def watch() -> None:
        while not ended.wait(0.002):
            if metrics.exists() and metrics.read_bytes().count(b"\n") > 2:
                for number in numbers:
                    os.kill(os.getpid(), number)
                return

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


@contextmanager
def late_ctrl_c_ignored() -> Iterator[None]:
    """For the command line, which has its own handler: a signal that comes when it has ended does not end the tests."""

    def ignore(number: int, frame: FrameType | None) -> None:
        pass

    before = signal.signal(signal.SIGINT, ignore)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
