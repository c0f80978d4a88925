"""What a model's forward can reach beside its parameters and buffers: where it could keep something, or draw from.

Followed are the attributes of the module and of its parts, the globals, closures, defaults and class attributes that
the code of ``forward``, of hooks, and of what these call names, and what is inside all these; of libraries nothing.
"""

from __future__ import annotations

import functools
import random
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from types import BuiltinMethodType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.errors import InputError

_LIBRARIES = frozenset({*sys.stdlib_module_names, "torch", "numpy", "fedsim"}) - {"__main__"}
_OWN = frozenset(
    {"_parameters", "_buffers", "_non_persistent_buffers_set", "training"}
)  # of torch's, looked at elsewhere
_GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, np.random.BitGenerator, random.Random)
_ENTROPY = frozenset(
    {"default_rng", "RandomState", "SeedSequence", "Random", "SystemRandom", "urandom", "getrandom", "secrets", "uuid4"}
)
"""What makes generators, or asks the operating system: named in forward, it gives numbers that nothing addresses."""

_GLOBAL = (random.random.__self__, np.random.rand.__self__)  # type: ignore[attr-defined]
"""What module-level functions draw from; these are watched at work."""

_ITEMS = 1000
"""Of a longer container the last ones are looked at, where what is kept from call to call is appended."""

_DEPTH, _MOST = 12, 50_000
"""How far from the module, and how many objects: a model may hold a data set."""


