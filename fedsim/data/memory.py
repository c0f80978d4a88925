"""How much memory there is for data, asked before anything large is read."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from fedsim.errors import InputError

_MEMINFO, _LIMIT = "/proc/meminfo", "/sys/fs/cgroup/memory.max"


def available() -> int:
    """Bytes that this process can still take: the machine's free memory, or less where a container is limited."""
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError, ValueError, IndexError, StopIteration):
        line = next(line for line in Path(_MEMINFO).read_text().splitlines() if line.startswith("MemAvailable:"))
        free = 1024 * int(line.split()[1])
    with suppress(OSError, ValueError):  # "max" is no number: no limit
        free = min(free, int(Path(_LIMIT).read_text()))
    return free


def require_memory(what: str, size: int, do: str = "take fewer samples, or a machine with more memory") -> None:
    """Raise InputError unless ``size`` bytes can be in memory.

    Args:
        what: whose arrays they are, for the message.
        size: bytes that reading them takes at least.
        do: what to do about it.
    """
    free = available()
    if size > free:
        got = f"{size / 1e9:.1f} GB of arrays for {free / 1e9:.1f} GB that are free"
        raise InputError(f"{what} must fit into memory, got {got}; {do}")
