"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A binary file that appears under ``path`` whole, on disk, and only if the block succeeds."""
    temp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temp.open("wb") as file:
            yield file
        publish(temp, path)
    except BaseException:
        temp.unlink(missing_ok=True)
        raise


def publish(temp: Path, path: Path) -> None:
    """Give a complete file its name, on disk: after a power cut there is the old file or the new one, whole."""
    _sync(temp)
    os.replace(temp, path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