def reached(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """What a model's forward can reach, by a name such as ``body.count``: plain values, and lengths of containers."""
    return _Walk().values("", model, 0)


def refuse_generators(model: nn.Module, name: str) -> None:
    """Refuse a model whose forward can reach a random generator of its own.

    Its numbers would depend on which clients were computed before; that it draws only now and then is no excuse, since
    then no trial shows it.

    Raises:
        InputError: forward can reach a generator, or names what makes one.
    """
    walk = _Walk()
    for where, value in walk.values("", model, 0):
        if isinstance(value, _GENERATORS):
            raise InputError(
                f"model {name} holds a random generator, {where} ({type(value).__name__}), whose numbers have no "
                "address (seed, round, client); draw once in __init__, and keep the numbers as a buffer instead"
            )
    if found := sorted(walk.names & _ENTROPY):
        raise InputError(
            f"model {name} makes random numbers in forward ({found[0]}), which have no address (seed, round, client); "
            "take them out, or draw them once in __init__ and keep them as a buffer"
        )


def meets(model: nn.Module, functions: Iterable[Any], names: frozenset[str]) -> bool:
    """Whether a model's forward can reach one of these functions, or names one."""
    walk = _Walk()
    deque(walk.values("", model, 0), maxlen=0)
    return bool(walk.names & names) or any(id(f) in walk._seen for f in functions)


class _Walk:
    """One walk; ``names`` are all names in the code it came by."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self._seen: dict[int, Any] = {}  # keeps them alive, so that no other object gets their id
        self._read: set[tuple[Any, type | None]] = set()

    def values(self, name: str, value: Any, depth: int) -> Iterator[tuple[str, Any]]:
        if value is None or isinstance(value, (bool, int, float, complex, str, bytes, np.generic, torch.dtype)):
            yield name, value
            return
        if id(value) in self._seen or depth > _DEPTH or len(self._seen) > _MOST:
            return
        self._seen[id(value)] = value
        for key, inner in self._inside(value):
            path = key if not name else f"{name}{key}" if key.startswith("[") else f"{name}.{key}"
            yield from self.values(path, inner, depth + 1)
        if isinstance(value, (Tensor, np.ndarray, *_GENERATORS)) or hasattr(type(value), "__next__"):
            yield name, value
        elif isinstance(value, (Mapping, list, tuple, set, frozenset, deque)):
            yield f"len({name})", len(value)

    def _inside(self, value: Any) -> Iterator[tuple[str, Any]]:
        if isinstance(value, (Tensor, np.ndarray, ModuleType, *_GENERATORS)):
            return
        if isinstance(value, nn.Module):
            yield from ((key, v) for key, v in vars(value).items() if key not in _OWN and key != "_modules")
            yield from value._modules.items()
            kind = type(value)
            for key in ("forward", "__call__"):
                yield from self._of_class(kind, key)
            return
        if isinstance(value, Mapping):
            yield from ((f"[{key!r}]", v) for key, v in list(value.items())[-_ITEMS:])
        elif isinstance(value, (list, tuple, set, frozenset, deque)):
            yield from ((f"[{k}]", v) for k, v in enumerate(list(value)[-_ITEMS:]))
        elif isinstance(value, FunctionType):
            yield from self._code(value, None)
        elif isinstance(value, (MethodType, BuiltinMethodType)):
            yield from self._method(value)
        elif isinstance(value, functools.partial):
            yield from (("func", value.func), ("args", value.args), ("keywords", value.keywords))
        elif not isinstance(value, type) and not _library(type(value).__module__):
            yield from getattr(value, "__dict__", {}).items()
            slots = getattr(type(value), "__slots__", ())
            yield from ((key, getattr(value, key)) for key in slots if isinstance(key, str) and hasattr(value, key))
            yield from self._of_class(type(value), "__call__")

    def _method(self, value: Any) -> Iterator[tuple[str, Any]]:
        owner = value.__self__
        if owner not in _GLOBAL:
            yield "__self__", owner
        function = getattr(value, "__func__", None)
        if function is not None:
            yield from self._code(function, type(owner))

    def _code(self, function: Any, owner: type | None) -> Iterator[tuple[str, Any]]:
        """What a function's code names."""
        if not isinstance(function, FunctionType) or _library(function.__module__ or ""):
            return
        if (function, owner) in self._read:
            return
        self._read.add((function, owner))
        names = _names(function.__code__)
        self.names |= names
        yield from ((f"default {k}", v) for k, v in enumerate(function.__defaults__ or ()))
        yield from (function.__kwdefaults__ or {}).items()
        for cell_name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            try:
                inner = cell.cell_contents
            except ValueError:  # not filled yet
                continue
            yield from self._named(cell_name, inner, names)
        for key in sorted(names):
            if key in function.__globals__:
                yield from self._named(key, function.__globals__[key], names)
            if owner is not None:
                yield from self._of_class(owner, key)

    def _named(self, key: str, value: Any, names: set[str]) -> Iterator[tuple[str, Any]]:
        """A global or a closed-over variable; of a class or a module of the user's, what else the code names."""
        if isinstance(value, ModuleType):
            if not _library(value.__name__):
                yield from ((f"{key}.{n}", vars(value)[n]) for n in sorted(names) if n in vars(value))
        elif isinstance(value, type):
            for n in sorted(names):
                yield from self._of_class(value, n)
        else:
            yield key, value

    def _of_class(self, owner: type, key: str) -> Iterator[tuple[str, Any]]:
        """What a class and its bases, which ``super`` may call, have by this name."""
        for kind in owner.__mro__:
            if key not in vars(kind) or _library(kind.__module__):
                continue
            found = vars(kind)[key]
            found = getattr(found, "fget", None) or getattr(found, "__func__", None) or found
            if isinstance(found, FunctionType):
                yield from self._code(found, owner)
            else:
                yield f"{kind.__name__}.{key}", found


def _names(code: CodeType) -> set[str]:
    """Of globals and attributes, in nested functions as well."""
    inner = (_names(c) for c in code.co_consts if isinstance(c, CodeType))
    return set(code.co_names).union(*inner)


def _library(module: str) -> bool:
    return module.partition(".")[0] in _LIBRARIES


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Copies of all values that ``reached`` finds, by name, to be compared later by ``changed``."""
    return {name: _frozen(value) for name, value in reached(model)}


def changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """The name of the first value that is not what it was, or ""."""
    for name, value in after.items():
        if name not in before or not _same(before[name], value):
            return name
    return next((name for name in before if name not in after), "")


def _frozen(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, torch.Generator):
        return value.get_state()
    if hasattr(type(value), "__next__"):
        try:
            return repr(value.__reduce__())
        except TypeError:  # one that cannot say where it is
            return None
    return None if isinstance(value, _GENERATORS) else value


def _same(a: Any, b: Any) -> bool:
    if type(a) is not type(b):
        return False
    if isinstance(a, Tensor):
        same = a.shape == b.shape and a.dtype == b.dtype
        return same and bool(((a == b) | ((a != a) & (b != b))).all())
    if isinstance(a, np.ndarray):
        return bool(a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes())
    return bool(a == b or a != a)
