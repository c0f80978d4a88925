"""Files that are there whole or not at all, and what tells this program's own files from everybody else's."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from fedsim.errors import NotSaved

LAST_MODEL = "model.safetensors"
"""In the folder of a run: the model of all after the last round."""

DISK = frozenset(
    getattr(errno, name)
    for name in ("ENOSPC", "EDQUOT", "EFBIG", "EIO", "EROFS", "EMFILE", "ENFILE", "ESTALE", "ENODEV", "ENXIO")
    if hasattr(errno, name)
)
"""Errors of a machine whose disk is full, broken or gone, or that opens no more files; no mistake of a program."""


def of_the_disk(error: OSError, folder: Path) -> bool:
    """Whether an error is the disk's, or about a file in the folder of a run; others come from a user's own code."""
    return isinstance(error, NotSaved) or error.errno in DISK or is_about(error, folder)


def is_about(error: OSError, folder: Path) -> bool:
    """Whether an error names a file in a folder, or the folder itself; ``run2`` is not in ``run``."""
    about = error.filename
    return isinstance(about, (str, Path)) and Path(about).absolute().is_relative_to(folder.absolute())


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A binary file that appears under ``path`` whole, on disk, and only if the block succeeds.

    Raises:
        OSError: it cannot be written, or ``path`` is there and no file: a device would be gone.
    """
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    temp = piece(path)
    temp.unlink(missing_ok=True)  # of a killed process that had this number; what is opened below is new, no link
    try:
        with temp.open("xb") as file:
            yield file
        publish(temp, path)
    except BaseException:
        with suppress(OSError):  # the first error is the one to see
            temp.unlink(missing_ok=True)
        raise


def publish(temp: Path, path: Path) -> None:
    """Give a complete file its name, on disk: after a power cut there is the old file or the new one, whole."""
    _sync(temp)
    os.replace(temp, path)
    _sync(path.parent)


def piece(path: Path) -> Path:
    """Where this process writes a file before it has its name."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def leftovers(folder: Path, name: str) -> list[Path]:
    """What killed processes left of files that they were writing; links are never among them.

    Args:
        folder: where they were writing. Ask while nobody else can be.
        name: regular expression of the whole names that the files would have had.
    """
    ours = re.compile(rf"\.(?:{name})\.\d+\.tmp")
    with os.scandir(folder) as found:
        return sorted(Path(entry) for entry in found if ours.fullmatch(entry.name) and not entry.is_symlink())


def is_own_file(path: Path) -> bool:
    """Whether there is a file, and not a link to one, which may lie anywhere."""
    return path.is_file() and not path.is_symlink()


def _sync(path: Path) -> None:
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
