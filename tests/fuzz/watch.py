"""What a case does beside its answer: foreign code called, processes begun, connections, files written elsewhere.

An audit hook, in the forked process only, writes a line for each into a file that the parent reads. What libraries
written in C do to files is not seen here; the parent compares the files around the run's folder too.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

_noted: list[int] = []

BEGINS = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.fork",
    "os.forkpty",
    "subprocess.Popen",
    "pty.spawn",
)
TALKS = ("socket.connect", "socket.bind", "socket.sendto", "socket.getaddrinfo", "urllib.Request")
CHANGES = {
    "os.remove": (0,),
    "os.rename": (0, 1),
    "os.rmdir": (0,),
    "os.mkdir": (0,),
    "os.link": (1,),
    "os.symlink": (1,),
    "os.truncate": (0,),
    "os.chmod": (0,),
    "shutil.rmtree": (0,),
}
"""Which of an event's arguments are paths that it changes."""


def note(line: str) -> None:
    """Write down what must not happen; nothing where no case is watched."""
    for file in _noted:
        os.write(file, f"{line}\n".encode())


def begin(file: int, inside: Path) -> None:
    """Watch this process from now on; it cannot be undone.

    Args:
        file: open for writing, for the lines.
        inside: the folder in which a case may change files.
    """
    _noted.append(file)
    roots = (f"{inside.resolve()}/", "/dev/")

    def outside(path: Any, folder: Any = -1) -> bool:
        if not isinstance(path, (str, bytes, os.PathLike)) or (isinstance(folder, int) and folder >= 0):
            return False  # a file that is open already, or a name in a folder that is
        where = os.path.realpath(os.path.dirname(os.path.abspath(os.fsdecode(path))))
        return not f"{where}/".startswith(roots)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "subprocess.Popen" and arguments[0] == "git":  # where a run's code comes from: there is none here
            return
        if event in BEGINS or event in TALKS:
            note(f"{event} {arguments!r:.200}")
        elif event == "open":
            path, mode, flags = arguments
            if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC) and outside(path):
                note(f"open {path!r} for writing ({mode})")
        elif event in CHANGES and any(outside(arguments[i]) for i in CHANGES[event]):
            note(f"{event} {arguments!r:.200}")

    sys.addaudithook(hook)
