"""When the machine under a sweep gives way: its disk is full, broken or gone, or it starts no more processes."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedsim.errors import InputError, SweepStopped, first_line
from fedsim.ground.files import DISK, is_about, of_the_disk

NO_PROCESS = frozenset((errno.EAGAIN, errno.ENOMEM))  # of fork: a limit on processes, or no memory for one more


def disk_error(error: Exception, folder: Path) -> OSError | None:
    """The error of the disk that an exception of a run in this folder is, or is about."""
    found = error.__cause__ if isinstance(error, InputError) else error
    return found if isinstance(found, OSError) and of_the_disk(found, folder) else None


def reason(error: OSError, sweep: Path) -> str:
    """What the system said, and about which file where that is not one of the sweep's."""
    said = error.strerror or first_line(error)
    return said if error.filename is None or is_about(error, sweep) else f"{said} ({error.filename})"


def sweep_stopped(why: str, sweep: Path) -> SweepStopped:
    """The line about a sweep that something outside it has stopped; the command line adds the command to go on."""
    return SweepStopped(f"{why}, the sweep in {sweep} stopped; what it wrote is kept")


@contextmanager
def stopping(sweep: Path) -> Iterator[None]:
    """Say that the sweep stopped where the machine did not let it go on.

    Raises:
        SweepStopped: instead of an ``OSError`` that is the machine's; others, say of permissions, stay as they are.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in DISK | NO_PROCESS:
            raise
        raise sweep_stopped(reason(error, sweep), sweep) from error
