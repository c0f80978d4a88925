"""Lines about what is wrong in a configuration: collected, so that a user sees all of them, and with their place."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any

from fedsim.errors import InputError


def unknown_key(path: str, key: str, valid: Iterable[str], value: Any, hint: str = "") -> str:
    """The line about a key that nothing reads: what it may have meant, and the keys there are.

    Args:
        path: where the key stands, "" at the top.
        key: its name.
        valid: the names that there are.
        value: what was given.
        hint: said where no valid name is close: ``did you mean KEY=VALUE? ``, or "".
    """
    dot = f"{path}." if path else ""
    where = f"keys of {path}" if path else "keys"
    meant = did_you_mean(key, valid, dot) or hint
    return f"unknown key {dot}{key} (got {value!r}); {meant}{where}: {', '.join(valid)}"


def did_you_mean(word: str, valid: Iterable[str], before: str = "") -> str:
    """``did you mean X? `` when a valid word is close, else nothing."""
    close = get_close_matches(word, list(valid), n=1)
    return f"did you mean {before}{close[0]}? " if close else ""


@contextmanager
def collect(problems: list[str]) -> Iterator[None]:
    """Note an ``InputError`` and go on, so that a user sees every problem at once."""
    try:
        yield
    except InputError as error:
        problems.append(str(error))


def raise_all(problems: Sequence[str]) -> None:
    """Raise what was collected, one line for each; nothing where nothing was."""
    if problems:
        raise InputError("\n".join(problems))


@contextmanager
def prefixed(path: str, names: Iterable[str]) -> Iterator[None]:
    """Name the group in the errors of a constructor: ``lr must ...`` becomes ``algorithm.lr must ...``."""
    try:
        yield
    except InputError as error:
        first = str(error).split(maxsplit=1)[0].split("[")[0].split(".")[0].rstrip(":,")
        raise InputError(f"{path}{'.' if first in names else ': '}{error}") from error
