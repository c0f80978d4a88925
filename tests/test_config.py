"""Plain mappings become objects, or one clear line per problem."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Protocol

import pytest
import yaml
from torch import nn

from fedsim import Engine
from fedsim.assembly.configuration import build_run
from fedsim.assembly.factory import ModelFactory
from fedsim.assembly.facts import as_node
from fedsim.assembly.nodes import build_factory, build_model, build_object
from fedsim.cli.folder import config_folder
from fedsim.errors import InputError, require
from fedsim.models.build import build
from fedsim.record.checkpoint import Checkpointing
from fedsim.schedule import All, Asynchronous


class Anything(Protocol):
    def f(self) -> int: ...


@dataclass(frozen=True)
class Inner:
    pad: int = 0

    def __post_init__(self) -> None:
        require(self.pad >= 0, "pad", "be >= 0", self.pad)

    def f(self) -> int:
        return self.pad


@dataclass(frozen=True)
class Outer:
    lr: float
    n: int = 1
    flag: bool = False
    name: str = "a"
    block: int | Literal["auto"] = "auto"
    kind: Literal["one", "two"] = "one"
    epochs: float | None = None
    betas: tuple[float, float] = (0.9, 0.999)
    hidden: tuple[int, ...] = ()
    inner: Inner | None = None
    free: Anything | None = None

    def __post_init__(self) -> None:
        require(self.lr > 0, "lr", "be > 0", self.lr)
        require(self.n != 13, "bad luck:", "stay away", self.n)


class Plain:
    def __init__(self, width: int, **rest: Any) -> None:
        self.width, self.rest = width, rest


def model(input_shape: tuple[int, ...], outputs: int, hidden: int = 3) -> nn.Module:
    require(hidden >= 1, "hidden", "be >= 1", hidden)
    return nn.Sequential(nn.Linear(input_shape[0], hidden), nn.BatchNorm1d(hidden), nn.Linear(hidden, outputs))


class OwnNet(nn.Sequential):
    def __init__(self, width: int = 2) -> None:
        super().__init__(nn.Linear(4, width))


def node(target: Any, **keys: Any) -> dict[str, Any]:
    return {"_target_": f"{__name__}.{target.__name__}", **keys}


def problem(call: Callable[[], Any]) -> str:
    with pytest.raises(InputError) as error:
        call()
    return str(error.value)


def test_values_arrive_with_the_annotated_types() -> None:
    built = build_object(
        node(Outer, lr=1, n=2, flag=True, block="auto", kind="two", epochs=2, betas=[0, 0.5], hidden=[8, 4]), "a"
    )
    assert built == Outer(1.0, 2, True, "a", "auto", "two", 2.0, (0.0, 0.5), (8, 4))
    assert type(built.lr) is float
    assert type(built.epochs) is float
    assert type(built.betas[0]) is float


def test_nested_nodes_by_target_or_by_annotation() -> None:
    by_target = build_object(node(Outer, lr=1.0, inner=node(Inner, pad=4)), "a")
    by_annotation = build_object(node(Outer, lr=1.0, inner={"pad": 4}), "a")
    assert by_target == by_annotation
    assert by_target.inner == Inner(4)
    assert build_object(node(Outer, lr=1.0, free=node(Inner)), "a").free == Inner()  # it has the method


def test_a_plain_class_with_open_keys() -> None:
    built = build_object(node(Plain, width=2, extra="x"), "a")
    assert (built.width, built.rest) == (2, {"extra": "x"})
    assert problem(lambda: build_object(node(Plain, width="x"), "a")) == "a.width must be an int, got 'x'"


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ({"lr": "abc"}, "a.lr must be a float, got 'abc'"),
        ({"lr": True}, "a.lr must be a float, got True"),
        ({"lr": None}, "a.lr must be a float, got None"),
        ({"lr": -1}, "a.lr must be > 0, got -1.0"),
        ({"lr": float("nan")}, "a.lr must be a finite number, got nan"),
        ({"lr": float("inf")}, "a.lr must be a finite number, got inf"),
        ({"lr": 1, "epochs": float("nan")}, "a.epochs must be a finite number, got nan"),
        ({"lr": 1, "betas": [0.5, float("-inf")]}, "a.betas[1] must be a finite number, got -inf"),
        ({"lr": 1, "n": 2.0}, "a.n must be an int, got 2.0"),
        ({"lr": 1, "n": True}, "a.n must be an int, got True"),
        ({"lr": 1, "n": 13}, "a: bad luck: must stay away, got 13"),
        ({"lr": 1, "flag": 1}, "a.flag must be true or false, got 1"),
        ({"lr": 1, "flag": "yes"}, "a.flag must be true or false, got 'yes'"),
        ({"lr": 1, "name": 5}, "a.name must be a string, got 5"),
        ({"lr": 1, "block": "all"}, "a.block must be an int or 'auto', got 'all'"),
        ({"lr": 1, "kind": "three"}, "a.kind must be one of one, two, got 'three'"),
        ({"lr": 1, "epochs": "x"}, "a.epochs must be a float or null, got 'x'"),
        ({"lr": 1, "betas": [1.0]}, "a.betas must be a list of 2: a float, a float, got [1.0]"),
        ({"lr": 1, "hidden": 5}, "a.hidden must be a list of an int, got 5"),
        ({"lr": 1, "hidden": [1, "x"]}, "a.hidden[1] must be an int, got 'x'"),
        ({"lr": 1, "inner": {"pad": -2}}, "a.inner.pad must be >= 0, got -2"),
        (
            {"lr": 1, "inner": {"pda": 2}},
            "unknown key a.inner.pda (got 2); did you mean a.inner.pad? keys of a.inner: pad",
        ),
        ({"lr": 1, "inner": 3}, "a.inner must be a mapping with the keys pad or null, got 3"),
        ({"lr": "???"}, "a.lr must be given, got nothing; add a.lr=..."),
        ({}, "a.lr must be given, got nothing; add a.lr=..."),
    ],
)
def test_what_does_not_fit_is_named(keys: dict[str, Any], line: str) -> None:
    assert problem(lambda: build_object(node(Outer, **keys), "a")) == line


def test_all_problems_at_once() -> None:
    lines = problem(lambda: build_object(node(Outer, n="x", flga=True, lr="y"), "a")).splitlines()
    assert lines == [
        "a.n must be an int, got 'x'",
        "unknown key a.flga (got True); did you mean a.flag? keys of a: lr, n, flag, name, block, kind, epochs, betas, "
        "hidden, inner, free",
        "a.lr must be a float, got 'y'",
    ]


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (None, "a must be a mapping with _target_, got None"),
        ({"lr": 1}, "a must be a mapping with _target_, got {'lr': 1}"),
        ({"_target_": "Outer"}, "a._target_ must be the dotted path"),
        ({"_target_": "no_such_package.Outer"}, "No module named 'no_such_package'"),
        ({"_target_": "fedsim.errors.InputErorr"}, "did you mean InputError?"),
        (
            {"_target_": "fedsim.assembly.nodes.MISSING"},
            "fedsim.assembly.nodes has no such class or function",
        ),
    ],
)
def test_targets_that_cannot_be_found(bad: Any, words: str) -> None:
    line = problem(lambda: build_object(bad, "a"))
    assert words in line
    assert "\n" not in line


def test_a_model_is_built_when_the_data_is_known() -> None:
    factory = build_factory(node(model, hidden=5, batchnorm="groupnorm"), "model")
    assert factory == ModelFactory(model, {"hidden": 5}, "groupnorm")
    assert factory.__name__ == "model"
    net = factory((7,), 2)
    assert (net[0].in_features, net[0].out_features, net[2].out_features) == (7, 5, 2)
    assert isinstance(net[1], nn.GroupNorm)
    assert (
        build_factory(node(OwnNet, width=3), "model")((4,), 9)[0].out_features == 3
    )  # takes neither shape nor outputs


def test_model_options_are_checked_before_the_data_is_known() -> None:
    assert problem(lambda: build_factory(node(model, hidden="x"), "model")) == "model.hidden must be an int, got 'x'"
    unknown = problem(lambda: build_factory(node(model, breadth=3), "model"))
    assert unknown == "unknown key model.breadth (got 3); keys of model: hidden"
    policy = problem(lambda: build_factory(node(model, batchnorm="x"), "model"))
    assert policy == "model.batchnorm must be one of error, groupnorm, frozen, local, average, got 'x'"
    assert problem(lambda: build_factory(node(model, hidden=0), "model")((7,), 2)) == "model.hidden must be >= 1, got 0"
    refused = problem(lambda: build(build_factory(node(model), "model"), (7,), 2, {}, 0))
    assert "model.batchnorm=groupnorm" in refused


def run_config(**changes: Any) -> dict[str, Any]:
    parts = {
        "algorithm": {"_target_": "fedsim.algorithms.fedavg.FedAvg", "lr": 1},
        "data": {"_target_": "fedsim.data.Digits"},
        "partition": {"_target_": "fedsim.partition.Iid", "clients": 2},
        "schedule": {"_target_": "fedsim.schedule.All"},
        "aggregate": {"_target_": "fedsim.aggregate.Mean"},
        "engine": {"_target_": "fedsim.pool.engine.Engine", "backend": "serial"},
        "channel": {"encode": False},
        "downlink": {},
        "privacy": None,
        "topology": None,
    }
    rest = {"model": node(model), "local": {}, "evaluate": {}, "logger": {"trajectory": True}, "rounds": 3, "seed": 0}
    rest["checkpoint"] = {}
    return {**parts, **rest, **changes}


def test_a_whole_run() -> None:
    parts = build_run(run_config(local={"epochs": 2, "batch_size": "full"}))
    assert parts["trajectory"] is True
    assert (parts["rounds"], parts["seed"]) == (3, 0)
    assert (parts["local"].epochs, parts["local"].batch_size) == (2.0, "full")
    assert parts["engine"].backend == "serial"
    assert "logger" not in parts


def test_an_object_of_the_wrong_kind_is_named_with_what_it_lacks() -> None:
    for group, methods in (
        ("algorithm", "init_server, init_client"),
        ("data", "load"),
        ("schedule", "check, expected"),
    ):
        line = problem(lambda group=group: build_run(run_config(**{group: node(Inner)})))  # type: ignore[misc]
        assert line.startswith(f"{group}._target_ must be a class with the methods {methods}")
        assert "Inner' without" in line
    line = problem(lambda: build_run(run_config(engine=node(Inner))))
    assert line.startswith("engine._target_ must be that class (fedsim.pool.engine.Engine), got")


def test_a_whole_run_reports_every_problem() -> None:
    bad = run_config(
        rounds=0,
        seed="x",
        foo=1,
        local={"batch_size": 0},
        evaluate={"every": 0},
        algorithm={"_target_": "fedsim.algorithms.fedavg.FedAvg", "lr": 0},
        engine=None,
    )
    del bad["data"]
    lines = problem(lambda: build_run(bad)).splitlines()
    assert lines[0].startswith("unknown key foo (got 1); keys: algorithm, data,")
    assert lines[1:] == [
        "data must be given, got nothing; add data=...",
        "algorithm.lr must be > 0, got 0.0",
        "engine must be a mapping with _target_, got None; choose one with engine=NAME",
        "local.batch_size must be an integer >= 1 or 'full', got 0",
        "evaluate.every must be >= 1, got 0",
        "rounds must be >= 1, got 0",
        "seed must be an int, got 'x'",
    ]


GROUPS = ("aggregate", "algorithm", "callbacks", "channel", "data", "engine", "model", "partition", "schedule")
FILES = [path for group in GROUPS for path in sorted((config_folder() / group).glob("*.yaml"))]


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_shipped_node_builds_and_lists_all_its_keys(path: Path, tmp_path: Path) -> None:
    """A key that yaml leaves out could not be set on the command line without a plus."""
    cohorts = tmp_path / "cohorts.json"  # stands for what the user must give
    cohorts.write_text("[[0]]")
    group = path.parent.name
    whole = path.read_text()
    text = whole.removeprefix("# @package _global_\n")
    loaded = yaml.safe_load(text)
    given = dict(loaded if whole == text else loaded[group])
    if "architectures" in given:  # each of them is a model node
        assert all(callable(factory) for factory in build_model(given, group))
        return
    if group in ("channel", "callbacks"):  # one of several, under its own name
        assert list(given) == [path.stem]
        given = given[path.stem]
    if group == "model":
        factory = build_factory(given, group)
        names = set(inspect.signature(factory.target).parameters) - {"input_shape", "outputs"}
    else:
        values = {key: str(cohorts) if value == "???" else value for key, value in given.items()}
        needed = {"target": 0.9} if path.stem == "early_stopping" else {}  # or patience
        build_object(values | needed, group)
        home, _, target = given["_target_"].rpartition(".")
        names = set(inspect.signature(getattr(import_module(home), target)).parameters)
    assert set(given) - {"_target_", "batchnorm"} == names
    assert text.startswith("# "), "the first line says what it is"


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("fedsim.checkpoint", "Checkpointing"),
        ("fedsim.config", "ModelFactory"),
        ("fedsim.delays", "Asynchronous"),
        ("fedsim.engine.config", "Engine"),
        ("fedsim.rng", "numpy_stream"),
        ("fedsim.algorithms.base", "ServerAlgorithm"),
        ("fedsim.algorithms.around", "Around"),
        ("fedsim.algorithms.local_sgd", "LocalSGD"),
    ],
)
def test_paths_of_earlier_versions_lead_to_the_same_thing(module: str, name: str) -> None:
    """One class each, not a copy: a part built by its old name is taken where the new one is asked for."""
    found = getattr(import_module(module), name)
    assert found is getattr(import_module(found.__module__), name)
    assert found.__module__ != module


@pytest.mark.parametrize(
    ("part", "name"),
    [
        (All(), "fedsim.schedule.All"),
        (Asynchronous(concurrency=2), "fedsim.delays.Asynchronous"),
        (Checkpointing(), "fedsim.checkpoint.Checkpointing"),
        (Engine(), "fedsim.engine.config.Engine"),
        (ModelFactory(nn.Linear, {}), "fedsim.config.ModelFactory"),
    ],
)
def test_a_part_is_written_by_the_path_that_run_folders_have(part: Any, name: str) -> None:
    assert as_node(part)["_target_"] == name
