"""Names of a model's parameters and layers, chosen by patterns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from fedsim.errors import InputError

SHOWN = 8
"""Names that a message lists."""


def listed_names(names: Sequence[str]) -> str:
    """Names in a message: the first of them."""
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a name matches one of the patterns, in which ``*`` stands for anything, dots too."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def matching(key: str, patterns: Sequence[str], names: Iterable[str], what: str = "parameters") -> set[str]:
    """The names that match one of the patterns.

    Raises:
        InputError: a pattern matches none of them.
    """
    names = list(names)
    for pattern in patterns:
        if not any(matches(name, [pattern]) for name in names):
            there = listed_names(names) or "none"
            around = (f"{pattern}.*", f"*.{pattern}", f"*.{pattern}.*")
            meant = next((f"did you mean {p!r}? " for p in around if any(matches(name, [p]) for name in names)), "")
            raise InputError(f"{key} must be patterns of names of {what}, got {pattern!r}; {meant}there are: {there}")
    return {name for name in names if matches(name, patterns)}
