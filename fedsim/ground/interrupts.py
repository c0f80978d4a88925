"""What must not be cut in two by Ctrl-C."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

PATIENCE_S = 5.0
"""Signals that follow the first one so soon are ignored: a run that was told to stop is saving what it has."""


def heard_signals() -> list[int]:
    """The signals that end a command: SIGHUP, of a closed terminal, unless whoever began it had it ignored (nohup)."""
    return [number for number in SIGNALS if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN]


@contextmanager
def uninterrupted() -> Iterator[None]:
    """A block that Ctrl-C, SIGTERM and SIGHUP wait for, so that what it changes changes completely; keep it short.

    Handlers run in the main thread only; in others there is nothing to wait for.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        came.append(number)

    before = {number: handler for number in SIGNALS if (handler := signal.getsignal(number)) is not None}
    try:
        for number in before:
            signal.signal(number, note)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    for first in came[:1]:
        signal.raise_signal(first)


class Stopping:
    """A block in which a run may be stopped: once it is, further signals do not cut the saving of what it has.

    After ``begin``, signals that Python handles are ignored for ``PATIENCE_S`` seconds; later ones act as they did
    before the block, for somebody who does not want to wait for a slow disk. At the end the handlers are given back.
    """

    def __init__(self) -> None:
        self._before: dict[int, Any] = {}
        self._since = 0.0

    def begin(self) -> None:
        """The run has been stopped and saves what it has."""
        if self._before or threading.current_thread() is not threading.main_thread():
            return
        self._since = time.monotonic()
        for number in SIGNALS:
            handler = signal.getsignal(number)
            if callable(handler):  # what ends the process, or is ignored, stays so
                self._before[number] = handler
                signal.signal(number, self._came)

    def _came(self, number: int, frame: FrameType | None) -> None:
        if time.monotonic() - self._since >= PATIENCE_S:
            self._before[number](number, frame)

    def __enter__(self) -> Stopping:
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
