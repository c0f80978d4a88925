"""Whether a class agrees with what it says of itself (``fedsim.traits``), and says it where it is read.

``Declared`` is a base class that checks a class when it is defined; classes without it are checked when a run is put
together, by ``traits_of``, ``rule_traits`` and ``layer_traits``, which give the value.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import fields
from difflib import get_close_matches
from types import CodeType, FunctionType
from typing import Any, TypeVar

import torch

from fedsim.errors import InputError, first_line
from fedsim.traits import HOOKS, METHODS, LayerTraits, RuleTraits, Traits, Words

W = TypeVar("W", bound=Words)

_NAMES: dict[type[Words], frozenset[str]] = {
    Traits: frozenset(HOOKS).union(*METHODS.values()),
    RuleTraits: frozenset({"weights", "add", "merge", "finish"}),
    LayerTraits: frozenset({"init", "init_server", "receive", "delta", "omega"}),
}
"""What the engine calls and reads of a part, beside its hyper-parameters and ``traits``."""

_SPOKEN = {f.name for kind in _NAMES for f in fields(kind)}
"""All words of all parts."""

_CHECKED: set[tuple[type, object]] = set()
"""What was found right already: parts are asked again and again."""


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
    if said.noise != "none" and not isinstance(algorithm, Forwarding):
        _check_inherited(type(algorithm), ("local", "server", "releases", "client_releases"))
    return said


def rule_traits(rule: Any) -> RuleTraits:
    """What a server rule says of itself; raises InputError where that is wrong, or said of another class."""
    said = _said_by(rule, RuleTraits)
    _check_inherited(type(rule), ("add", "merge", "finish"))
    return said


def layer_traits(middleware: Any) -> LayerTraits:
    """What a layer says of itself; raises InputError where that is wrong or not true."""
    said = _said_by(middleware, LayerTraits)
    if said.layerwise and callable(middleware):
        raise InputError(
            f"{_where(type(middleware))} must not say layerwise: fedsim.channel.onion.Layerwise alone does so"
        )
    if not said.layerwise:
        _check_inherited(type(middleware), ("__call__", "delta", "omega", "receive"))
        _check_layer(middleware, said)
    return said


def _check_inherited(cls: type, methods: Iterable[str]) -> None:
    """Raise InputError when a class changes what its parent's words are about, and does not say its own."""
    for home in cls.__mro__:
        if "traits" in vars(home):
            return
        if changed := [name for name in methods if name in vars(home) and _inherits(home)]:
            must = f"must say its own traits, because it has its own {changed[0]}"
            raise InputError(f"{_where(cls)} {must}; those that it inherits are about its parent's")


def _inherits(cls: type) -> bool:
    return any("traits" in vars(home) for home in cls.__mro__[1:])


def _said_by(part: Any, kind: type[W]) -> W:
    where = _where(type(part))
    if isinstance(part, type):
        raise InputError(f"{_where(part)} is a class; give an object of it, {part.__name__}(...)")
    check_words(type(part), kind)
    _check_own(part, kind)
    if not any("traits" in vars(home) for home in type(part).__mro__) and "traits" not in _on(part):
        return kind()  # a class that says nothing has the defaults
    try:
        said = part.traits
    except InputError:
        raise
    except Exception as error:  # user code: any type
        raise InputError(f"{where}.traits failed: {type(error).__name__}: {first_line(error)}") from error
    if not isinstance(said, kind):
        raise InputError(f"{where}.traits must be a fedsim.traits.{kind.__name__}, got {said!r}")
    return said


def _on(part: Any) -> dict[str, Any]:
    """The attributes that lie on the object itself, not on its class; none for objects with slots."""
    return getattr(part, "__dict__", {})


def _check_own(part: Any, kind: type[Words]) -> None:
    """Raise InputError when a word or a method is set on the object, where nobody reads it."""
    annotated, words = _annotated(type(part)), _words(kind)
    for name, value in _on(part).items():
        if name not in annotated and (
            name in words or name in HOOKS or (callable(value) and _near(name, _NAMES[kind]))
        ):
            must = "must be declared by the class, in traits or as a method"
            raise InputError(f"{_where(type(part))}.{name} {must}, got {value!r} set on the object")


def _words(kind: type[Words]) -> list[str]:
    return [f.name for f in fields(kind)]


