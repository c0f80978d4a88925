"""What holds for every algorithm of the catalogue, collected from configs/algorithm/*.yaml."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from copy import deepcopy
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from fedsim import Engine, Local, Mean, Result, simulate
from fedsim.aggregate import Stack
from fedsim.algorithms.kit.protocols import Constants, RoundConstants
from fedsim.assembly.configuration import build_run
from fedsim.assembly.network import is_peers
from fedsim.assembly.nodes import build_object
from fedsim.channel.channel import Channel
from fedsim.channel.ef14 import EF14
from fedsim.channel.message import heard
from fedsim.channel.noise import Addressed
from fedsim.channel.onion import Layer
from fedsim.channel.randk import RandK
from fedsim.channel.sign import Sign
from fedsim.channel.topk import TopK
from fedsim.data import Dataset, Split, batches
from fedsim.data.losses import loss_of
from fedsim.errors import InputError
from fedsim.ground.layout import Layout
from fedsim.ground.tree import leaves, tree_map
from fedsim.kernels.oracle import ModelOracle
from fedsim.models import Factory, linear_zero
from fedsim.models import build as build_model
from fedsim.objective import Objective
from fedsim.partition import Dirichlet, Iid
from fedsim.pool import plan as planning
from fedsim.schedule import All, Events, Uniform
from fedsim.schedule.delays import Asynchronous
from fedsim.topology import ExponentialDirected, Ring
from fedsim.traits.declared import traits_of
from fedsim.types import Batch, Round, Stretch
from tests.conftest import images, small_cnn
from tests.test_cli import composed

ROOT = Path(__file__).parent.parent.parent
EARLY: dict[str, dict[str, Any]] = {
    "mesa": {"start": 1},
    "onebit_adam": {"warmup": 1},
}  # three rounds must reach what these begin later
DUAL = ("continuized", "msda")  # of quadratic losses only
KNOWN = {"dadao": {"mu": 0.5, "smooth": 20.0, "weight_decay": 0.5}}  # of losses that are no least squares
SIGNS = (Layer("sign", Sign("l2"), ("momentum",)),)
UPLINKS = {  # without these layers the method's own part would have nothing to do
    "onebit_adam": (Layer("ef14", EF14(), ("momentum",)), *SIGNS),
    "ec_sgd_diana": (
        Layer("topk", TopK(ratio=0.1), ("step",)),
        Layer("randk", RandK(ratio=0.5, unbiased=True), ("shift",)),
    ),
}
DOWNLINKS = {"onebit_adam": SIGNS}
ALGORITHMS = sorted(p.stem for p in (ROOT / "configs/algorithm").glob("*.yaml"))
EACH = [pytest.param(name, marks=pytest.mark.xdist_group(f"catalogue {name}")) for name in ALGORITHMS]
"""Tests of one method come to one worker, which keeps the runs that they share."""


def shipped(name: str) -> tuple[dict[str, Any], str]:
    """The algorithm's node and its weights, which may be changed."""
    return deepcopy(_read(name))


@cache
def _read(name: str) -> tuple[dict[str, Any], str]:
    """A file of package _global_ may set both, others hold the node alone."""
    text = (ROOT / f"configs/algorithm/{name}.yaml").read_text()
    loaded = yaml.safe_load(text)
    if not text.startswith("# @package _global_\n"):
        return loaded, "examples"
    return loaded["algorithm"], loaded["aggregate"]["weights"]


def algorithm(name: str) -> Any:
    return build_object(shipped(name)[0], "algorithm")


def aggregate(name: str) -> Mean | Stack:
    """The server's rule that the algorithm's file asks for, as the method itself says that it must be."""
    rule = Stack if traits_of(algorithm(name)).stacked else Mean
    return rule(weights=shipped(name)[1])  # type: ignore[arg-type]


SERVERS = [name for name in ALGORITHMS if not is_peers(algorithm(name))]
PEERS = [name for name in ALGORITHMS if is_peers(algorithm(name))]


def everything(result: Result) -> list[Any]:
    """The final states of the server and of all seven clients; methods without a server have the latter only."""
    return leaves((result.server, *(result.client(i) for i in range(7))))


def working(name: str) -> Any:
    """The shipped algorithm, its later phases moved into the first three rounds, and what it must be told."""
    return replace(algorithm(name), **(EARLY | KNOWN).get(name, {}))


