"""A hyper-parameter has one default: the class's, which its yaml repeats, or departs from for a reason listed here."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml

CONFIGS = Path(__file__).parent.parent.parent / "configs"
PERSONAL = ("fd", "fedavg_ft", "fedgh", "fedper", "fedproto", "fedrep", "lg_fedavg", "standalone")
DIFFERENT = (
    {f"algorithm/{name}": {"weight_decay", "clip", "momentum"} for name in PERSONAL}  # FedGH's set-up, to compare alike
    | {"algorithm/fml": {"weight_decay", "clip"}}  # likewise; its two models allow no momentum
    | {"algorithm/fedavgm": {"server_momentum"}, "algorithm/onebit_adam": {"warmup"}}  # what their names promise
    | {"channel/bf16": {"format"}, "channel/int4": {"bits", "bucket"}, "engine/serial": {"backend"}}  # likewise
    | {"channel/of/onebit_adam": {"scale"}, "channel/of/onebit_adam_downlink": {"scale"}}  # the paper's sign
    | {"model/fedgh_heterogeneous": {"variant"}}  # five different models
)
FILES = {
    str(path.relative_to(CONFIGS).with_suffix("")): yaml.safe_load(path.read_text())
    for path in sorted(CONFIGS.rglob("*.yaml"))
    if path.relative_to(CONFIGS).parts[0] not in ("experiment", "sweep", "hydra")  # these say what differs, on purpose
}


def nodes(value: Any) -> Iterator[dict[str, Any]]:
    """Every mapping with a ``_target_`` in a file."""
    if isinstance(value, dict):
        if "_target_" in value:
            yield value
        for inner in value.values():
            yield from nodes(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from nodes(inner)


def defaults(target: str) -> dict[str, Any]:
    """The defaults that a class or function has of itself."""
    module, _, name = target.rpartition(".")
    found = getattr(import_module(module), name)
    parameters = inspect.signature(found).parameters
    made = {"options": {}}  # of fields that have a factory for one
    return {key: made.get(key, p.default) for key, p in parameters.items() if p.default is not p.empty}


@pytest.mark.parametrize("file", [name for name, held in FILES.items() if list(nodes(held))])
def test_a_default_in_yaml_is_the_class_s(file: str) -> None:
    found = set()
    for node in nodes(FILES[file]):
        own = defaults(node["_target_"])
        given = {key: tuple(value) if isinstance(value, list) else value for key, value in node.items() if key in own}
        found |= {key for key, value in given.items() if value != own[key]}
    assert found == DIFFERENT.get(file, set())


def test_every_departure_is_of_a_file_that_there_is() -> None:
    assert set(DIFFERENT) <= set(FILES)


def test_a_function_takes_its_defaults_from_the_class_that_it_builds() -> None:
    """``fedspeed`` is one, for a key of which the class has a method: it writes no default a second time."""
    built = {node["_target_"] for held in FILES.values() for node in nodes(held)}
    functions = [t for t in built if t.startswith("fedsim.algorithms.") and t.rpartition(".")[2].islower()]
    assert "fedsim.algorithms.fedspeed.fedspeed" in functions
    for target in functions:
        module, _, name = target.rpartition(".")
        tree = ast.parse(inspect.getsource(import_module(module)))
        (made,) = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name]
        assert made.args.defaults
        assert all(isinstance(default, ast.Attribute) for default in [*made.args.defaults, *made.args.kw_defaults])
