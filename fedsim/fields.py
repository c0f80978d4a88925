"""Annotations as promises: a value is fitted to the annotation of what it is for, or refused in one line.

Every dataclass that a user may construct begins its ``__post_init__`` with ``check_fields(self)``, and so holds the
types it names whichever way it came about: from Python, from a configuration, by ``dataclasses.replace``. Ranges
follow in the class. What has one meaning only is converted: whole numbers to floats, numpy's scalars to Python's, lists
to tuples, paths to text. Imports nothing heavy.
"""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from fedsim.errors import InputError, first_line

MISFIT: Any = object()
"""What stands for a value that does not fit."""

_NAMES = {int: "an int", float: "a float", bool: "true or false", str: "a string", NoneType: "null"}


def check_fields(part: Any) -> None:
    """Fit every field of a new dataclass to its annotation; subclasses' fields too.

    >>> from dataclasses import dataclass
    >>> @dataclass(frozen=True)
    ... class Method:
    ...     lr: float
    ...     def __post_init__(self) -> None:
    ...         check_fields(self)
    >>> Method(lr=1)
    Method(lr=1.0)
    >>> Method(lr="fast")
    Traceback (most recent call last):
    fedsim.errors.InputError: lr must be a float, got 'fast'

    Raises:
        InputError: ``lr must be a float, got 'abc'``.
    """
    kind: Any = type(part)
    hints = hints_of(kind)
    for field in fields(part):
        value = getattr(part, field.name)
        fit = fitted(value, hints[field.name], field.name, instance)
        if fit is not value:
            object.__setattr__(part, field.name, fit)


def fitted(value: Any, kind: Any, path: str, other: Callable[[Any, Any, str], Any]) -> Any:
    """``value`` as the type that an annotation names.

    Args:
        value: anything.
        kind: an annotation, resolved.
        path: the value's name, for messages.
        other: what fits a value to a type that is no number, text, choice or tuple; ``MISFIT`` if nothing does.

    Raises:
        InputError: ``block must be an int or 'auto', got 'all'``.
    """
    for choice in _choices(kind):
        done = _as(value, choice, path, other)
        if done is not MISFIT:
            return done
    lists = any(get_origin(choice) is tuple and get_args(choice)[-1] is ... for choice in _choices(kind))
    do = f"; a list has brackets: [{value}]" if lists and isinstance(value, str) and value else ""
    raise InputError(f"{path} must be {in_words(kind, mapping=other is not instance)}, got {_shown(value)}{do}")


def _choices(kind: Any) -> tuple[Any, ...]:
    """The members of a union, or the annotation itself."""
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def instance(value: Any, kind: Any, path: str) -> Any:
    """``value`` if it is of this class, or has the methods of this protocol, else ``MISFIT``."""
    origin = get_origin(kind) or kind
    if getattr(origin, "_is_protocol", False):
        missing = [name for name in methods(origin) if not callable(getattr(value, name, None))]
        return MISFIT if missing or isinstance(value, type) else value
    return MISFIT if origin is not Any and isinstance(origin, type) and not isinstance(value, origin) else value


@cache
def hints_of(holder: Any) -> dict[str, Any]:
    """Annotations of the arguments of a class or function, resolved.

    Raises:
        InputError: one of them names what does not exist at run time.
    """
    of = holder.__init__ if inspect.isclass(holder) and not is_dataclass(holder) else holder
    try:
        return get_type_hints(of)
    except NameError as error:
        raise InputError(
            f"annotations of {holder.__qualname__} must exist at run time, got {first_line(error)}"
        ) from error


def methods(role: type) -> list[str]:
    """The public methods of a protocol or class."""
    return [name for name, value in vars(role).items() if inspect.isfunction(value) and not name.startswith("_")]


def in_words(kind: Any, *, mapping: bool = False) -> str:
    """An annotation in words: ``an int or 'auto'``; with ``mapping``, a dataclass as what it is in yaml."""
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(in_words(choice, mapping=mapping) for choice in get_args(kind))
    if get_origin(kind) is Literal:
        choices = [repr(choice) for choice in get_args(kind)]
        return choices[0] if len(choices) == 1 else f"one of {', '.join(map(str, get_args(kind)))}"
    if get_origin(kind) is tuple:
        kinds = get_args(kind)
        items = kinds[:1] if kinds[-1] is ... else kinds
        words = ", ".join(in_words(k, mapping=mapping) for k in items)
        return f"a list of {'' if kinds[-1] is ... else f'{len(kinds)}: '}{words}"
    if mapping and is_dataclass(kind):
        return f"a mapping with the keys {', '.join(field.name for field in fields(kind))}"
    name = getattr(kind, "__name__", str(kind))
    if getattr(get_origin(kind) or kind, "_is_protocol", False):
        return f"an object with the methods of {name} ({', '.join(methods(get_origin(kind) or kind))})"
    return _NAMES.get(kind) or f"{'an' if name[0] in 'AEIOUaeiou' else 'a'} {name}"


def _as(value: Any, kind: Any, path: str, other: Callable[[Any, Any, str], Any]) -> Any:
    """``value`` as one member of a union, or ``MISFIT``."""
    origin = get_origin(kind)
    if origin is not Literal and origin is not tuple and kind not in _NAMES:
        return other(value, kind, path)
    if type(value).__module__ == "numpy" and hasattr(value, "tolist"):
        value = value.tolist()
    if origin is Literal:
        same = [choice for choice in get_args(kind) if type(choice) is type(value) and choice == value]
        return same[0] if same else MISFIT
    if origin is tuple:
        return _as_tuple(value, get_args(kind), path, other)
    if kind is float and type(value) in (int, float):
        return _finite(value, path)
    if kind is str and isinstance(value, os.PathLike):
        return os.fspath(value)
    if type(value) is int and kind is int and not -(2**63) <= value < 2**63:  # larger ones overflow floats and arrays
        raise InputError(f"{path} must be an int of at most 64 bits, got {_shown(value)}")
    return value if type(value) is kind else MISFIT


def _finite(value: int | float, path: str) -> float:
    """No option means anything at infinity or NaN, and a range test such as ``x > 0`` lets infinity through."""
    try:
        done = float(value)
    except OverflowError:
        done = math.inf
    if not math.isfinite(done):
        raise InputError(f"{path} must be a finite number, got {_shown(value)}")
    return done if type(value) is int else value


def _shown(value: Any) -> str:
    """A value in a message; Python does not print whole numbers of very many digits."""
    if type(value) is int and abs(value) >= 2**63:
        return f"one of {value.bit_length()} bits"
    try:
        return repr(value)
    except ValueError:  # such a number inside
        return f"{type(value).__name__} of very large numbers"


def _as_tuple(value: Any, kinds: tuple[Any, ...], path: str, other: Callable[[Any, Any, str], Any]) -> Any:
    if not isinstance(value, (list, tuple)):
        return MISFIT
    if kinds[-1] is ...:
        kinds = kinds[:1] * len(value)
    if len(kinds) != len(value):
        return MISFIT
    return tuple(
        fitted(item, kind, f"{path}[{i}]", other) for i, (item, kind) in enumerate(zip(value, kinds, strict=True))
    )
