"""A node of a configuration -> the object that it describes, every key checked against the class that has it.

A node is a mapping with ``_target_``, the dotted path of a frozen dataclass (or, for models, of a factory); its other
keys are the options. Keys and types come from the annotations, ranges from ``__post_init__``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from importlib import import_module
from typing import Any, Literal

from fedsim.assembly.factory import ModelFactory
from fedsim.assembly.problems import collect, did_you_mean, prefixed, raise_all, unknown_key
from fedsim.errors import InputError
from fedsim.fields import MISFIT, fitted, hints_of
from fedsim.ground.own_code import FAILURES, error_line, own_code, place

MISSING = "???"  # how yaml marks a key that the user must give


def build_object(node: Any, path: str) -> Any:
    """The object a node describes; ``path`` is the node's place in the configuration, for messages."""
    target = _locate(node, path)
    return _construct(target, _checked(target, node, path), path)


def build_channel(node: Any, path: str) -> Any:
    """A channel node: ``encode`` and, by name, the layers in order; each may name the ``fields`` that it acts on."""
    from fedsim.channel.channel import Channel
    from fedsim.channel.onion import Layer

    if not isinstance(node, Mapping):
        raise InputError(f"{path} must be layers by name, got {node!r}; choose them with {path}=[NAME,...]")
    problems: list[str] = []
    layers = []
    encode = False
    for name, value in node.items():
        with collect(problems):
            if name == "encode":
                encode = convert(value, bool, f"{path}.encode")
                continue
            at = f"{path}.{name}"
            own = value if isinstance(value, Mapping) else {}
            if "_target_" not in own:
                must = f"{at} must be a layer with _target_, got {value!r}"
                raise InputError(f"{must}; choose layers with {path}=[NAME,...], or remove its keys with '~{at}'")
            fields: Any = convert(own.get("fields"), tuple[str, ...] | None, f"{at}.fields")
            layers.append(Layer(str(name), build_object({k: v for k, v in own.items() if k != "fields"}, at), fields))
    raise_all(problems)
    return Channel(tuple(layers), encode)


def build_model(node: Any, path: str) -> ModelFactory | tuple[ModelFactory, ...]:
    """A model node: one factory, or with ``architectures`` several, which the clients take in turn."""
    if not isinstance(node, Mapping) or "architectures" not in node:
        return build_factory(node, path)
    listed = node["architectures"]
    if not isinstance(listed, (list, tuple)) or not listed:
        raise InputError(f"{path}.architectures must be a list of models, got {listed!r}")
    problems = [unknown_key(path, str(k), ["architectures"], v) for k, v in node.items() if k != "architectures"]
    factories = []
    for i, one in enumerate(listed):
        with collect(problems):
            factories.append(build_factory(one, f"{path}.architectures[{i}]"))
    raise_all(problems)
    return tuple(factories)


def build_factory(node: Any, path: str) -> ModelFactory:
    """A model node as a factory, its options checked now though the model is built later."""
    target = _locate(node, path)
    policy: Any = convert(node.get("batchnorm", "error"), Literal["error", "groupnorm"], f"{path}.batchnorm")
    options = {key: value for key, value in node.items() if key != "batchnorm"}
    return ModelFactory(target, _checked(target, options, path, later=("input_shape", "outputs")), policy)


def convert(value: Any, kind: Any, path: str) -> Any:
    """``value`` as the type that an annotation names: lists become tuples, ints floats, nodes objects.

    Raises:
        InputError: ``algorithm.lr must be a float, got 'abc'``.
    """
    if value == MISSING:
        raise InputError(f"{path} must be given, got nothing; add {path}=...")
    return fitted(value, kind, path, _made)


def _made(value: Any, kind: Any, path: str) -> Any:
    """A node as an object of this class; other values are left to the class that asked for them."""
    if isinstance(value, Mapping):
        if "_target_" in value:
            built = build_object(value, path)
            strict = isinstance(kind, type) and not getattr(kind, "_is_protocol", False)
            return MISFIT if strict and not isinstance(built, kind) else built
        if is_dataclass(kind) and isinstance(kind, type):
            return _construct(kind, _checked(kind, value, path), path)
    return MISFIT if is_dataclass(kind) else value


def _locate(node: Any, path: str) -> Callable[..., Any]:
    """The class or function that a node's ``_target_`` names."""
    if not isinstance(node, Mapping) or "_target_" not in node:
        raise InputError(f"{path} must be a mapping with _target_, got {node!r}; choose one with {path}=NAME")
    target = node["_target_"]
    module, _, name = str(target).rpartition(".")
    must = f"{path}._target_ must be the dotted path of a class or function, got {target!r}; "
    if not module:
        raise InputError(must + "for example my_module.MyClass")
    try:
        home = import_module(module)
    except (ImportError, SyntaxError) as error:
        raise InputError(f"{must}{error} (installed, or a file of the current folder?)") from error
    except FAILURES as error:  # user code: any type
        raise InputError(f"{path}: {place(error) or module}: {error_line(error)}") from error
    found = getattr(home, name, None)
    if found is None:
        raise InputError(f"{must}{did_you_mean(name, vars(home))}{module} has no such class or function")
    if not callable(found) or (hasattr(found, "forward") and not inspect.isclass(found)):  # a module computes outputs
        do = f"{name} is an object of {type(found).__name__}: write a function that returns it"
        raise InputError(f"{must}{module} has no such class or function; {do}")
    try:
        inspect.signature(found)
    except ValueError as error:
        raise InputError(f"{must}Python cannot tell its arguments: write a function that calls it") from error
    return found  # type: ignore[no-any-return]


def _checked(target: Callable[..., Any], node: Mapping[str, Any], path: str, later: tuple[str, ...] = ()) -> Any:
    """A node's options as keyword arguments of ``target``; ``later`` names arguments that are not the user's."""
    parameters = {k: p for k, p in inspect.signature(target).parameters.items() if k not in later}
    named = {k: p for k, p in parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    with prefixed(f"{path}._target_", ()):
        hints = hints_of(target)
    options: dict[str, Any] = {}
    problems: list[str] = []
    for key, value in node.items():
        if key == "_target_":
            continue
        if key in named or (open_ended and key not in later):
            with collect(problems):
                options[key] = convert(value, hints.get(key, Any), f"{path}.{key}")
        else:
            problems.append(unknown_key(path, str(key), named, value))
    for key, parameter in named.items():
        if key not in node and parameter.default is parameter.empty:
            problems.append(f"{path}.{key} must be given, got nothing; add {path}.{key}=...")
    raise_all(problems)
    return options


def _construct(target: Callable[..., Any], options: Mapping[str, Any], path: str) -> Any:
    with own_code(path, target), prefixed(path, inspect.signature(target).parameters):
        return target(**options)
