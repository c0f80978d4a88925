"""Examples of docstrings, ``>>> ...``, as blocks of code: Markdown would take them for quotations."""

from __future__ import annotations

import re
from typing import Any

import griffe


def fenced(text: str) -> str:
    """The text with each example, up to the next empty line, in a block."""
    return re.sub(r"^>>> (?:.+\n?)+", lambda found: f"```pycon\n{found[0].rstrip()}\n```\n", text, flags=re.M)


class Examples(griffe.Extension):
    """Fences the examples of all docstrings."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for every object of a package that has been read."""
        if obj.docstring is not None:
            obj.docstring.value = fenced(obj.docstring.value)
