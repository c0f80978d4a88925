"""The process that a run is a guest of: what is set up for speed where it is fedsim's own, and what a guest gives back.

Knows nothing of runs, and does not import torch or ray.
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
import random
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_own: list[bool] = []


def claim() -> None:
    """Say that this process is fedsim's own, as that of a command line and that of a worker are.

    A process that only calls ``fedsim.simulate`` is its caller's, and keeps the settings that it has.
    """
    _own[:] = [True]


def keep_memory() -> None:
    """Tell glibc to keep freed buffers instead of handing them back to the kernel, page by page, at every step.

    Stacked gradients are tens of megabytes; faulting them in afresh costs a fifth of a round of a small MLP. Costs up
    to 100 MB of resident memory. Nothing happens elsewhere than on glibc, nor in a process that is not ``claim``ed:
    what malloc was told before cannot be read, so it could not be given back.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if _own and sys.platform == "linux" else None
    if mallopt is not None:
        for option, value in ((-4, 0), (-1, 2**31 - 1), (-2, 2**26)):  # M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD
            mallopt(option, value)


@contextmanager
def given_back(*names: str) -> Iterator[None]:
    """Undo what a library does to the process in the block.

    Given back are the handler of SIGTERM, ``sys.excepthook``, the fault handler, the state of ``random``, and the
    environment variables whose names begin with one of ``names``.
    """
    main = threading.current_thread() is threading.main_thread()
    handler, hook, enabled = signal.getsignal(signal.SIGTERM), sys.excepthook, faulthandler.is_enabled()
    numbers = random.getstate()  # Ray draws ports and names
    before = {name: value for name, value in os.environ.items() if name.startswith(names)}
    try:
        yield
    finally:
        for name in [name for name in os.environ if name.startswith(names) and name not in before]:
            del os.environ[name]
        os.environ.update(before)
        if faulthandler.is_enabled() and not enabled:
            faulthandler.disable()
        sys.excepthook = hook
        random.setstate(numbers)
        if main and handler is not None:  # None: set by a library in C, which Python cannot set again
            signal.signal(signal.SIGTERM, handler)
