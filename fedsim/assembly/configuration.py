"""A resolved configuration -> the parts of a run; all problems of all keys at once. Knows nothing of Hydra."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

from fedsim.assembly.nodes import build_callbacks, build_channel, build_model, build_object, convert
from fedsim.assembly.problems import collect, prefixed, raise_all, unknown_key
from fedsim.assembly.run_name import require_name
from fedsim.assembly.targets import expected
from fedsim.errors import InputError
from fedsim.fields import check_fields

LATER = ("task", "callbacks", "name")
"""Keys that run folders of earlier versions do not have, which leave out what they are for."""

Maker: TypeAlias = Callable[[Any, str], Any]
"""From the value of a key, and the key, to a part."""


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


def build_run(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments of ``fedsim.simulate`` that a resolved configuration describes.

    Raises:
        InputError: one line per unknown key, wrong type or value out of range, over the whole configuration.
    """
    makers = _makers()
    problems = [unknown_key("", key, makers, value) for key, value in cfg.items() if key not in makers]
    needed = [key for key in makers if key not in LATER]
    problems += [f"{key} must be given, got nothing; add {key}=..." for key in needed if key not in cfg]
    built: dict[str, Any] = {}
    for key, make in makers.items():
        if key in cfg:
            with collect(problems):
                built[key] = make(cfg[key], key)
    raise_all(problems)
    logger: Logger = built.pop("logger")
    return {**built, "trajectory": logger.trajectory, "events": logger.events}


def _makers() -> dict[str, Maker]:
    """By key, in the order in which problems are listed. Imports torch, which finding unknown keys needs not."""
    from fedsim.evaluate import Evaluate
    from fedsim.local import Local
    from fedsim.record.checkpoint import Checkpointing

    objects = ("algorithm", "data", "partition", "schedule", "aggregate", "engine", "topology", "privacy", "task")
    sections = {"local": Local, "evaluate": Evaluate, "logger": Logger, "checkpoint": Checkpointing}
    makers: dict[str, Maker] = dict.fromkeys(objects, _played)
    makers |= {"channel": build_channel, "downlink": build_channel, "model": build_model}
    makers |= {"callbacks": build_callbacks, "name": _name}
    makers |= {name: partial(_section, kind) for name, kind in sections.items()}
    return makers | {"rounds": partial(_whole, 1), "seed": partial(_whole, None)}


def _played(node: Any, key: str) -> Any:
    """An object that can play the part of ``key``; None where that may be left out."""
    from fedsim.assembly.part_roles import ROLES, missing, role_of

    if node is None and ROLES[key].optional:
        return None
    built = build_object(node, key, ROLES[key].kinds)
    with prefixed(key, ()):
        role = role_of(key, built)
    if role.fits(built):
        return built
    without = f" without {', '.join(missing(built, role.kind))}" if role.methods else ""
    raise InputError(f"{key}._target_ must be {expected(role.kind)}, got {node['_target_']!r}{without}")


def _name(value: Any, key: str) -> str | None:
    name: str | None = convert(value if value is None else str(value), str | None, key)
    require_name(name)
    return name


def _section(kind: type, value: Any, key: str) -> Any:
    return convert(value, kind, key)


def _whole(least: int | None, value: Any, key: str) -> int:
    done: int = convert(value, int, key)
    if least is not None and done < least:
        raise InputError(f"{key} must be >= {least}, got {done}")
    return done