def problem(name: str, data: Dataset, model: Factory = small_cnn) -> dict[str, Any]:
    """Data, seven clients and model: those given, or least squares for methods that can do nothing else."""
    if name not in DUAL:
        return {"data": data, "partition": Dirichlet(clients=7, alpha=0.5, min_samples=2), "model": model}
    random = np.random.default_rng(0)
    x, y = random.normal(size=(100, 3)).astype(np.float32), random.normal(size=100).astype(np.float32)
    data = Dataset("rows", Split(x, y), None, "least_squares", 1)
    return {"data": data, "partition": Iid(clients=7), "model": linear_zero}


def cohorts(name: str) -> All | Uniform | Events | Asynchronous:
    """Five of seven clients a round, or all where the method needs them."""
    if traits_of(algorithm(name)).role == "events":
        return Events(t_end=3.0)
    if traits_of(algorithm(name)).asynchronous:
        return Asynchronous(concurrency=3)
    return All() if traits_of(algorithm(name)).everyone else Uniform(cohort=5)


def graph(name: str) -> Ring | ExponentialDirected | None:
    """Where peers gossip: a ring, or one-way for a method that is made for it."""
    one_way = traits_of(algorithm(name)).mixes == "columns"
    return None if name in SERVERS else ExponentialDirected() if one_way else Ring()


def run(name: str, data: Dataset, *, rounds: int = 3, seed: int = 1, **engine: Any) -> Result:
    """Rounds of clients with very different sizes, two epochs, ragged minibatches."""
    return simulate(
        working(name),
        **problem(name, data),
        rounds=rounds,
        schedule=cohorts(name),
        topology=graph(name),
        local=Local(epochs=2, batch_size=8),
        aggregate=aggregate(name),
        channel=Channel(UPLINKS.get(name, ())),
        downlink=Channel(DOWNLINKS.get(name, ())),
        engine=Engine(**{"backend": "serial", "jobs": 2, **engine}),
        seed=seed,
    )


FEW = images(72)
"""A client of some twenty, others of a few: ragged minibatches of 8 with few steps."""


@cache
def plain(name: str) -> Result:
    """The run in float32 with the kernel that is chosen for it."""
    return run(name, FEW)


@cache
def alone(name: str) -> Result:
    """The same in float64, one client after the other."""
    return run(name, FEW, dtype="float64", batching="loop")


@pytest.mark.parametrize("name", EACH)
def test_runs_and_learns_something_finite(name: str) -> None:
    result = plain(name)
    assert result.status == "finished"
    assert len(result.metrics) == 4
    assert all(np.isfinite(v) for record in result.metrics for v in record.values())
    assert result.metrics[-1]["eval/loss"] != result.metrics[0]["eval/loss"]


@pytest.mark.parametrize("name", EACH)
def test_same_seed_same_bits_other_seed_other_bits(name: str) -> None:
    assert run(name, FEW).summary["digest"] == plain(name).summary["digest"]
    other = run(name, FEW, rounds=1, seed=2)
    assert other.summary["digest"] != plain(name).summary["digest"]
    assert other.metrics[1]["eval/loss"] != plain(name).metrics[1]["eval/loss"]


