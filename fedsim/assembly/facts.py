"""What a run's folder says of the run that was assembled: config.yaml, provenance.json, and what must not change.

The command line writes the configuration that it was given; a run from Python describes its parts as a configuration
would name them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from fedsim.assembly.assemble import Assembled
from fedsim.assembly.kernel_table import table_of
from fedsim.channel.channel import Channel
from fedsim.data.dataset import Dataset
from fedsim.data.own import Arrays
from fedsim.ground.public_names import name_of_class
from fedsim.models import Adapted
from fedsim.pool.engine import Engine
from fedsim.record.provenance import provenance
from fedsim.schedule import Events

PARTS = (
    *("algorithm", "partition", "model", "data", "schedule", "local", "aggregate", "engine", "channel", "downlink"),
    *("privacy", "topology", "task", "evaluate", "rounds", "seed", "checkpoint"),
)
"""Keys of config.yaml, in its order, that are fields of ``Parts``; the others are under ``logger``."""


def config(assembled: Assembled) -> dict[str, Any]:
    """The parts of a run as config.yaml holds them."""
    parts = assembled.parts
    given = {name: vars(parts)[name] for name in PARTS} | {"rounds": parts.planned_rounds}
    if isinstance(parts.data, (Dataset, Arrays)):  # with its digest
        given["data"] = assembled.dataset
    given["logger"] = {"trajectory": parts.trajectory, "events": parts.events}
    nodes = {name: as_node(part) for name, part in given.items()}
    nodes["engine"]["tuning"] = table(assembled)
    return nodes | {"callbacks": callback_nodes(parts.callbacks), "name": parts.called}


def filled_in(assembled: Assembled, given: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """What config.yaml holds: what was given, its name and its table filled in, or else the parts themselves."""
    if given is None:
        return config(assembled)
    found = {**given, "name": assembled.parts.called} if "name" in given else dict(given)
    if "tuning" in (engine := found.get("engine") or {}):  # which configurations of earlier versions do not have
        found["engine"] = {**engine, "tuning": table(assembled)}
    return found


def table(assembled: Assembled) -> dict[str, Any]:
    """The constants of the kernel rule."""
    return dataclasses.asdict(table_of(assembled.parts.engine))


def callback_nodes(callbacks: Sequence[Any]) -> dict[str, Any]:
    """Callbacks by name, as a configuration would name them; of two of one class the second has a number."""
    nodes: dict[str, Any] = {}
    for callback in callbacks:
        word = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(callback).__name__).lower()
        found = sum(1 for name in nodes if name.rstrip("0123456789") == word)
        nodes[f"{word}{found + 1 if found else ''}"] = as_node(callback)
    return nodes


def machine(assembled: Assembled) -> dict[str, Any]:
    """The content of provenance.json: the machine, and what the run's parts came to on it."""
    parts, dataset, prepared = assembled.parts, assembled.dataset, assembled.prepared
    d = prepared.parameters
    chosen = prepared.described() | {"tuning": table(assembled), "threads": parts.engine.threads}
    return provenance(
        parts.engine.device,
        data={"name": dataset.name, "digest": dataset.digest},
        partition={"clients": len(assembled.population), "digest": assembled.population.digest},
        engine=chosen | _precision(parts.engine),
        parameters=d[0] if len(d) == 1 else list(d),
        **_origins(parts.factories),
        **_nodes(assembled),
    )


def method(assembled: Assembled) -> dict[str, Any]:
    """What a run that goes on must have alike beside its configuration."""
    ledger, parts = assembled.ledger, assembled.parts
    same: dict[str, Any] = {"data": assembled.dataset.digest, "partition": assembled.population.digest}
    same |= {"noise": ledger.noise_multiplier} if ledger else {}
    same |= constants_digest(assembled.prepared.setup.models)
    same |= {"init": [one["sha256"] for one in found]} if (found := _origins(parts.factories).get("init", [])) else {}
    return same | ({"rounds": parts.planned_rounds} if isinstance(parts.schedule, Events) else {})  # they divide time


def _precision(engine: Engine) -> dict[str, str]:
    return {} if engine.precision is None else {"precision": engine.precision}


def _origins(factories: Sequence[Any]) -> dict[str, list[dict[str, str]]]:
    """The files of the architectures' initial values and their sha256, if there are any."""
    found = [factory.origin for factory in factories if isinstance(factory, Adapted) and factory.init is not None]
    return {"init": found} if found else {}


def constants_digest(models: Sequence[nn.Module]) -> dict[str, str]:
    """The sha256 of all frozen parameters, which no checkpoint holds, if there are any."""
    hashed, frozen = hashlib.sha256(), [p for model in models for p in model.parameters() if not p.requires_grad]
    for p in frozen:
        hashed.update(p.detach().cpu().contiguous().numpy().tobytes())
    return {"constants": hashed.hexdigest()} if frozen else {}


def _nodes(assembled: Assembled) -> dict[str, Any]:
    """The labels of the clients' nodes in a graph that has other labels than 0..n-1."""
    mixing = assembled.network.mixing
    labels = () if mixing is None else mixing.graph.graph.get("labels", ())
    return {"topology": {"nodes": list(labels)}} if labels else {}


def as_node(part: Any) -> Any:
    """A part of a run as a configuration would name it."""
    if part is None or isinstance(part, (bool, int, float, str, Mapping)):
        return part
    if isinstance(part, Channel):
        layers = {}
        for layer in part.layers:
            fields = {} if layer.fields is None else {"fields": list(layer.fields)}
            layers[layer.name] = as_node(layer.middleware) | fields
        return layers | {"encode": part.encode}
    if isinstance(part, (list, tuple)):
        return [as_node(item) for item in part]
    if isinstance(part, Dataset):
        return {"name": part.name, "digest": part.digest}
    maker = part if inspect.isclass(part) or inspect.isroutine(part) else type(part)
    node: dict[str, Any] = {"_target_": name_of_class(maker)}
    if not dataclasses.is_dataclass(part) or isinstance(part, type):
        return node
    return node | {f.name: as_node(getattr(part, f.name)) for f in dataclasses.fields(part)}
