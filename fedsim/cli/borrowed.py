"""The process while a command line runs in it: its signals, its garbage, Hydra's log; given back as it was."""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from stat import S_ISCHR
from types import FrameType

from fedsim.ground.interrupts import PATIENCE_S, heard_signals

heard: list[tuple[int, float]] = []
"""The first of the signals that came since the command line began, and when."""


@contextmanager
def borrowed() -> Iterator[None]:
    """The process as a command line wants it, and as it was afterwards."""
    argv, path, log = sys.argv[:], sys.path[:], logging.getLogger()
    handlers, level = log.handlers[:], log.level  # Hydra sets its own
    full, collecting, frozen = os.environ.get("HYDRA_FULL_ERROR"), gc.isenabled(), gc.get_freeze_count()
    main_thread = threading.current_thread() is threading.main_thread()
    heard.clear()
    before = {number: signal.signal(number, _stop) for number in heard_signals()} if main_thread else {}
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # an unexpected exception keeps its whole traceback
    gc.disable()  # importing torch makes a million objects; looking for garbage among them takes a fifth of the time
    try:
        yield
    finally:
        if not frozen:
            gc.unfreeze()
        if collecting:
            gc.enable()
        if full is None:
            del os.environ["HYDRA_FULL_ERROR"]
        log.handlers[:], sys.argv[:], sys.path[:] = handlers, argv, path
        log.setLevel(level)
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


def _stop(number: int, frame: FrameType | None) -> None:
    """On Ctrl-C, SIGTERM and a closed terminal: the run saves what it has and its actors go."""
    now = time.monotonic()
    if heard and now - heard[0][1] < PATIENCE_S:
        return
    heard[:1] = [(number, now)]
    if number == signal.SIGHUP:
        _leave_lost_terminal()
    raise KeyboardInterrupt


def _leave_lost_terminal() -> None:
    """Send output to the null device where it went to a terminal that is gone: writing there would cut the saving."""
    for stream in (1, 2):
        with suppress(OSError), open(os.devnull, "w") as null:
            if S_ISCHR(os.fstat(stream).st_mode) and not os.isatty(stream):
                os.dup2(null.fileno(), stream)
