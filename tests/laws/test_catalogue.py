"""What holds for every algorithm of the catalogue, collected from configs/algorithm/*.yaml."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from fedsim import Engine, Local, Result, simulate
from fedsim.config import build
from fedsim.data import Dataset
from fedsim.engine.oracle import ModelOracle
from fedsim.layout import Layout
from fedsim.losses import loss_of
from fedsim.models import build as build_model
from fedsim.objective import Objective
from fedsim.partition import Dirichlet
from fedsim.schedule import Uniform
from fedsim.tree import leaves
from fedsim.types import Batch, Round
from tests.conftest import small_cnn

ROOT = Path(__file__).parent.parent.parent
ALGORITHMS = sorted(p.stem for p in (ROOT / "configs/algorithm").glob("*.yaml"))


def algorithm(name: str) -> Any:
    return build(yaml.safe_load((ROOT / f"configs/algorithm/{name}.yaml").read_text()), "algorithm")


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
    assert re.search(r"arXiv \d{4}\.\d{4,5}|ICML|NeurIPS|ICLR|AISTATS|JMLR", head), (
        "no citation in the module docstring"
    )
    assert "Algorithm" in head
    for field in rule.__dataclass_fields__:
        assert re.search(rf"^\s+{field}: ", rule.__doc__ or "", re.M), f"{field} is not documented"


@pytest.mark.parametrize("name", ALGORITHMS)
def test_yaml_holds_the_dataclass_defaults(name: str) -> None:
    rule = algorithm(name)
    node = yaml.safe_load((ROOT / f"configs/algorithm/{name}.yaml").read_text())
    assert set(node) - {"_target_"} == set(rule.__dataclass_fields__), "every hyper-parameter is in the yaml"
    for key, field in rule.__dataclass_fields__.items():
        default = field.default
        if isinstance(default, (int, float, str, bool)):
            assert node[key] == default, key
