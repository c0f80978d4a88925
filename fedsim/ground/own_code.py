"""A user's own code that fails before the run: one line that says whose it is, where it failed and why."""

from __future__ import annotations

import functools
import sysconfig
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from traceback import walk_tb
from types import CellType, FrameType, FunctionType, MethodType
from typing import Any

from fedsim.errors import LINE, ClientError, Diverged, InputError

_PACKAGE = str(Path(__file__).parents[1])
_LIBRARIES = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})
_KNOWN = ("fedsim", "torch", "numpy", "builtins", "collections", "functools", "enum", "types", "pathlib")
"""Packages whose functions and classes do the same thing each time."""
_TYPED = ("<stdin>", "<string>", "<ipython-input")
"""Files that are none and yet a user's: what was typed into an interpreter."""

FAILURES = (Exception, SystemExit)
"""What a user's code may raise where it fails: ``sys.exit`` ends a script, but must not end a run without a word."""


@contextmanager
def own_code(what: str, part: Any = None) -> Iterator[None]:
    """Turn an exception of a user's own class or factory into an ``InputError`` that chains it.

    An exception that no line of a user's took part in is a fault of fedsim's and stays what it is.

    Args:
        what: the part of the run, for example ``data``.
        part: the object, class or function that is called, if it is one.

    Raises:
        InputError: ``data: my_module.MyData failed at my_module.py:12 in load: FileNotFoundError: ...``.
    """
    try:
        yield
    except (InputError, ClientError, Diverged):
        raise
    except FAILURES as error:  # user code: any type
        found = place(error, part)
        if found is None:
            raise
        raise InputError(f"{what}: {found}: {error_line(error)}") from error


def error_line(error: BaseException) -> str:
    """An exception on one line: its type and its message."""
    try:
        message = " ".join(str(error).split())
    except Exception:  # a user's own __str__
        message = "its message cannot be printed"
    message = message if len(message) <= LINE else f"{message[:LINE]}..."
    return ": ".join(text for text in (type(error).__name__, message) if text)


def said(error: BaseException) -> str:
    """An exception on one line, with the last line of a user's file that took part, if one did."""
    own = [(frame, number) for frame, number in walk_tb(error.__traceback__) if _users(frame)]
    return error_line(error) + (f" ({_at(*own[-1])})" if own else "")


def place(error: BaseException, part: Any = None) -> str | None:
    """``NAME failed at FILE:LINE in FUNCTION``, the last line of a user's that took part; None if there is none.

    NAME is the part's class or function, or else that of the first call into a user's code.

    Args:
        error: as it was caught.
        part: whose code was called, if it is known; code of its module counts as a user's wherever it lies.
    """
    target = _target(part)
    module = "fedsim" if target is None else target.__module__
    stranger = module.partition(".")[0] != "fedsim"
    frames = [(frame, number) for frame, number in walk_tb(error.__traceback__) if not _inside(frame, (_PACKAGE,))]
    own = [(frame, number) for frame, number in frames if _users(frame) or frame.f_globals.get("__name__") == module]
    if not own and not stranger:
        return None
    name = f"{module}.{target.__qualname__} failed" if target is not None and stranger else ""
    if not frames:  # code that Python does not see, such as a constructor in C
        return name
    name = name or f"{_called((own or frames)[0][0])} failed"
    return f"{name} at {_at(*(own or frames)[-1])}"


def _target(part: Any) -> Any:
    """The class or function that a part is, or is an object of; None for no part."""
    if isinstance(part, functools.partial):
        return _target(part.func)
    part = getattr(part, "target", part)  # of fedsim.assembly.factory.ModelFactory
    return part if part is None or hasattr(part, "__qualname__") else type(part)


def _called(frame: FrameType) -> str:
    """The class whose method a frame is, or the function."""
    owner = frame.f_locals.get("self")
    if owner is not None:
        return f"{type(owner).__module__}.{type(owner).__qualname__}"
    return f"{frame.f_globals.get('__name__')}.{frame.f_code.co_name}"


def _users(frame: FrameType) -> bool:
    """Whether a frame is of a user's file: neither fedsim's, nor a library's, nor code made by one."""
    name = frame.f_code.co_filename
    return name.startswith(_TYPED) if name.startswith("<") else not _inside(frame, (_PACKAGE, *_LIBRARIES))


def _inside(frame: FrameType, folders: tuple[str, ...]) -> bool:
    return any(frame.f_code.co_filename.startswith(folder + "/") for folder in folders)


def _at(frame: FrameType, number: int) -> str:
    """FILE:LINE in FUNCTION; the file's path from the current folder where it lies in there."""
    file = Path(frame.f_code.co_filename)
    shown = file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file
    return f"{shown}:{number} in {frame.f_code.co_name}"


def built_in(rule: object) -> bool:
    """Whether a schedule or partition is one of fedsim's, which is tested: looking at a million clients takes time."""
    return type(rule).__module__.partition(".")[0] == "fedsim"


def all_built_in(part: Any) -> bool:
    """Whether no line of a user's is in a part or in what it is made of: numbers, words, what fedsim and torch have.

    >>> from fedsim.algorithms.fedavg import FedAvg
    >>> all_built_in(FedAvg(lr=0.1))
    True
    """
    return _all_built_in(part, set())


def _all_built_in(part: Any, seen: set[int]) -> bool:
    if id(part) in seen:
        return True
    seen.add(id(part))
    if isinstance(part, Mapping):
        inside: list[Any] = [type(part), *part.values()]
    elif isinstance(part, (tuple, list, set, frozenset)):
        inside = [type(part), *part]
    elif isinstance(part, functools.partial):
        inside = [part.func, part.args, part.keywords]
    elif isinstance(part, MethodType):
        inside = [part.__self__, part.__func__]
    elif isinstance(part, FunctionType):  # what it was made around, and what it is given by itself
        cells = [cell.cell_contents for cell in part.__closure__ or () if cell != CellType()]
        inside = [*cells, part.__defaults__ or (), part.__kwdefaults__ or {}, part.__dict__]
    elif isinstance(part, type):
        inside = []
    else:
        inside = [type(part), getattr(part, "__dict__", {})]
    whose = part if isinstance(part, (FunctionType, type)) else type(part)
    return whose.__module__.partition(".")[0] in _KNOWN and all(_all_built_in(one, seen) for one in inside)
