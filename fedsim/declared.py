"""Whether a class agrees with what it says of itself (``fedsim.traits``), and says it where it is read.

``Declared`` is a base class that checks a class when it is defined; classes without it are checked when a run is put
together, by ``traits_of``, ``rule_traits`` and ``layer_traits``, which give the value.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from difflib import get_close_matches
from functools import cached_property
from types import CodeType, FunctionType
from typing import Any, TypeVar

import torch

from fedsim.errors import InputError
from fedsim.traits import HOOKS, METHODS, LayerTraits, RuleTraits, Traits, Words

W = TypeVar("W", bound=Words)

_NAMES: dict[type[Words], frozenset[str]] = {
    Traits: frozenset(HOOKS).union(*METHODS.values()),
    RuleTraits: frozenset({"weights", "add", "merge", "finish"}),
    LayerTraits: frozenset({"init", "init_server", "receive", "delta", "omega"}),
}
"""What the engine calls and reads of a part, beside its hyper-parameters and ``traits``."""

_CHECKED: set[tuple[type, object]] = set()
"""What was found right already: parts are asked again and again."""

_METHOD = (FunctionType, classmethod, staticmethod, property, cached_property)


class Declared:
    """An algorithm whose words are checked when its class is defined."""

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        check_words(cls, Traits)
        if isinstance(said := cls.__dict__.get("traits"), Traits):
            check_hooks(cls, said)


class Forwarding:
    """Marks a wrapper: it has every hook, and uses those that the algorithm inside it declares."""


def traits_of(algorithm: Any) -> Traits:
    """What an algorithm says of itself; raises InputError where that is wrong or not true."""
    said = _said_by(algorithm, Traits)
    check_hooks(type(algorithm), said)
    return said


def rule_traits(rule: Any) -> RuleTraits:
    """What a server rule says of itself; raises InputError where that is wrong."""
    return _said_by(rule, RuleTraits)


def layer_traits(middleware: Any) -> LayerTraits:
    """What a layer says of itself; raises InputError where that is wrong or not true."""
    said = _said_by(middleware, LayerTraits)
    if not said.layerwise:
        _check_layer(middleware, said)
    return said


def _said_by(part: Any, kind: type[W]) -> W:
    if isinstance(part, type):
        raise InputError(f"{_where(part)} is a class; give an object of it, {part.__name__}(...)")
    check_words(type(part), kind)
    said = getattr(part, "traits", None)  # a class that says nothing has the defaults
    if said is None:
        return kind()
    if not isinstance(said, kind):
        raise InputError(f"{_where(type(part))}.traits must be a fedsim.traits.{kind.__name__}, got {said!r}")
    return said


def check_words(cls: type, kind: type[Words]) -> None:
    """Raise InputError when a class says a word where nobody reads it, or has a method with a misspelt name."""
    if (cls, kind) in _CHECKED:
        return
    annotated = _annotated(cls)
    words = [f.name for f in fields(kind) if f.name != "hooks"]
    used = {name for _, _, value in _public(cls) for name in _reads(value)}
    for home, name, value in _public(cls):
        if name == "traits" or name in _NAMES[kind]:
            continue
        where = f"{_where(cls)}.{name}"
        if isinstance(value, _METHOD):
            meant = get_close_matches(name, sorted(_NAMES[kind]), n=1, cutoff=0.82)
            if meant and name not in used:
                raise InputError(f"{where} is a method that nothing calls; write {meant[0]}, or _{name} for your own")
        elif name in annotated:
            if name not in vars(home).get("__annotations__", {}) and not hasattr(value, "__get__"):
                do = f"write {name}: {annotated[name]} = {value!r}"
                raise InputError(f"{where} must have an annotation to change the hyper-parameter's default; {do}")
        elif isinstance(value, (bool, str)) or name in words:
            meant = get_close_matches(name, words, n=1, cutoff=0.6)
            say = (
                f"write traits = {kind.__name__}({meant[0]}={value!r})" if meant else "see fedsim.traits for the words"
            )
            more = f"a hyper-parameter needs an annotation, a constant of your own a name such as {name.upper()}"
            raise InputError(f"{where} must be declared where it is read, got {name} = {value!r}; {say}; {more}")
    _CHECKED.add((cls, kind))


def _public(cls: type) -> Iterator[tuple[type, str, Any]]:
    """(class, name, value) of the attributes of a class and its bases that look like parts of the interface."""
    for home in cls.__mro__:
        if home.__module__ not in ("builtins", "typing", "abc"):
            for name, value in vars(home).items():
                if not name.startswith("_") and not name.isupper():
                    yield home, name, value


def _reads(value: Any) -> Iterator[str]:
    """The names of attributes that a method's code reads."""
    found = getattr(value, "func", None) or getattr(value, "fget", None) or getattr(value, "__func__", value)
    codes = [found.__code__] if isinstance(found, FunctionType) else []
    while codes:
        code = codes.pop()
        yield from code.co_names
        codes += [const for const in code.co_consts if isinstance(const, CodeType)]