def _near(name: str, known: Iterable[str], cutoff: float = 0.82) -> str | None:
    """The known name that a misspelt one stands for (nearly the same letters, or two of them swapped), or None."""
    swapped = {name[:i] + name[i + 1] + name[i] + name[i + 2 :] for i in range(len(name) - 1)}
    if hit := sorted(swapped & set(known)):
        return hit[0]
    return next(iter(get_close_matches(name, sorted(known), n=1, cutoff=cutoff)), None)


def check_words(cls: type, kind: type[Words]) -> None:
    """Raise InputError when a class has a trait as an attribute, which nobody reads, or misspells a method's name."""
    if (cls, kind) in _CHECKED:
        return
    annotated, words, names = _annotated(cls), _words(kind), _NAMES[kind]
    used = {read for _, name, value in _public(cls) for read in _reads(value) if read != name}
    for home, name, value in _public(cls):
        where = f"{_where(cls)}.{name}"
        if isinstance(value, Words) and name != "traits":
            raise InputError(f"{where} is not read; its name must be traits")
        if name == "traits" or name in names:
            continue
        if callable(value) or hasattr(value, "__get__"):
            meant = None if isinstance(value, type) or name in annotated else _near(name, names)
            if meant and name not in used:
                raise InputError(f"{where} is a method that nothing calls; write {meant}, or _{name} for your own")
        elif name in annotated:
            if name not in vars(home).get("__annotations__", {}):
                do = f"write {name}: {annotated[name]} = {value!r}"
                raise InputError(f"{where} must have an annotation to change the hyper-parameter's default; {do}")
            if not home.__module__.startswith("fedsim.") and (
                name in words or (value in (True, False) and _near(name, words))
            ):
                raise InputError(f"{where} is a hyper-parameter that nobody reads; {_say(kind, name, value)}")
        elif (
            isinstance(value, (bool, str)) or name.lower() in words or _near(name.lower(), [*words, *names, *annotated])
        ):
            low = name.lower()
            slip = None if low in words else low if low in annotated else _near(low, annotated)
            say = f"write {slip}: {annotated[slip]} = {value!r}" if slip else _say(kind, name, value)
            more = f"a hyper-parameter needs an annotation, a constant of your own a name such as {name.upper()}_"
            raise InputError(f"{where} must be declared where it is read, got {name} = {value!r}; {say}; {more}")
    _CHECKED.add((cls, kind))


def _say(kind: type[Words], name: str, value: Any) -> str:
    """What to write instead of a class attribute."""
    words = _words(kind)
    meant = name.lower() if name.lower() in words else _near(name, words, cutoff=0.6)
    return f"write traits = {kind.__name__}({meant}={value!r})" if meant else "see fedsim.traits for the words"


def _public(cls: type) -> Iterator[tuple[type, str, Any]]:
    """(class, name, value) of the attributes of a class and its bases that look like parts of the interface."""
    for home in cls.__mro__:
        if home.__module__ not in ("builtins", "typing", "abc"):
            for name, value in vars(home).items():
                upper = name.isupper() and name.lower() not in _SPOKEN and not isinstance(value, Words)
                if not name.startswith("_") and not upper:
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
    has: list[str] = [name for name in HOOKS if getattr(cls, name, None) is not None or name in annotated]
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
        if not callable(getattr(middleware, name, None)):
            must = "must be an object of a class with the methods init and __call__ (fedsim.channel.base.Middleware)"
            raise InputError(f"a layer of the channel {must}, got {middleware!r}")
    for pair in (("init_server", "receive"), ("delta", "omega")):
        has = [name for name in pair if hasattr(middleware, name)]
        if len(has) == 1:
            must = f"must have both of {pair[0]} and {pair[1]}, or neither"
            raise InputError(f"{_where(type(middleware))} {must}, got {has[0]} alone")
    memory = middleware.init(torch.zeros(1))
    facts = {
        "receives": (hasattr(middleware, "receive"), "methods init_server and receive"),
        "loses": (hasattr(middleware, "delta"), "methods delta and omega"),
        "feedback": (not (isinstance(memory, tuple) and not memory), "memory of its link"),
    }
    if said.loses and hasattr(middleware, "delta"):
        facts["unbiased"] = (middleware.omega(8) is not None, "variance omega(d)")
        facts["contractive"] = (middleware.delta(8) is not None, "contraction delta(d)")
    for word, (is_so, what) in facts.items():
        if getattr(said, word) != is_so:
            why = f"because it has {'' if is_so else 'no '}{what}"
            raise InputError(f"{_where(type(middleware))} must declare traits = LayerTraits({word}={is_so}), {why}")
