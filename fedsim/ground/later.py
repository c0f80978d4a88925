"""Modules that take long to import: not before something of them is asked for, and not without a word.

Every Ray actor imports what fedsim imports: networkx alone takes as long as some ten rounds of a small run.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TextIO


class Later:
    """Stands for a module, whose names it has.

    Args:
        name: of the module, dotted.
    """

    def __init__(self, name: str):
        self._name = name

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self._name), name)


if TYPE_CHECKING:
    import networkx as networkx
else:
    networkx = Later("networkx")


@contextmanager
def importing(module: str, text: str, stream: TextIO | None = None) -> Iterator[None]:
    """A line on a terminal while a module is imported for the first time; it is gone afterwards.

    Args:
        module: which takes its time.
        text: what to say.
        stream: where to, default standard output; nothing is said where that is closed or no terminal.
    """
    stream = stream or sys.stdout
    terminal = stream is not None and stream.isatty() and os.environ.get("TERM") != "dumb"
    shown = terminal and module not in sys.modules
    try:
        if shown:
            _shown(stream, f"\r{text}")
        yield
    finally:
        if shown:
            _shown(stream, "\r\x1b[2K")


def _shown(stream: TextIO, text: str) -> None:
    with suppress(OSError):  # a terminal that is gone
        stream.write(text)
        stream.flush()
