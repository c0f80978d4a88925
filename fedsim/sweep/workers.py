"""Worker processes that run jobs one after another, so that torch is imported and warmed up once, not once a job.

On Linux they are forked from the process of the command, which has imported torch but computed nothing and started no
thread; elsewhere they are fresh interpreters. A worker ends when the command does, however that happens, even by
kill -9: it watches a pipe whose other end only the command holds.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple

from fedsim.errors import InputError, PoolLost
from fedsim.ground.interrupts import SIGNALS, heard_signals
from fedsim.ground.process import claim
from fedsim.sweep.machine import disk_error, reason

if TYPE_CHECKING:
    from fedsim.sweep.state import SweepFolder

METHOD = "fork" if sys.platform == "linux" else "spawn"


class Ray(NamedTuple):
    """The Ray that jobs share: ``fedsim.pool.ray_start.Shared`` for processes that have not imported ray."""

    address: str
    cpus: int
    auth: dict[str, str]


class Answer(NamedTuple):
    """How a worker comes back from a job; what became of the job is in its state file.

    Attributes:
        stopped: it was told to stop, and ends.
        disk: what the disk said, which stops the sweep; empty where it said nothing. The worker ends then too.
    """

    stopped: bool = False
    disk: str = ""


class Process:
    """A process that this command starts, with a connection to it over which jobs and answers go.

    Args:
        target: what it runs, given its end of the line and ``arguments``.
    """

    _context: Any = multiprocessing.get_context(METHOD)
    _lifeline: tuple[Connection, Connection] | None = None

    def __init__(self, target: Callable[..., None], *arguments: Any) -> None:
        if Process._lifeline is None:
            Process._lifeline = self._context.Pipe(duplex=False)
        read, write = Process._lifeline
        self.line, theirs = self._context.Pipe()
        ends = (self.line, write) if METHOD == "fork" else ()
        self._process = self._context.Process(
            target=_begin, args=(target, read, ends, list(sys.path), theirs, *arguments), daemon=True
        )
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # a signal now would end it with a traceback
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        theirs.close()

    def ended(self) -> str:
        """Why a process that no longer runs has ended, in words."""
        self._process.join()
        code = self._process.exitcode or 0
        return f"its process was ended by {signal.Signals(-code).name}" if code < 0 else f"its process exited ({code})"

    def interrupt(self) -> None:
        """Send it the signal that Ctrl-C sends."""
        if self._process.is_alive():
            os.kill(self._process.pid, signal.SIGINT)

    def close(self, patience_s: float = 0.0) -> None:
        """End it: by a word through the line, which what it runs waits for, and after a while by force."""
        with suppress(OSError):
            self.line.send(None)
        self._process.join(patience_s)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self.line.close()


def serve(line: Connection, sweep: Path) -> None:
    """A worker: runs what comes through the line and sends an ``Answer`` after each job."""
    from fedsim.sweep.state import SweepFolder

    claim()
    gc.freeze()  # what was imported before the fork is never garbage; looking through it would also copy shared pages
    gc.enable()
    folder = SweepFolder(sweep)
    for number in (1, 2):
        stream = open(number, "w", buffering=1, closefd=False)  # noqa: SIM115 - for the life of the process
        setattr(sys, ("stdout", "stderr")[number - 1], stream)
    while True:
        try:
            job: tuple[str, Mapping[str, Any], Ray | None] | None = line.recv()
        except KeyboardInterrupt:
            return
        if job is None:
            return
        name, config, ray = job
        os.environ.update(ray.auth if ray is not None else {})
        answer = _answer(folder, name, config, ray and ray.address)
        with suppress(BrokenPipeError):
            line.send(answer)
        if answer.stopped or answer.disk:
            return


def _answer(sweep: SweepFolder, name: str, config: Mapping[str, Any], address: str | None) -> Answer:
    """Run a job, and keep what it prints in its folder."""
    from fedsim.sweep.attempt import attempt

    folder = sweep.path / name
    try:
        with _Output(folder / "output.log"):
            try:
                return Answer(attempt(sweep, config, address=address).status == "interrupted")
            except (InputError, PoolLost) as error:
                sys.stderr.write(f"{error}\n")
            except Exception as error:
                if disk_error(error, sweep.path) is not None:
                    raise
                traceback.print_exc()
    except (KeyboardInterrupt, SystemExit):  # the latter from Ray's own handler, in force while Ray starts
        return Answer(stopped=True)
    except OSError as error:  # the job's, or of the file of what it prints
        return Answer(disk=reason(error, sweep.path))
    return Answer()


def keep_ray(line: Connection, address: str | None, cpus: int) -> None:
    """One Ray for all jobs: answers with a ``Ray``, or with why there is none, and waits for the end."""
    from fedsim.pool.ray_start import shared

    try:
        with shared(address, cpus) as ray:
            line.send(Ray(*ray))
            with suppress(KeyboardInterrupt):
                line.recv()
                return
            line.recv()  # the jobs are saving what they have; the command says when they are done
    except InputError as error:
        line.send(error)


class _Output:
    """What a job prints goes into a file of its folder; no file is left when it prints nothing."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
        with os.fdopen(os.open(self._path, flags, 0o666), "ab") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)

    def __exit__(self, *error: object) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        if self._path.stat().st_size == 0:
            self._path.unlink()


def _begin(
    target: Callable[..., None], lifeline: Connection, ends: tuple[Connection, ...], path: list[str], *rest: Any
) -> None:
    for end in ends:
        end.close()  # the command's, copied by fork
    sys.path[:] = path  # the user's own modules
    threading.Thread(target=_watch, args=(lifeline,), daemon=True).start()
    came: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        came.append(number)
        if len(came) == 1:  # further ones change nothing: it is saving what it has
            raise KeyboardInterrupt

    for number in heard_signals():
        signal.signal(number, stop)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    target(*rest)


def _watch(lifeline: Connection) -> None:
    with suppress(EOFError, OSError):
        lifeline.recv_bytes()
    os._exit(1)
