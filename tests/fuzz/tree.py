"""The tree of configurations as the fuzzer sees it: groups, their options, and every key with its annotation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, NamedTuple

import yaml

from fedsim.assembly.targets import located
from fedsim.cli.folder import config_folder
from fedsim.errors import InputError
from fedsim.fields import hints_of

LISTED = ("channel",)
"""Groups of which any number of options may be chosen."""
APART = ("hydra", "sweep", "experiment")
"""Folders that are no part of a run: Hydra's own, and what chooses among the others."""


class Key(NamedTuple):
    """One key of a configuration."""

    name: str  # dotted
    value: Any
    kind: Any  # its annotation; Any where there is none


@cache
def groups() -> dict[str, tuple[str, ...]]:
    """By group, its options."""
    root = config_folder()
    folders = sorted(folder for folder in root.iterdir() if folder.is_dir() and folder.name not in APART)
    return {folder.name: tuple(sorted(path.stem for path in folder.glob("*.yaml"))) for folder in folders}


@cache
def keys_of(group: str, option: str) -> tuple[Key, ...]:
    """The keys that an option brings, in its own group and in others."""
    text = (config_folder() / group / f"{option}.yaml").read_text()
    content = yaml.safe_load(text) or {}
    content.pop("defaults", None)
    return tuple(_keys(content if "@package _global_" in text else {group: content}))


@cache
def always() -> tuple[Key, ...]:
    """The keys that every run has."""
    content = yaml.safe_load((config_folder() / "config.yaml").read_text())
    return tuple(_keys({key: value for key, value in content.items() if key not in ("defaults", "hydra")}))


@cache
def overridden(option: str) -> dict[str, Any]:
    """What an algorithm chooses in other groups."""
    content = yaml.safe_load((config_folder() / "algorithm" / f"{option}.yaml").read_text()) or {}
    listed = [one for one in content.get("defaults", ()) if isinstance(one, Mapping)]
    return {str(key).rpartition("/")[2]: value for one in listed for key, value in one.items()}


def _keys(node: Mapping[str, Any], path: str = "", hints: Mapping[str, Any] | None = None) -> Iterator[Key]:
    for name, value in node.items():
        at = f"{path}{name}"
        if isinstance(value, Mapping) and value:
            yield from _keys(value, f"{at}.", _hints(value))
        else:
            yield Key(at, value, Any if name == "_target_" else (hints or {}).get(name, Any))


def _hints(node: Mapping[str, Any]) -> dict[str, Any]:
    if "_target_" not in node:
        return {}
    try:
        return hints_of(located(node["_target_"], "fuzz"))
    except InputError:
        return {}
