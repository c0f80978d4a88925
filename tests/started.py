"""The console command in a process of its own, of which nothing outlives the test, however that ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[1]

DIE_WITH_PARENT = """
import ctypes, os, signal, sys
tie = getattr(ctypes.CDLL(None), "prctl", None)  # Linux
if tie:
    tie(1, signal.SIGKILL)  # PR_SET_PDEATHSIG, which exec keeps
os.execv(sys.executable, [sys.executable, "-m", "fedsim", *sys.argv[1:]])
"""
"""So that a process ends also where pytest is killed and can clean up nothing; what Ray it has started follows."""

GONE_S = 300
"""Seconds after which what a killed process has started is taken to stay for ever: no measurement, but no hang."""


@contextmanager
def started(folder: Path, *argv: str) -> Iterator[subprocess.Popen[bytes]]:
    """The console command, working in a folder; it and everything that it started are ended after the block.

    It begins a session (``setsid``), by which whatever it starts is found, and has a temporary folder with a short
    name, where Ray keeps its files: a Ray that is killed leaves them.
    """
    with TemporaryDirectory(prefix="t-", ignore_cleanup_errors=True) as temporary:
        env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TMPDIR": temporary}
        env.pop("RAY_TMPDIR", None)
        process = subprocess.Popen(
            [sys.executable, "-c", DIE_WITH_PARENT, *argv],
            cwd=folder,
            env=env,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            while left := members(process):
                for pid in left:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                time.sleep(0.01)
            process.wait()


def completed(folder: Path, *argv: str) -> int:
    """The exit code of the console command."""
    with started(folder, *argv) as process:
        return process.wait()


def wait_for(metrics: Path, lines: int, process: subprocess.Popen[bytes]) -> None:
    """Return once a process has written so many lines."""
    while not metrics.exists() or metrics.read_bytes().count(b"\n") < lines:
        assert process.poll() is None, "it ended by itself"
        time.sleep(0.005)


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill -9 for one process; whatever it started has to end by itself."""
    process.kill()
    assert process.wait() == -signal.SIGKILL


def assert_gone(process: subprocess.Popen[bytes]) -> None:
    """All that a process started ends by itself, the last of Ray one or two minutes after the process."""
    until = time.monotonic() + GONE_S
    while members(process) and time.monotonic() < until:
        time.sleep(0.05)
    assert members(process) == {}


def members(process: subprocess.Popen[bytes]) -> dict[int, str]:
    """{pid: command line} of the process and of what it started, as far as they have not ended."""
    listed = subprocess.run(["ps", "-s", str(process.pid), "-o", "pid=,stat=,args="], capture_output=True, text=True)
    found = (line.split(maxsplit=2) for line in listed.stdout.splitlines())
    return {int(pid): command for pid, state, command in found if not state.startswith("Z")}
