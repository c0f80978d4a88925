"""Lines about what is wrong in a configuration: collected, so that a user sees all of them, and with their place."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any

from fedsim.errors import InputError

LETTERS = 2
"""More of them make the beginning of a word."""


def unknown_key(path: str, key: str, valid: Iterable[str], value: Any, hint: str = "") -> str:
    """The line about a key that nothing reads: what it may have meant, and the keys there are.

    Args:
        path: where the key stands, "" at the top.
        key: its name.
        valid: the names that there are.
        value: what was given.
        hint: ``did you mean KEY=VALUE? ``, in the place of the closest valid name; "": that name, if one is close.
    """
    dot = f"{path}." if path else ""
    where = f"keys of {path}" if path else "keys"
    meant = hint or did_you_mean(key, valid, dot)
    return f"unknown key {dot}{key} (got {value!r}); {meant}{where}: {', '.join(valid)}"


def did_you_mean(word: str, valid: Iterable[str], before: str = "") -> str:
    """``did you mean X? `` when a valid word is close, else nothing."""
    close = nearest(word, valid)
    return f"did you mean {before}{close[0]}? " if close else ""


def nearest(word: str, valid: Iterable[str], count: int = 1, cutoff: float = 0.6) -> list[str]:
    """The valid words that come closest, whatever their capitals: first those that begin with ``word``.

    >>> nearest("resnet", ["lenet", "resnet18_gn", "mlp"]), nearest("FedAvg", ["fedavg", "fedavgm"])
    (['resnet18_gn'], ['fedavg'])
    """
    known = {name.lower(): name for name in valid}
    begin = [name for name in known if len(word) > LETTERS and name.startswith(word.lower())]
    close = get_close_matches(word.lower(), begin, n=count, cutoff=0.0)
    close += [name for name in get_close_matches(word.lower(), known, n=count, cutoff=cutoff) if name not in close]
    return [known[name] for name in close[:count]]


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
