"""A run's progress in a notebook: one output of the cell, which is updated, not a line for every round.

Shown through IPython's own display, which every notebook has; nothing else needs to be installed.
"""

from __future__ import annotations

import time
from html import escape
from importlib import import_module
from typing import Any

EVERY_S = 0.2
"""Seconds between two updates at least: each travels to a browser, and stays in the notebook until the next."""
STYLE = "display:flex;gap:1em;align-items:center;flex-wrap:wrap;font-variant-numeric:tabular-nums"


class CellBar:
    """A bar in the output of a cell, with a line of text for where there is no HTML.

    Args:
        rounds: how many there will be.
    """

    def __init__(self, rounds: int) -> None:
        self._rounds = rounds
        self._handle: Any = None
        self._last: tuple[int, tuple[str, ...]] = (0, ())
        self._shown: tuple[float, tuple[int, tuple[str, ...]]] = (0.0, self._last)  # when, and what

    def show(self, done: int, *texts: str) -> None:
        """Show that so many rounds are done, with these words around the bar; the first come before it."""
        self._last = (done, texts)
        now = time.monotonic()
        if self._handle is None or now - self._shown[0] >= EVERY_S:
            self._draw(now)

    def close(self) -> None:
        """See to it that what was said last is what stays."""
        if self._handle is not None and self._shown[1] != self._last:
            self._draw(time.monotonic())

    def _draw(self, now: float) -> None:
        done, texts = self._last
        first, *rest = map(escape, texts)
        spans = "".join(f"<span>{text}</span>" for text in rest if text)
        bar = f'<progress value="{done}" max="{self._rounds}" style="flex:1 1 12em"></progress>'
        html = f'<div style="{STYLE}"><span>{first}</span>{bar}{spans}</div>'
        content = {"text/plain": "  ".join(text for text in texts if text), "text/html": html}
        if self._handle is None:
            display: Any = import_module("IPython.display").display  # every notebook has it, and only they need it
            self._handle = display(content, raw=True, display_id=True)
        else:
            self._handle.update(content, raw=True)
        self._shown = (now, self._last)