def _annotated(cls: type) -> dict[str, str]:
    """{name: annotation} of the hyper-parameters of a class and its bases."""
    found: dict[str, str] = {}
    for home in reversed(cls.__mro__):
        for name, kind in vars(home).get("__annotations__", {}).items():
            if "ClassVar" not in str(kind):
                found[name] = kind if isinstance(kind, str) else getattr(kind, "__name__", str(kind))
    return found


def _where(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def check_hooks(cls: type, said: Traits) -> None:
    """Raise InputError unless a class has the hooks that it declares, and declares those that it has."""
    if issubclass(cls, Forwarding) or (cls, said) in _CHECKED:
        return
    annotated = _annotated(cls)
    has: list[str] = [name for name in HOOKS if hasattr(cls, name) or name in annotated]
    if said.role == "events" and "tuned" in has:
        has.remove("tuned")  # which is of its protocol
    for role, method in (("peers", "mix"), ("events", "meet")):
        if hasattr(cls, method) and said.role != role:
            do = f"write traits = Traits(role={role!r})"
            raise InputError(f"{_where(cls)} must declare its role, because it has a method {method}; {do}")
    for hook in said.hooks:
        if hook not in has:
            raise InputError(f"{_where(cls)} must have what it declares as a hook, got no {hook}; add {HOOKS[hook]}")
    for mine in has:
        if mine not in said.hooks:
            do = f'write traits = Traits(hooks=("{mine}",)), or _{mine} for your own'
            raise InputError(f"{_where(cls)} must declare its hook {mine}; {do}")
    _CHECKED.add((cls, said))


def _check_layer(middleware: Any, said: LayerTraits) -> None:
    """Raise InputError unless what a layer has is what it says."""
    for name in ("init", "__call__"):
        if isinstance(middleware, type) or not callable(getattr(middleware, name, None)):
            must = "must be an object of a class with the methods init and __call__ (fedsim.channel.base.Middleware)"
            raise InputError(f"a layer of the channel {must}, got {middleware!r}")
    memory = middleware.init(torch.zeros(1))
    facts = {
        "receives": (hasattr(middleware, "init_server"), "methods init_server and receive"),
        "loses": (hasattr(middleware, "delta") or hasattr(middleware, "omega"), "methods delta and omega"),
        "feedback": (not (isinstance(memory, tuple) and not memory), "a memory of its link"),
    }
    if said.loses and facts["loses"][0]:
        facts["unbiased"] = (middleware.omega(8) is not None, "a variance omega(d)")
        facts["contractive"] = (middleware.delta(8) is not None, "a contraction delta(d)")
    for word, (is_so, what) in facts.items():
        if getattr(said, word) != is_so:
            why = f"because it has {'' if is_so else 'no '}{what}"
            raise InputError(f"{_where(type(middleware))} must declare traits = LayerTraits({word}={is_so}), {why}")
