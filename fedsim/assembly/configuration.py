"""A plain mapping -> the objects of a run, every key checked against the class that holds it; knows nothing of Hydra.

A node is a mapping with ``_target_``, the dotted path of a frozen dataclass (or, for models, of a factory); its other
keys are the options. Keys and types come from the annotations, ranges from ``__post_init__``. All problems are
collected: the ``InputError`` of a build holds one line for each.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, is_dataclass
from difflib import get_close_matches
from importlib import import_module
from typing import Any, Literal

from fedsim.errors import InputError
from fedsim.fields import MISFIT, check_fields, fitted, hints_of, methods
from fedsim.ground.own_code import FAILURES, error_line, own_code, place
from fedsim.ground.public_names import home_of

MISSING = "???"  # how yaml marks a key that the user must give


@dataclass(frozen=True)
class Logger:
    """What a run writes beside its metrics.

    Attributes:
        trajectory: keep the server's model, or every peer's, after every round in ``trajectory.npz``.
        events: keep the events of a run in virtual time in ``events.npz``.
    """

    trajectory: bool = False
    events: bool = False

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class ModelFactory:
    """A model's constructor with its options, called once the data set is known.

    Attributes:
        target: a factory or an ``nn.Module`` class; ``input_shape`` and ``outputs`` are passed if it takes them.
        options: its other arguments.
        batchnorm: policy of ``fedsim.models.validate``.
    """

    target: Callable[..., Any]
    options: Mapping[str, Any]
    batchnorm: Literal["error", "groupnorm"] = "error"

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def __name__(self) -> str:
        """The target's name, for messages."""
        return getattr(self.target, "__name__", type(self.target).__name__)

    def __call__(self, input_shape: tuple[int, ...], outputs: int) -> Any:
        """The model for samples of this shape and this number of outputs."""
        from fedsim.models import validate

        parameters = inspect.signature(self.target).parameters
        data = {k: v for k, v in (("input_shape", input_shape), ("outputs", outputs)) if k in parameters}
        with _prefix("model", parameters.keys() - data.keys()):
            return validate(self.target(**data, **self.options), self.batchnorm)


def build_run(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments of ``fedsim.simulate`` that a resolved configuration describes.

    Raises:
        InputError: one line per unknown key, wrong type or value out of range, over the whole configuration.
    """
    from fedsim.aggregate import Aggregate
    from fedsim.assembly.parts import missing as missing_in
    from fedsim.assembly.parts import protocol_of
    from fedsim.data import Dataset, Source
    from fedsim.evaluate import Evaluate
    from fedsim.local import Local
    from fedsim.partition import Partition
    from fedsim.pool.engine import Engine
    from fedsim.privacy.config import Privacy
    from fedsim.record.checkpoint import Checkpointing
    from fedsim.schedule import Schedule
    from fedsim.topology import Topology

    def number(low: int | None) -> Callable[[Any, str], int]:
        def check(value: Any, path: str) -> int:
            done: int = convert(value, int, path)
            if low is not None and done < low:
                raise InputError(f"{path} must be >= {low}, got {done}")
            return done

        return check

    def section(kind: type) -> Callable[[Any, str], Any]:
        return lambda value, path: convert(value, kind, path)

    def object_like(role: type, *kinds: type) -> Callable[[Any, str], Any]:
        def make(node: Any, path: str) -> Any:
            return played(build_object(node, path), role, node, path, *kinds)

        return make

    def algorithm(node: Any, path: str) -> Any:
        built = build_object(node, path)
        with _prefix(path, ()):
            role = protocol_of(built)
        return played(built, role, node, path)

    def played(built: Any, role: type, node: Any, path: str, *kinds: type) -> Any:
        names, missing = methods(role), missing_in(built, role)
        if (missing or not names) and not isinstance(built, kinds):
            must = f"a class with the methods {', '.join(names)}" if names else "that class"
            without = f" without {', '.join(missing)}" if missing else ""
            raise InputError(
                f"{path}._target_ must be {must} ({role.__module__}.{role.__name__}), got {node['_target_']!r}{without}"
            )
        return built

    parts: dict[str, Callable[[Any, str], Any]] = {
        "algorithm": algorithm,
        "data": object_like(Source, Dataset),
        "partition": object_like(Partition),
        "schedule": object_like(Schedule),
        "aggregate": object_like(Aggregate),
        "engine": object_like(Engine, Engine),
        "topology": lambda node, path: None if node is None else object_like(Topology)(node, path),
        "privacy": lambda node, path: None if node is None else object_like(Privacy)(node, path),
        "channel": build_channel,
        "downlink": build_channel,
        "model": build_model,
        "local": section(Local),
        "evaluate": section(Evaluate),
        "logger": section(Logger),
        "checkpoint": section(Checkpointing),
        "rounds": number(1),
        "seed": number(None),
    }
    problems = [unknown_key("", key, parts, value) for key, value in cfg.items() if key not in parts]
    problems += [f"{key} must be given, got nothing; add {key}=..." for key in parts if key not in cfg]
    built: dict[str, Any] = {}
    for key, make in parts.items():
        if key in cfg:
            with collect(problems):
                built[key] = make(cfg[key], key)
    _raise(problems)
    logger: Logger = built.pop("logger")
    return {**built, "trajectory": logger.trajectory, "events": logger.events}


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
    _raise(problems)
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
    _raise(problems)
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


def unknown_key(path: str, key: str, valid: Iterable[str], value: Any) -> str:
    """The line about a key that nothing reads: what it may have meant, and the keys there are."""
    dot = f"{path}." if path else ""
    where = f"keys of {path}" if path else "keys"
    return f"unknown key {dot}{key} (got {value!r}); {did_you_mean(key, valid, dot)}{where}: {', '.join(valid)}"


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
        home = import_module(home_of(module))
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
    with _prefix(f"{path}._target_", ()):
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
    _raise(problems)
    return options


def _construct(target: Callable[..., Any], options: Mapping[str, Any], path: str) -> Any:
    with own_code(path, target), _prefix(path, inspect.signature(target).parameters):
        return target(**options)


def _raise(problems: list[str]) -> None:
    if problems:
        raise InputError("\n".join(problems))


@contextmanager
def _prefix(path: str, names: Iterable[str]) -> Iterator[None]:
    """Name the group in the errors of a constructor: ``lr must ...`` becomes ``algorithm.lr must ...``."""
    try:
        yield
    except InputError as error:
        first = str(error).split(maxsplit=1)[0].split("[")[0].split(".")[0].rstrip(":,")
        raise InputError(f"{path}{'.' if first in names else ': '}{error}") from error
