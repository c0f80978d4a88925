"""What holds for every algorithm of the catalogue, collected from configs/algorithm/*.yaml."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from fedsim import Engine, Local, Mean, Result, simulate
from fedsim.config import build, build_run
from fedsim.data import Dataset
from fedsim.engine.oracle import ModelOracle
from fedsim.errors import InputError
from fedsim.layout import Layout
from fedsim.losses import loss_of
from fedsim.models import build as build_model
from fedsim.objective import Objective
from fedsim.partition import Dirichlet
from fedsim.schedule import Uniform
from fedsim.tree import leaves
from fedsim.types import Batch, Round
from tests.conftest import small_cnn
from tests.test_cli import composed

ROOT = Path(__file__).parent.parent.parent
VARIANTS = {"fedavgm": {"server_momentum"}}  # presets of another file's class, and the keys that make them
ALGORITHMS = sorted(p.stem for p in (ROOT / "configs/algorithm").glob("*.yaml"))


def shipped(name: str) -> tuple[dict[str, Any], str]:
    """The algorithm's node and its weights; a file of package _global_ may set both, others hold the node alone."""
    text = (ROOT / f"configs/algorithm/{name}.yaml").read_text()
    loaded = yaml.safe_load(text)
    if not text.startswith("# @package _global_\n"):
        return loaded, "examples"
    return loaded["algorithm"], loaded["aggregate"]["weights"]


def algorithm(name: str) -> Any:
    return build(shipped(name)[0], "algorithm")


def run(name: str, data: Dataset, **engine: Any) -> Result:
    """Three rounds of clients with very different sizes, two epochs, ragged minibatches."""
    return simulate(
        algorithm(name),
        data=data,
        partition=Dirichlet(clients=7, alpha=0.5, min_samples=2),
        model=small_cnn,
        rounds=3,
        schedule=Uniform(cohort=5),
        local=Local(epochs=2, batch_size=8),
        aggregate=Mean(weights=shipped(name)[1]),
        engine=Engine(**{"backend": "serial", "jobs": 4, **engine}),
        seed=1,
    )


@pytest.mark.parametrize("name", ALGORITHMS)
def test_runs_and_learns_something_finite(name: str, squares: Dataset) -> None:
    result = run(name, squares)
    assert result.status == "finished"
    assert len(result.metrics) == 4
    assert all(np.isfinite(v) for record in result.metrics for v in record.values())
    assert result.metrics[-1]["eval/loss"] != result.metrics[0]["eval/loss"]


@pytest.mark.parametrize("name", ALGORITHMS)
def test_same_seed_same_bits_other_seed_other_bits(name: str, squares: Dataset) -> None:
    first, again = run(name, squares), run(name, squares)
    assert first.summary["digest"] == again.summary["digest"]
    other = simulate(
        algorithm(name),
        data=squares,
        partition=Dirichlet(clients=7, alpha=0.5, min_samples=2),
        model=small_cnn,
        rounds=1,
        aggregate=Mean(weights=shipped(name)[1]),
        seed=2,
    )
    assert other.summary["digest"] != first.summary["digest"]


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("kernel", ["stacked", "vmap"])
def test_batching_changes_rounding_only(name: str, kernel: str, squares: Dataset) -> None:
    together = run(name, squares, dtype="float64", kernel=kernel, block=3)
    alone = run(name, squares, dtype="float64", batching="loop")
    for a, b in zip(leaves(together.server), leaves(alone.server), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)  # float64 through a few dozen steps of a CNN
    for a, b in zip(together.metrics, alone.metrics, strict=True):
        assert a["train/loss"] == pytest.approx(b["train/loss"], abs=1e-9) if "train/loss" in a else True
        assert {k: v for k, v in a.items() if k.startswith("comm/")} == {
            k: v for k, v in b.items() if k.startswith("comm/")
        }


