"""A node of a configuration -> the object that it describes, every key checked against the class that has it.

A node is a mapping with ``_target_``, the dotted path of a frozen dataclass (or, for models, of a factory); its other
keys are the options. Keys and types come from the annotations, ranges from ``__post_init__``. A node is built only
where a part is expected, and only if what it names makes such a part (``assembly.targets``); else nothing is called.
"""

from __future__ import annotations

import inspect
from collections import abc
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from typing import TYPE_CHECKING, Any, get_origin

from fedsim.assembly.factory import MODEL_KEYS, ModelFactory
from fedsim.assembly.problems import collect, did_you_mean, prefixed, raise_all, unknown_key
from fedsim.assembly.targets import fits, holds_part, imported, located, made_by, require_makes
from fedsim.errors import InputError
from fedsim.fields import MISFIT, fitted, hints_of
from fedsim.ground.own_code import own_code

if TYPE_CHECKING:  # torch, which checking keys needs not
    from fedsim.models import Adapted

MISSING = "???"  # how yaml marks a key that the user must give


def build_object(node: Any, path: str, kinds: tuple[Any, ...] = (object,)) -> Any:
    """The object a node describes.

    Args:
        node: ``_target_`` and options.
        path: the node's place in the configuration, for messages.
        kinds: the classes or protocols of which one must be what ``_target_`` makes; it is not called else.
    """
    target = _target_of(node, path)
    require_makes(target, kinds, f"{path}._target_", node["_target_"])
    return _construct(target, _checked(target, node, path), path)


def build_channel(node: Any, path: str) -> Any:
    """A channel node: ``encode`` and, by name, the layers in order; each may name the ``fields`` that it acts on."""
    from fedsim.channel.base import Middleware
    from fedsim.channel.channel import Channel
    from fedsim.channel.onion import Layer, Layerwise

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
            node_ = {k: v for k, v in own.items() if k != "fields"}
            layers.append(Layer(str(name), build_object(node_, at, (Middleware, Layerwise)), fields))
    raise_all(problems)
    return Channel(tuple(layers), encode)


def build_callbacks(node: Any, path: str) -> tuple[Any, ...]:
    """A node of callbacks by name, in the order in which they are called."""
    from fedsim.callbacks.base import Callback

    if not isinstance(node, Mapping):
        raise InputError(f"{path} must be callbacks by name, got {node!r}; choose them with {path}=[NAME,...]")
    problems: list[str] = []
    built = []
    for name, value in node.items():
        with collect(problems):
            at = f"{path}.{name}"
            if not isinstance(value, Mapping) or "_target_" not in value:
                must = f"{at} must be a callback with _target_, got {value!r}"
                raise InputError(f"{must}; choose callbacks with {path}=[NAME,...], or remove its keys with '~{at}'")
            built.append(build_object(value, at, (Callback,)))
    raise_all(problems)
    return tuple(built)


def build_model(node: Any, path: str) -> ModelFactory | Adapted | tuple[ModelFactory | Adapted, ...]:
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


def build_factory(node: Any, path: str) -> ModelFactory | Adapted:
    """A model node as a factory, its options checked now though the model is built later."""
    target = _target_of(node, path)
    _require_model(target, node["_target_"], path)
    own, options = split_keys(target, node)
    policy: Any = convert(own.pop("batchnorm", "error"), hints_of(ModelFactory)["batchnorm"], f"{path}.batchnorm")
    factory = ModelFactory(target, _checked(target, options, path, ("input_shape", "outputs"), MODEL_KEYS), policy)
    return adapted(factory, own, path)


def split_keys(target: Callable[..., Any], node: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The keys of a model node that every model has, and the others."""
    options = inspect.signature(target).parameters
    own = {k: value for k, value in node.items() if k in MODEL_KEYS and (k == "batchnorm" or k not in options)}
    return own, {key: value for key, value in node.items() if key not in own}


def adapted(factory: ModelFactory, keys: Mapping[str, Any], path: str) -> ModelFactory | Adapted:
    """The factory, or what these keys make of it, if there are any."""
    if all(value is None for value in keys.values()):
        return factory
    from fedsim.models import Adapted

    hints = hints_of(Adapted)
    given = {key: convert(value, hints[key], f"{path}.{key}") for key, value in keys.items() if value is not None}
    with prefixed(path, hints):
        return Adapted(factory, **given)


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
            if kind is Any:
                must = "must have an annotation to be built from _target_, such as"
                raise InputError(f"{path} {must} {path.rpartition('.')[2]}: MyClass, got {value!r}")
            if not holds_part(kind) or not fits(_target_of(value, path), kind):
                return MISFIT
            return build_object(value, path, (kind,))
        if is_dataclass(kind) and isinstance(kind, type):
            return _construct(kind, _checked(kind, value, path), path)
    if isinstance(value, str) and get_origin(kind) is abc.Callable:
        return imported(value, path, "a function")
    return MISFIT if is_dataclass(kind) else value


def _require_model(target: Callable[..., Any], name: Any, path: str) -> None:
    """Raise InputError unless it is a class of modules, a function annotated to return one, or one for ``input_shape``.

    Functions without a return annotation are told from other functions by the argument ``input_shape`` or ``outputs``.
    """
    from torch import nn

    if fits(target, nn.Module):
        return
    takes = {"input_shape", "outputs"} & set(inspect.signature(target).parameters)
    if made_by(target) or not takes or inspect.isclass(target):
        must = "must be a class of torch.nn.Module, or a function annotated to return one (-> nn.Module)"
        raise InputError(f"{path}._target_ {must}, got {name!r}")


def _target_of(node: Any, path: str) -> Callable[..., Any]:
    """The class or function that a node names."""
    if not isinstance(node, Mapping) or "_target_" not in node:
        raise InputError(f"{path} must be a mapping with _target_, got {node!r}; choose one with {path}=NAME")
    return located(node["_target_"], path)


def _checked(
    target: Callable[..., Any],
    node: Mapping[str, Any],
    path: str,
    later: tuple[str, ...] = (),
    beside: tuple[str, ...] = (),
) -> Any:
    """A node's options as keyword arguments of ``target``.

    Args:
        target: a class or a function.
        node: the options.
        path: the node's place in the configuration, for messages.
        later: names of arguments that are not the user's.
        beside: keys that such nodes have beside these, which a misspelt one may mean.
    """
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
            problems.append(
                unknown_key(path, str(key), named, value, did_you_mean(str(key), [*named, *beside], f"{path}."))
            )
    for key, parameter in named.items():
        if key not in node and parameter.default is parameter.empty:
            problems.append(f"{path}.{key} must be given, got nothing; add {path}.{key}=...")
    raise_all(problems)
    return options


def _construct(target: Callable[..., Any], options: Mapping[str, Any], path: str) -> Any:
    with own_code(path, target), prefixed(path, inspect.signature(target).parameters):
        return target(**options)