def assert_close(one: Result, other: Result) -> None:
    """To the rounding of float64 through a few dozen steps of a CNN, and byte by byte."""
    assert everything(other)
    for a, b in zip(everything(one), everything(other), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    for a, b in zip(one.metrics, other.metrics, strict=True):
        assert a["train/loss"] == pytest.approx(b["train/loss"], abs=1e-9) if "train/loss" in a else True
        assert {k: v for k, v in a.items() if k.startswith("comm/")} == {
            k: v for k, v in b.items() if k.startswith("comm/")
        }


BATCHINGS: dict[str, dict[str, Any]] = {
    "vmap": {"kernel": "vmap", "block": 3},  # in two jobs: five clients as 3, and 2
    "one block": {"jobs": 1, "block": planning.LIGHT},  # the whole cohort together, whoever works how long
    "two jobs, stacked": {"jobs": 2, "block": 2, "kernel": "stacked"},  # five clients as 2 and 1, and 2
}


@pytest.mark.parametrize("name", EACH)
@pytest.mark.parametrize("how", BATCHINGS)
def test_batching_and_jobs_change_rounding_only(name: str, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "LONG", 1)  # as if rounds were long
    monkeypatch.setattr(batches, "LONE", 2)
    assert_close(run(name, FEW, dtype="float64", **BATCHINGS[how]), alone(name))


class OneBatch:
    """Two equal minibatches of one client."""

    length = 2
    expected = torch.tensor(4)
    stretches = (Stretch(0, 2),)

    def __init__(self, batch: Batch):
        self.batch = batch

    def __call__(self, k: int) -> Batch:
        return self.batch

    def holds(self, k: int) -> None:
        return None


def part(what: str, layout: Layout, x0: torch.Tensor) -> Any:
    """What a method that shares or keeps this much of a model starts from."""
    if what == "parameters":
        return {name: view.clone() for name, view in layout.views(x0).items()}
    if what == "nothing":
        return x0.new_empty(0)
    if what in ("body", "head"):
        return layout.split(x0)[("body", "head").index(what)]
    return x0


OTHER_KINDS = [("powersgd", 3), ("onebit_adam", 0), ("diff2_bvr", 7)]  # rounds that do something else
EACH_KIND = [*((name, 2) for name in SERVERS), *OTHER_KINDS]


@pytest.mark.parametrize(("name", "index"), EACH_KIND)
def test_methods_are_pure(name: str, index: int, squares: Dataset) -> None:
    """No input is mutated, the dataclass is frozen, and calling twice gives the same bits."""
    rule = working(name)
    model = build_model(small_cnn, squares.input_shape, squares.outputs, {}, 0)
    layout = Layout.of(model)
    x0 = layout.flatten(model)
    oracle = ModelOracle(model, loss_of("classification"), "loop")
    rnd = Round(index, (0, 3), 5)
    batch = Batch(torch.rand(4, *squares.input_shape), torch.tensor([0, 1, 2, 3]))

    def once() -> tuple[Any, ...]:
        server = rule.init_server(part(traits_of(rule).shares, layout, x0))
        client = rule.init_client(part(traits_of(rule).keeps, layout, x0))
        before = [t.clone() for t in leaves((server, client, x0))]
        got = heard(rule.broadcast(server, rnd))
        data = OneBatch(batch)
        noise = Addressed(0, "local", index, torch.tensor(3))
        obj = Objective(oracle, data, torch.tensor(2), torch.tensor(4), noise, data, [oracle])
        message, after = rule.local(obj, client, got, rnd)
        one = aggregate(name)
        sums = one.add({}, (3,), tree_map(lambda t: t[None], message), torch.ones(1, dtype=torch.float64))
        received = one.finish(tree_map(lambda t: t.numpy(), sums), 1.0, x0.dtype)
        if traits_of(rule).asynchronous:
            received["staleness"] = torch.ones(1)
        stepped = rule.server(server, received, rnd)
        own = rule.own(obj, after, heard(rule.broadcast(stepped, rnd)), rnd) if "own" in traits_of(rule).hooks else x0
        assert own.shape == x0.shape
        for t, kept in zip(leaves((server, client, x0)), before, strict=True):
            assert torch.equal(t, kept), "an input was written in place"
        assert [type(s) for s in (after, stepped)] == [type(client), type(server)]
        return message, after, stepped, own

    with torch.no_grad():
        for a, b in zip(leaves(once()), leaves(once()), strict=True):
            assert torch.equal(a, b)
    field = next(iter(rule.__dataclass_fields__))
    with pytest.raises(AttributeError):
        setattr(rule, field, 0)


@pytest.mark.parametrize("name", PEERS)
def test_peers_methods_are_pure(name: str, squares: Dataset) -> None:
    """No input is mutated, the dataclass is frozen, and calling twice gives the same bits."""
    rule: Any = working(name)
    if traits_of(rule).role == "events" or "tuned" in traits_of(rule).hooks:
        known = {"mu": 0.5, "smooth": 20.0}
        rule = rule.tuned(
            Constants(5, 2.0, 0.25, **known) if (traits_of(rule).role == "events") else RoundConstants(0.3, **known)
        )
    given = problem(name, squares)
    data = given["data"]
    model = build_model(given["model"], data.input_shape, data.outputs, {}, 0)
    x0 = Layout.of(model).flatten(model)
    oracle = ModelOracle(model, loss_of(data.task), "loop")
    batch = OneBatch(Batch(torch.rand(4, *data.input_shape), torch.tensor([0, 1, 2, 3])))
    rnd = Round(2, (0, 3), 5)

    def once() -> Any:
        obj = Objective(oracle, batch, torch.tensor(2), torch.tensor(4), everything=batch, oracles=[oracle])
        peer = rule.init_client(x0)
        before = [t.clone() for t in leaves((peer, x0))]
        after = rule.local(obj, peer, rnd)
        if traits_of(rule).role == "events":
            done = rule.meet(rule.flow(after, torch.tensor(0.5)), rule.offer(peer, rnd), rnd)
        else:
            held = rule.offer(after, rnd)
            after, held = rule.publish(after, held, rnd) if "publish" in traits_of(rule).hooks else (after, held)
            done = rule.mix(after, held, rnd)
        assert rule.model(done).shape == x0.shape
        for t, kept in zip(leaves((peer, x0)), before, strict=True):
            assert torch.equal(t, kept), "an input was written in place"
        assert type(done) is type(peer)
        return done

    with torch.no_grad():
        for a, b in zip(leaves(once()), leaves(once()), strict=True):
            assert torch.equal(a, b)
    with pytest.raises(AttributeError):
        setattr(rule, next(iter(rule.__dataclass_fields__)), 0)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_docstrings_cite_the_paper_and_explain_every_field(name: str) -> None:
    rule = type(algorithm(name))
    module = importlib.import_module(rule.__module__)
    head = ast.get_docstring(ast.parse(inspect.getsource(module))) or ""
    if name == "standalone":  # SGD on one's own data: there is nothing to cite
        assert "No paper" in head
    else:
        cites = re.search(r"arXiv\s\d{4}\.\d{4,5}|ICML|NeurIPS|ICLR|AISTATS|JMLR|TNNLS", head)
        assert cites, "no citation in the module docstring"
        box = re.search(r"\balgorithm\s+box|\bAlgorithm\b", head)
        assert box, "does not say which algorithm of the paper it is"
    docs = "\n".join(base.__doc__ or "" for base in rule.__mro__)
    for field in fields(rule):
        assert re.search(rf"^\s+{field.name}: ", docs, re.M), f"{field.name} is not documented"


@pytest.mark.parametrize("name", ALGORITHMS)
def test_yaml_holds_every_hyper_parameter(name: str) -> None:
    node, _ = shipped(name)
    module, _, target = node.pop("_target_").rpartition(".")
    parameters = inspect.signature(getattr(importlib.import_module(module), target)).parameters
    assert set(node) == set(parameters), "every hyper-parameter is in the yaml"
    assert len(node) == len(fields(algorithm(name))), "what the yaml's target takes is what the dataclass holds"


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_command_line_gets_the_weights_that_the_method_needs(name: str) -> None:
    assert build_run(composed(f"algorithm={name}"))["aggregate"] == aggregate(name)
    base = "base." if "base" in shipped(name)[0] else ""  # a method around another holds its lr
    if "lr" not in (shipped(name)[0]["base"] if base else shipped(name)[0]):
        return
    chosen = build_run(composed(f"algorithm={name}", "aggregate.weights=uniform", f"algorithm.{base}lr=0.5"))
    solver = chosen["algorithm"].base if base else chosen["algorithm"]
    assert (chosen["aggregate"].weights, solver.lr) == ("uniform", 0.5)


def test_a_method_around_another_needs_what_the_other_needs() -> None:
    base = "algorithm.base._target_=fedsim.algorithms.fedspeed.FedSpeed"
    run = build_run(composed("algorithm=relaxed", base, "+algorithm.base.rho=0.2", "algorithm.base.lr=0.3"))
    rule = run["algorithm"]
    assert (rule.base.rho, rule.base.lr, rule.traits.uniform, rule.beta) == (0.2, 0.3, True, 0.1)
    assert not algorithm("relaxed").traits.uniform


def test_uniform_weights_are_demanded_where_the_method_needs_them(squares: Dataset) -> None:
    needing = [name for name in ALGORITHMS if traits_of(algorithm(name)).uniform]
    asking = {name for name in SERVERS if shipped(name)[1] == "uniform"}
    assert needing
    assert asking - set(needing) == {
        *("fedgh", "fd", "fedproto"),  # their papers' code: every owner of a class alike
        *("fedasync", "fedbuff"),  # staleness is what counts
    }
    assert set(needing) <= asking
    with pytest.raises(InputError, match=r"aggregate.weights must be uniform for Scaffold, .* add aggregate.weights="):
        simulate(
            algorithm("scaffold"), data=squares, partition=Dirichlet(clients=7, alpha=1.0), model=small_cnn, rounds=1
        )