@pytest.mark.parametrize("name", ALGORITHMS)
def test_jobs_change_rounding_only(name: str, squares: Dataset) -> None:
    one, many = run(name, squares, dtype="float64", jobs=1), run(name, squares, dtype="float64", jobs=2, block=2)
    for a, b in zip(leaves(one.server), leaves(many.server), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


class OneBatch:
    """Two equal minibatches of one client."""

    length = 2

    def __init__(self, batch: Batch):
        self.batch = batch

    def __call__(self, k: int) -> Batch:
        return self.batch

    def active(self, k: int) -> None:
        return None


@pytest.mark.parametrize("name", ALGORITHMS)
def test_methods_are_pure(name: str, squares: Dataset) -> None:
    """No input is mutated, the dataclass is frozen, and calling twice gives the same bits."""
    rule = algorithm(name)
    model = build_model(small_cnn, squares.input_shape, squares.outputs, {}, 0)
    x0 = Layout.of(model).flatten(model)
    oracle = ModelOracle(model, loss_of("classification"), "loop")
    rnd = Round(2, (0, 3), 5)
    batch = Batch(torch.rand(4, *squares.input_shape), torch.tensor([0, 1, 2, 3]))

    def once() -> tuple[Any, ...]:
        server, client = rule.init_server(x0), rule.init_client(x0)
        before = [t.clone() for t in leaves((server, client, x0))]
        got = rule.broadcast(server, rnd)
        obj = Objective(oracle, OneBatch(batch), torch.tensor(2), torch.tensor(4))
        message, after = rule.local(obj, client, got, rnd)
        stepped = rule.server(server, message, rnd)
        for t, kept in zip(leaves((server, client, x0)), before, strict=True):
            assert torch.equal(t, kept), "an input was written in place"
        assert [type(s) for s in (after, stepped)] == [type(client), type(server)]
        return message, after, stepped

    with torch.no_grad():
        for a, b in zip(leaves(once()), leaves(once()), strict=True):
            assert torch.equal(a, b)
    field = next(iter(rule.__dataclass_fields__))
    with pytest.raises(AttributeError):
        setattr(rule, field, 0)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_docstrings_cite_the_paper_and_explain_every_field(name: str) -> None:
    rule = type(algorithm(name))
    module = importlib.import_module(rule.__module__)
    head = ast.get_docstring(ast.parse(inspect.getsource(module))) or ""
    assert re.search(r"arXiv\s\d{4}\.\d{4,5}|ICML|NeurIPS|ICLR|AISTATS|JMLR|TNNLS", head), (
        "no citation in the module docstring"
    )
    assert "Algorithm" in head
    docs = "\n".join(base.__doc__ or "" for base in rule.__mro__)
    for field in fields(rule):
        assert re.search(rf"^\s+{field.name}: ", docs, re.M), f"{field.name} is not documented"


@pytest.mark.parametrize("name", ALGORITHMS)
def test_yaml_holds_the_dataclass_defaults(name: str) -> None:
    node, _ = shipped(name)
    module, _, target = node.pop("_target_").rpartition(".")
    parameters = inspect.signature(getattr(importlib.import_module(module), target)).parameters
    assert set(node) == set(parameters), "every hyper-parameter is in the yaml"
    assert len(node) == len(fields(algorithm(name))), "what the yaml's target takes is what the dataclass holds"
    defaults = {k: p.default for k, p in parameters.items() if p.default is not p.empty}
    changed = {key for key, default in defaults.items() if node[key] != default}
    assert changed == VARIANTS.get(name, set())


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_command_line_gets_the_weights_that_the_method_needs(name: str) -> None:
    assert build_run(composed(f"algorithm={name}"))["aggregate"].weights == shipped(name)[1]
    chosen = build_run(composed(f"algorithm={name}", "aggregate.weights=uniform", "algorithm.lr=0.5"))
    assert (chosen["aggregate"].weights, chosen["algorithm"].lr) == ("uniform", 0.5)


def test_uniform_weights_are_demanded_where_the_method_needs_them(squares: Dataset) -> None:
    needing = [name for name in ALGORITHMS if getattr(algorithm(name), "uniform", False)]
    assert needing == [name for name in ALGORITHMS if shipped(name)[1] == "uniform"] != []
    with pytest.raises(InputError, match=r"aggregate.weights must be uniform for Scaffold, .* add aggregate.weights="):
        simulate(
            algorithm("scaffold"), data=squares, partition=Dirichlet(clients=7, alpha=1.0), model=small_cnn, rounds=1
        )
