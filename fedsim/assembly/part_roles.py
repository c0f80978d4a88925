"""What each part of a run must be, and how to pass what is something else; knows nothing of how parts go together."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

import numpy as np
from torch import Tensor, nn

from fedsim.aggregate import Aggregate
from fedsim.algorithms.kit.protocols import EventAlgorithm, PeerAlgorithm, ServerAlgorithm
from fedsim.callbacks.base import Callback
from fedsim.channel.channel import Channel
from fedsim.data.dataset import Dataset, Source
from fedsim.data.losses import Task
from fedsim.errors import InputError, require
from fedsim.evaluate import Evaluate
from fedsim.fields import methods
from fedsim.local import Local
from fedsim.partition import Partition
from fedsim.pool.engine import Engine
from fedsim.privacy.config import Privacy
from fedsim.record.checkpoint import Checkpointing
from fedsim.schedule import Schedule
from fedsim.topology import Topology
from fedsim.traits.declared import traits_of

FOREIGN = (str, bytes, np.ndarray, np.generic, Tensor, nn.Module, ModuleType, FunctionType, BuiltinFunctionType)
"""What no part of a run is, whatever its methods are called: ``str`` has a ``split`` and ``numpy`` a ``load``."""


@dataclass(frozen=True)
class Role:
    """What a part must be.

    Attributes:
        kind: its class, or the protocol whose methods it must have.
        example: what to pass, in Python.
        also: another class that will do.
        optional: whether it may be None.
    """

    kind: type
    example: str
    also: type | None = None
    optional: bool = False

    @property
    def kinds(self) -> tuple[type, ...]:
        """All that will do: the protocols of an algorithm depend on who talks to whom."""
        if self.kind is ServerAlgorithm:
            return tuple(PROTOCOLS.values())
        return (self.kind,) if self.also is None else (self.kind, self.also)

    @property
    def methods(self) -> list[str]:
        """The methods of the protocol; none for a class."""
        return methods(self.kind) if getattr(self.kind, "_is_protocol", False) else []

    def fits(self, part: Any) -> bool:
        """Whether a part can play it."""
        if self.also is not None and isinstance(part, self.also):
            return True
        if not self.methods:
            return isinstance(part, self.kind)
        return not missing(part, self.kind)


_ALGORITHM = "an algorithm such as fedsim.algorithms.fedavg.FedAvg(lr=0.1)"
_DATA = (
    "a source such as fedsim.data.Digits(), or arrays as "
    "fedsim.data.Dataset('mine', Split(x, y), None, 'classification', outputs=10)"
)
_CHANNEL = "a fedsim.channel.channel.Channel of layers, such as Channel((Layer('topk', TopK(ratio=0.1)),))"
_PRIVACY = "a mechanism such as fedsim.privacy.config.CentralGaussian(delta=1e-5, noise_multiplier=1.0)"
ROLES = {
    "algorithm": Role(ServerAlgorithm, _ALGORITHM),
    "data": Role(Source, _DATA, also=Dataset),
    "partition": Role(Partition, "a rule such as fedsim.partition.Iid(clients=10)"),
    "schedule": Role(Schedule, "a schedule such as fedsim.schedule.Uniform(cohort=10)"),
    "local": Role(Local, "a fedsim.Local, such as Local(batch_size=10)"),
    "aggregate": Role(Aggregate, "a server rule such as fedsim.Mean()"),
    "topology": Role(Topology, "a topology such as fedsim.topology.Ring(), or None", optional=True),
    "channel": Role(Channel, _CHANNEL),
    "downlink": Role(Channel, _CHANNEL),
    "privacy": Role(Privacy, f"{_PRIVACY}, or None", optional=True),
    "task": Role(Task, "a fedsim.data.Task of a loss, such as Task(my_loss), or None", optional=True),
    "engine": Role(Engine, "a fedsim.Engine, such as Engine(backend='serial')"),
    "evaluate": Role(Evaluate, "a fedsim.Evaluate, such as Evaluate(every=5)"),
    "checkpoint": Role(Checkpointing, "a fedsim.record.checkpoint.Checkpointing"),
}
"""What ``fedsim.simulate`` takes, by argument."""


def missing(part: Any, protocol: type) -> list[str]:
    """What keeps a part from following a protocol: methods that it lacks, or that take other arguments."""
    if isinstance(part, (type, *FOREIGN)):
        return methods(protocol)
    found = []
    for name in methods(protocol):
        arguments = list(inspect.signature(getattr(protocol, name)).parameters)[1:]
        method = getattr(part, name, None)
        if not callable(method):
            found.append(name)
            continue
        try:
            inspect.signature(method).bind(*arguments)
        except TypeError:
            found.append(f"{name}({', '.join(arguments)})")
        except ValueError:  # written in C, without a signature
            continue
    return found


PROTOCOLS: dict[str, type] = {"server": ServerAlgorithm, "peers": PeerAlgorithm, "events": EventAlgorithm}


def protocol_of(algorithm: Any) -> type:
    """The protocol that an algorithm means to follow."""
    if isinstance(algorithm, (type, *FOREIGN)) or not callable(getattr(algorithm, "local", None)):
        return ServerAlgorithm  # it is none, and says nothing of itself
    return PROTOCOLS[traits_of(algorithm).role]


def role_of(name: str, part: Any) -> Role:
    """What an argument must be; the protocol of an algorithm depends on who talks to whom."""
    return Role(protocol_of(part), ROLES[name].example) if name == "algorithm" else ROLES[name]


def require_parts(parts: Mapping[str, Any]) -> None:
    """Raise InputError unless every argument of ``fedsim.simulate`` in ``parts`` is what its name says."""
    for name, part in parts.items():
        role = role_of(name, part)
        if (part is None and role.optional) or role.fits(part):
            continue
        lacks = missing(part, role.kind) if role.methods and part is not None else []
        without = f" without {', '.join(lacks)}" if lacks and not isinstance(part, (type, *FOREIGN)) else ""
        raise InputError(f"{name} must be {role.example}, got {described(part)}{without}{_advice(name, part)}")


def require_models(model: Any) -> None:
    """Raise InputError unless it is a factory, a module, or several of them."""
    must = "be a factory such as fedsim.models.mlp, a class of torch.nn.Module, a module, or a list of these"
    several = isinstance(model, Sequence) and not isinstance(model, (str, bytes))
    require(not several or len(model) > 0, "model", "be one or more architectures", "none")
    for one in model if several else [model]:
        if isinstance(one, ModuleType) or not callable(one):
            raise InputError(f"model must {must}, got {described(one)}{_advice('model', one)}")


def require_callbacks(callbacks: Any) -> tuple[Callback, ...]:
    """A list of callbacks as a tuple; raises InputError where one of them has not the methods of a callback."""
    must = "a list of callbacks such as fedsim.callbacks.EarlyStopping(target=0.9)"
    if not isinstance(callbacks, (list, tuple)):
        raise InputError(f"callbacks must be {must}, got {described(callbacks)}")
    for number, callback in enumerate(callbacks):
        if lacks := missing(callback, Callback):
            foreign = isinstance(callback, (type, *FOREIGN))
            without = "" if foreign else f" without {', '.join(lacks)}; begin your class with class NAME(Callback)"
            raise InputError(
                f"callbacks[{number}] must be one of {must}, got {described(callback)}"
                f"{without}{_advice('callbacks', callback)}"
            )
    return tuple(callbacks)


def whole(value: Any, name: str, least: int | None = None) -> int:
    """An int, as Python or numpy has it; raises InputError for anything else, or below ``least``."""
    good = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not good:
        raise InputError(f"{name} must be an int, got {described(value)}")
    require(least is None or value >= least, name, f"be >= {least}", value)
    return int(value)


def require_kind(value: Any, name: str, kinds: type | tuple[type, ...], must: str) -> None:
    """Raise InputError unless a value is of a kind."""
    if not isinstance(value, kinds):
        raise InputError(f"{name} must {must}, got {described(value)}")


def described(part: Any) -> str:
    """What a part is, in a few words."""
    if isinstance(part, type):
        return f"the class {part.__name__}"
    if isinstance(part, ModuleType):
        return f"the module {part.__name__}"
    if part is None or isinstance(part, (str, bytes, int, float)):
        return repr(part)
    return f"{type(part).__module__}.{type(part).__qualname__}".removeprefix("builtins.")


def _advice(name: str, part: Any) -> str:
    """What to do with a part that is none, as the end of a sentence; "" when the example says it."""
    if isinstance(part, type):
        return f"; pass an object of it: {part.__name__}(...)"
    if isinstance(part, str):
        return "; names are for the command line"
    if isinstance(part, Mapping):
        return (
            "; parts of a configuration are built by "
            "fedsim.assembly.configuration.build_run(OmegaConf.to_container(cfg))"
        )
    if name == "topology" and hasattr(part, "nodes"):
        do = "networkx.write_graphml(graph, 'graph.graphml'), then fedsim.topology.File(path='graph.graphml')"
        return f"; write it to a file: {do}"
    others = [other for other in ROLES if other != name and part is not None and role_of(other, part).fits(part)]
    if not others and isinstance(part, nn.Module) and name != "model":
        others = ["model"]
    return f"; it fits {others[0]}={type(part).__name__}(...)" if others else ""
