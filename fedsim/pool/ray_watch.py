"""The processes of Ray beside this one: whether those that a run needs still live, and what they leave behind.

A driver whose raylet is gone is ended by Ray itself, without a word, at its next look into the object store; Ray takes
ten seconds and more to tell it. The kernel tells at once. Does not import ray.
"""

from __future__ import annotations

import os
import re
import select
import shutil
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from fedsim.pool.ray_home import knock

KNOCK_S = 2.0
"""Seconds between knocks at the control service of a cluster that somebody else started."""
PATIENT = 20
"""Looks for which a stopped process of Ray is borne: a few seconds, before Ray itself gives it up."""
LEAVE_S = 3.0
"""How long a session's last processes may take to leave its folder."""
SESSION = re.compile(r"session_\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d_\d+_(?P<pid>\d+)")
"""The name of a session's folder; it ends in the process that began it."""


class RayWatch:
    """Whether the Ray that this process is connected to is still there.

    Args:
        raylet: socket of this machine's raylet.
        gcs: HOST:PORT of the cluster's control service.
    """

    def __init__(self, raylet: str, gcs: str):
        self.raylet, self._gcs = raylet, gcs
        self.session = Path(raylet).parent.parent
        pids = {"raylet": _listener(raylet), "control service (GCS)": _gcs_child(self.session.name)}
        self._pids = {name: pid for name, pid in pids.items() if pid}
        self._files = {name: file for name, pid in self._pids.items() if (file := _opened(pid)) is not None}
        self._knocked = time.monotonic()
        self._stopped = 0

    def problem(self, *, stopped: bool = False) -> str:
        """What is wrong with Ray, or "".

        Args:
            stopped: a process that the system has stopped is wrong at once, and not only when ``PATIENT`` looks in a
                row have found it so; it may go on any moment. Looks are counted, not seconds: whoever stops this
                process too (Ctrl-Z) stops the count.
        """
        for name, file in self._files.items():
            if select.select([file], [], [], 0)[0]:  # readable once the process has ended
                return f"Ray's {name} ended"
        halted = [(name, pid) for name, pid in self._pids.items() if _state(pid)[:1] == ["T"]]
        self._stopped = self._stopped + 1 if halted else 0
        if halted and (stopped or self._stopped > PATIENT):
            return f"Ray's {halted[0][0]} (process {halted[0][1]}) is stopped"
        if len(self._pids) == 1 and time.monotonic() - self._knocked > KNOCK_S:
            self._knocked = time.monotonic()
            try:
                knock(self._gcs)
            except ConnectionRefusedError:
                return f"Ray's control service at {self._gcs} is gone"
            except OSError:  # a slow network, which Ray bears
                pass
        return ""

    def close(self) -> None:
        """Forget the processes."""
        for file in self._files.values():
            os.close(file)
        self._files, self._pids = {}, {}


def children(session: str) -> list[int]:
    """Processes that this one has started for a session of Ray."""
    mine = str(os.getpid())
    return [pid for pid in _processes() if _state(pid)[1:2] == [mine] and session in _command(pid)]


def begun() -> set[Path]:
    """Folders of the sessions of Ray that this process has begun and that still have processes."""
    commands = "\0".join(_command(pid) for pid in children(""))
    found = re.finditer(rf"/[^\0=\s]*/{SESSION.pattern}", commands)
    return {Path(match[0]) for match in found if int(match["pid"]) == os.getpid()}


def tell(session: str, number: int) -> None:
    """Send a signal to what this process has started for a session."""
    for pid in children(session):
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def let_go(raylet: str) -> None:
    """Cut this process's lines to a raylet that does not answer, so that whoever waits for it goes on."""
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError), socket.socket(fileno=os.dup(int(name))) as line:
            if line.family == socket.AF_UNIX and line.getpeername() == raylet:
                line.shutdown(socket.SHUT_RDWR)


def remove(folder: Path) -> None:
    """Remove the folder of a session that this process began and ended, unless somebody else still uses it."""
    name = SESSION.fullmatch(folder.name)
    if name is None or int(name["pid"]) != os.getpid() or folder.is_symlink() or not folder.is_dir():
        return
    until = time.monotonic() + LEAVE_S
    while _used(folder):
        if time.monotonic() > until:
            return
        time.sleep(0.05)
    shutil.rmtree(folder, ignore_errors=True)  # does not follow links
    latest = folder.with_name("session_latest")
    with suppress(OSError):
        if os.readlink(latest) in (str(folder), folder.name):
            latest.unlink()


def _used(folder: Path) -> bool:
    """Whether another process belongs to a session, or has a file of its folder open."""
    inside = f"{folder}/"
    for pid in _processes():
        if pid == os.getpid() or _state(pid)[:1] == ["Z"]:
            continue
        if folder.name in _command(pid):
            return True
        with suppress(OSError):
            for file in os.scandir(f"/proc/{pid}/fd"):
                with suppress(OSError):
                    if os.readlink(file.path).startswith(inside):
                        return True
    return False


def _processes() -> Iterator[int]:
    with suppress(OSError):
        yield from (int(name) for name in os.listdir("/proc") if name.isdecimal())


def _command(pid: int) -> str:
    """A process's command line; "" of one that is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""


def _state(pid: int) -> list[str]:
    """State, parent and what follows them in /proc/PID/stat; nothing of a process that is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return []


def _gcs_child(session: str) -> int:
    """The control service that this process has started; 0 where it is somebody else's."""
    return next((pid for pid in children(session) if "gcs_server" in _command(pid).partition("\0")[0]), 0)


def _listener(path: str) -> int:
    """The process that listens at a unix socket of this machine; 0 where the system does not say."""
    credentials = getattr(socket, "SO_PEERCRED", None)
    if credentials is None:
        return 0
    with socket.socket(socket.AF_UNIX) as line:
        try:
            line.connect(path)
            pid: int = struct.unpack("3i", line.getsockopt(socket.SOL_SOCKET, credentials, 12))[0]
        except OSError:
            return 0
    return pid


def _opened(pid: int) -> int | None:
    """A file that says when a process has ended, and is never about another one that got its number."""
    try:
        return os.pidfd_open(pid)
    except (OSError, AttributeError):
        return None
