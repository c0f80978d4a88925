"""configs/data/*.yaml: each names its class, has its keys with the dataclass's own defaults, and fits its groups."""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path
from typing import Any

import pytest
import yaml

import fedsim.data

CONFIGS = Path(__file__).parent.parent / "configs"
NAMES = sorted(path.stem for path in (CONFIGS / "data").glob("*.yaml"))
SOURCES = {name for name in fedsim.data.__all__ if hasattr(getattr(fedsim.data, name), "load")} - {"Source"}


def node(name: str) -> dict[str, Any]:
    return dict(yaml.safe_load((CONFIGS / f"data/{name}.yaml").read_text()))


def test_every_source_has_a_config_and_nothing_else_has() -> None:
    targets = [node(name)["data"]["_target_"] for name in NAMES]
    assert sorted(targets) == sorted(f"fedsim.data.{source}" for source in SOURCES)
    assert len(NAMES) == 18


@pytest.mark.parametrize("name", NAMES)
def test_keys_and_values_are_those_of_the_dataclass(name: str) -> None:
    options = node(name)["data"]
    module, _, cls = options.pop("_target_").rpartition(".")
    source = getattr(importlib.import_module(module), cls)
    fields = {field.name: field.default for field in dataclasses.fields(source)}
    fields = {key: "???" if default is dataclasses.MISSING else default for key, default in fields.items()}
    assert {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()} == fields
    assert list(options) == list(fields)
    needed = {key: "given" for key, value in options.items() if value == "???"}
    assert source(**options | needed) == source(**needed)


@pytest.mark.parametrize("name", NAMES)
def test_a_config_is_described_and_overrides_existing_groups(name: str) -> None:
    first, second, *_ = (CONFIGS / f"data/{name}.yaml").read_text().splitlines()
    assert first == "# @package _global_"
    assert second.startswith("# ")
    overrides = {key: value for entry in node(name)["defaults"] for key, value in entry.items()}
    assert overrides.keys() == {"override /model", "override /partition"}
    for key, value in overrides.items():
        assert (CONFIGS / key.removeprefix("override /") / f"{value}.yaml").is_file()
    assert node(name).keys() - {"defaults", "data"} == ({"local"} if name in ("digits", "quadratic") else set())
