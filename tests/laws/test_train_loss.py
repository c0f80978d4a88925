"""``train/loss`` has one meaning for every algorithm of the catalogue: the plain mean minibatch loss, or no tag.

The mean over a client's local steps of the minibatch loss where each began, over the clients that have one; without the
method's terms, and without minibatches that hold no example. Here rates are so small that every model stays where it
starts, so that the value follows from the minibatches' addresses and a plain module.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fedsim import Engine, Local, Result, simulate
from fedsim.algorithms.fedavg import FedAvg
from fedsim.algorithms.fedrep import FedRep
from fedsim.algorithms.private_spiderboost import PrivateSpiderBoost
from fedsim.algorithms.scaffold import Scaffold
from fedsim.data import Dataset, Split
from fedsim.data.batches import Feed, Samples, work_of
from fedsim.data.losses import Term, loss_of
from fedsim.kernels.oracle import ModelOracle
from fedsim.models import build as build_model
from fedsim.models import linear_zero, mlp
from fedsim.objective import Objective
from fedsim.partition import Natural
from fedsim.runs.events import Timeline, levels
from fedsim.schedule import All, Events, Uniform
from fedsim.schedule.delays import Asynchronous
from fedsim.traits.declared import traits_of
from fedsim.types import Batch
from tests.laws.test_catalogue import ALGORITHMS, DUAL, PEERS, OneBatch, aggregate, algorithm, graph, working

SIZES = (3, 5, 9, 14, 20, 29, 40)
START = np.concatenate([[0], np.cumsum(SIZES)])
SEED = 1
TINY = 1e-9
WALKS = {  # rounds of these methods without a local step on a plain loss
    "powersgd": (2,),  # every other round only exchanges factors
    "diff2_bvr": (2,),  # one client walks, the others compute for nothing
}
SWEEPS = {"diff2": (1, 2, 3), "diff2_bvr": (1, 3), "private_spiderboost": (1,)}  # rounds on all examples at once
LOCALS = {
    "epochs": Local(epochs=2, batch_size=8),  # of other steps for every client, the last minibatch smaller
    "poisson": Local(steps=2, batch_size=1, sampling="poisson"),  # many are empty, some clients have no other
}
small_mlp = partial(mlp, hidden=(6,))


def classes() -> Dataset:
    """Seven clients of very different sizes, in client order, and an initial model that is known."""
    random = np.random.default_rng(0)
    y = random.integers(3, size=START[-1])
    x = random.normal(size=(START[-1], 5)) + y[:, None]
    d = 5 * 6 + 6 + 6 * 3 + 3
    groups = np.repeat(np.arange(7), SIZES)
    return Dataset("seven", Split(x, y, groups), None, "classification", 3, x0=random.normal(size=d) / 2)


def rows() -> Dataset:
    """The same clients with least squares."""
    random = np.random.default_rng(0)
    x, y, groups = random.normal(size=(START[-1], 3)), random.normal(size=START[-1]), np.repeat(np.arange(7), SIZES)
    return Dataset("rows", Split(x, y, groups), None, "least_squares", 1, x0=random.normal(size=3))


@cache
def each_loss(least_squares: bool) -> Tensor:
    """Every example's loss [n] at the initial model, by a plain module."""
    data = rows() if least_squares else classes()
    model = build_model(linear_zero if data.outputs == 1 else small_mlp, data.input_shape, data.outputs, {}, 0).double()
    torch.nn.utils.vector_to_parameters(torch.from_numpy(data.x0), model.parameters())
    outputs, y = model(torch.from_numpy(data.train.x)), torch.from_numpy(data.train.y)
    if data.outputs == 1:  # m/2 (a.x - b)^2, m the rows of the largest client
        return (max(SIZES) / 2 * (outputs[:, 0] - y) ** 2).detach()
    return F.cross_entropy(outputs, y, reduction="none").detach()


def client_loss(data: Dataset, local: Local, i: int, index: int) -> float:
    """Mean over client i's minibatches of that address that hold examples; NaN where none does."""
    each = each_loss(data.outputs == 1)
    feed = Feed(Samples(data.train.x, data.train.y, START), torch.device("cpu"), torch.float64)
    work = work_of((i,), index, feed, local, SEED)
    if work.rows is None:
        return float(each[START[i] : START[i + 1]].mean())
    means = [each[rows[:m]].mean() for rows, m in zip(work.rows[0], work.counts[0].tolist(), strict=True) if m]
    return float(torch.stack(means).mean()) if means else float("nan")


def expected(data: Dataset, local: Local, work: list[tuple[int, int]]) -> float:
    """Mean over the (client, address) that have a loss."""
    return float(np.nanmean([client_loss(data, local, i, index) for i, index in work]))


def slow(rule: Any) -> Any:
    """The method with rates that move nothing."""
    known = {"lr": TINY, "server_lr": TINY, "header_lr": TINY}
    if hasattr(rule, "smooth"):
        known |= {"mu": 1.0, "smooth": 1e11}  # a step is of order 1 / sqrt(mu L)
    if hasattr(rule, "base"):
        known["base"] = slow(rule.base)
    return replace(rule, **{name: value for name, value in known.items() if name in rule.__dataclass_fields__})


def run(name: str, data: Dataset, local: Local, **options: Any) -> Result:
    rule = slow(working(name)) if name not in DUAL else algorithm(name)
    chosen: dict[str, Any] = {"schedule": All(), "rounds": 3, "batching": "auto", **options}
    return simulate(
        rule,
        data=data,
        partition=Natural(),
        model=linear_zero if data.outputs == 1 else small_mlp,
        local=local,
        aggregate=aggregate(name),
        topology=graph(name),
        engine=Engine(backend="serial", dtype="float64", block=3, batching=chosen.pop("batching")),
        seed=SEED,
        **chosen,
    )


EVENTS = [name for name in PEERS if (traits_of(algorithm(name)).role == "events")]
ASYNCHRONOUS = [name for name in ALGORITHMS if traits_of(algorithm(name)).asynchronous]
ROUNDS = [name for name in ALGORITHMS if name not in (*EVENTS, *ASYNCHRONOUS, *DUAL)]


def test_the_settings_have_steps_and_clients_that_do_not_count() -> None:
    for index in range(3):
        each = [client_loss(classes(), LOCALS["poisson"], i, index) for i in range(7)]
        assert index or np.isnan(each).any()
        assert not np.isnan(each).all()


@pytest.mark.parametrize("batching", ["auto", "loop"])
@pytest.mark.parametrize("kind", LOCALS)
@pytest.mark.parametrize("name", ROUNDS)
def test_rounds(name: str, kind: str, batching: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedsim.data.batches.SWEEP", 8)  # so that passes over all examples have several parts
    monkeypatch.setattr("fedsim.data.batches.SWEEP_NUMBERS", 1)
    data, local = classes(), LOCALS[kind]
    for record in run(name, data, local, batching=batching).metrics[1:]:
        done = int(record["round"])
        if done in WALKS.get(name, ()):
            assert "train/loss" not in record
            continue
        seen = Local(batch_size="full") if done in SWEEPS.get(name, ()) else local
        found = expected(data, seen, [(i, done - 1) for i in range(7)])
        assert record["train/loss"] == pytest.approx(found, rel=1e-5), done  # what tiny rates still move


@pytest.mark.parametrize("name", ASYNCHRONOUS)
def test_asynchronous(name: str) -> None:
    """All seven clients are at work and arrive together, in the order in which they began."""
    data, local = classes(), Local(steps=1, batch_size=1, sampling="poisson")
    together = Asynchronous(concurrency=7, step_s=0.0, latency_s=1.0)
    rule = algorithm(name)
    buffer = 7 if name == "fedbuff" else rule.buffer
    found = simulate(
        replace(slow(rule), buffer=7) if name == "fedbuff" else slow(rule),
        data=data,
        partition=Natural(),
        model=small_mlp,
        rounds=14 // buffer,
        schedule=together,
        local=local,
        aggregate=aggregate(name),
        engine=Engine(backend="serial", dtype="float64"),
        seed=SEED,
    ).metrics[1:]
    if buffer == 7:
        values = [expected(data, local, [(i, index) for i in range(7)]) for index in (0, 1)]
        assert [r["train/loss"] for r in found] == pytest.approx(values, rel=1e-5)  # what tiny rates still move
        return
    values = [client_loss(data, local, i, index) for index in (0, 1) for i in range(7)]
    assert 0 < np.isnan(values).sum() < 14, "the test must have clients with and without examples"
    got = [r.get("train/loss", np.nan) for r in found]
    for first in (0, 7):
        np.testing.assert_allclose(np.sort(got[first : first + 7]), np.sort(values[first : first + 7]), rtol=1e-5)


@pytest.mark.parametrize("name", [name for name in EVENTS if name not in DUAL])
@pytest.mark.parametrize("kind", ["full", "poisson"])
def test_virtual_time(name: str, kind: str, tmp_path: Path) -> None:
    data, local = classes(), {"full": Local(steps=2, batch_size="full"), **LOCALS}[kind]
    options = {"schedule": Events(t_end=1.5), "rounds": 6, "run_dir": tmp_path / "run", "events": True}
    result = run(name, data, local, **options)
    with np.load(tmp_path / "run/events.npz") as saved:
        events = Timeline(*(saved[column] for column in Timeline._fields))
    level = levels(events, 7)
    tags = 0
    for k, record in enumerate(result.metrics[1:]):
        mine = np.flatnonzero((events.j < 0) & (events.t > 0.25 * k) & (events.t <= 0.25 * (k + 1)))
        each = [client_loss(data, local, int(events.i[e]), int(level[e])) for e in mine]
        if np.isnan(each).all():
            assert "train/loss" not in record
            continue
        tags += 1
        assert record["train/loss"] == pytest.approx(np.nanmean(each), rel=1e-5)  # what tiny rates still move
    assert tags


def test_dual_methods_report_the_loss_over_all_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    """They step on exact gradients: at first at the initial model, of everybody or of those who meet."""
    monkeypatch.setattr("fedsim.data.batches.SWEEP", 8)
    monkeypatch.setattr("fedsim.data.batches.SWEEP_NUMBERS", 1)
    data, whole = rows(), Local(batch_size="full")
    first = run("msda", data, whole, rounds=1).metrics[1]
    assert first["train/loss"] == pytest.approx(expected(data, whole, [(i, 0) for i in range(7)]), rel=1e-12)
    first = run("continuized", data, whole, schedule=Events(t_end=0.1), rounds=1).metrics[1]
    assert first["comm/edges"] == 1, "the test wants one meeting"
    pairs = [expected(data, whole, [(i, 0), ((i + 1) % 7, 0)]) for i in range(7)]
    assert min(abs(first["train/loss"] - pair) for pair in pairs) < 1e-9


def test_a_round_without_examples_has_no_training_loss(tmp_path: Path) -> None:
    data, local = classes(), Local(steps=1, batch_size=1, sampling="poisson")
    one = {"schedule": Uniform(cohort=1), "rounds": 30, "run_dir": tmp_path / "run"}
    result = run("fedavg", data, local, **one)
    kept = ["train/loss" in record for record in result.metrics[1:]]
    assert 0 < sum(kept) < 30
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()[1:]
    assert ['"train/loss"' in line for line in lines] == kept
    assert all(record.get("train/loss", 1.0) > 0 for record in result.metrics)


def test_subsampled_anchors_report_the_loss_of_the_samples_drawn() -> None:
    """Their mean over many rounds is the mean loss; a sample that is not drawn counts neither as 0 nor at all."""
    data = classes()
    rule = PrivateSpiderBoost(lr=TINY, period=1, anchor_rate=0.5)
    result = simulate(
        rule,
        data=data,
        partition=Natural(),
        model=small_mlp,
        rounds=150,
        local=Local(steps=1, batch_size=1, sampling="poisson"),
        aggregate=aggregate("private_spiderboost"),
        engine=Engine(backend="serial", dtype="float64"),
    )
    losses = np.array([record["train/loss"] for record in result.metrics[1:]])
    whole = expected(data, Local(batch_size="full"), [(i, 0) for i in range(7)])
    assert abs(losses.mean() - whole) < 4 * losses.std() / np.sqrt(150)  # a clinical 4 sigma of independent draws


TERMS: dict[str, Term] = {
    "outputs": lambda outputs, features, y, extra: 3 + outputs.square().sum(-1) * extra,
    "features": lambda outputs, features, y, extra: features.square().sum(-1) * extra,
}


@pytest.mark.parametrize("term", TERMS)
def test_no_term_is_in_the_training_loss(term: str) -> None:
    data = classes()
    model = build_model(small_mlp, (5,), 3, {}, 0).double()
    x = torch.from_numpy(data.x0)
    batch = Batch(torch.from_numpy(data.train.x[:4]), torch.from_numpy(data.train.y[:4]))
    oracle = ModelOracle(model, loss_of("classification"), "stacked")
    steps = torch.tensor(2)

    def one(x: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
        mine = OneBatch(Batch(inputs, batch.y))
        obj = Objective(oracle, mine, steps, torch.tensor(4), everything=mine)
        more = obj.plus(TERMS[term], lambda batch: (torch.ones(4, dtype=torch.float64),))
        more.run(lambda y, batch: y - 0.0 * more.grad(y, batch), x)
        return obj.loss.mean, obj.loss.counts

    with torch.no_grad():
        plain = oracle.value(x, batch)
        alone = one(x, batch.x)
        together = torch.func.vmap(one)(x.expand(2, -1), batch.x.expand(2, -1, -1))
    assert alone[0] == pytest.approx(float(plain), rel=1e-12)
    assert together[0].tolist() == pytest.approx([float(plain)] * 2, rel=1e-12)
    assert bool(alone[1])
    assert together[1].all()


def steps_of(data: Dataset, i: int, index: int, local: Local, rule: FedAvg, x: Tensor) -> tuple[list[float], Tensor]:
    """The losses where client i's local steps begin, and where they lead, by plain autograd in float64."""
    model = build_model(small_mlp, (5,), 3, {}, 0).double()
    feed = Feed(Samples(data.train.x, data.train.y, START), torch.device("cpu"), torch.float64)
    work = work_of((i,), index, feed, local, SEED)
    assert work.rows is not None
    torch.nn.utils.vector_to_parameters(x.clone(), model.parameters())
    solver = torch.optim.SGD(model.parameters(), lr=rule.lr, momentum=rule.momentum, weight_decay=rule.weight_decay)
    losses = []
    for rows, m in zip(work.rows[0], work.counts[0].tolist(), strict=True):
        loss = F.cross_entropy(model(feed.x[rows[:m]]), feed.y[rows[:m]])
        losses.append(float(loss.detach()))
        solver.zero_grad()
        loss.backward()
        solver.step()
    return losses, torch.nn.utils.parameters_to_vector(model.parameters()).detach()


def test_the_loss_is_that_where_each_local_step_began() -> None:
    data, local = classes(), LOCALS["epochs"]
    rule = FedAvg(lr=0.3, momentum=0.5, weight_decay=0.1)
    options: dict[str, Any] = {"data": data, "partition": Natural(), "model": small_mlp, "local": local, "seed": SEED}
    engine = Engine(backend="serial", dtype="float64", block=3)
    found = simulate(rule, rounds=2, engine=engine, aggregate=aggregate("scaffold"), **options).metrics[1:]
    x = torch.from_numpy(data.x0)
    for index in (0, 1):
        each = [steps_of(data, i, index, local, rule, x) for i in range(7)]
        assert found[index]["train/loss"] == pytest.approx(np.mean([np.mean(e[0]) for e in each]), rel=1e-10)
        x = torch.stack([e[1] for e in each]).mean(0)


def test_passes_that_are_no_local_steps_do_not_count() -> None:
    """SCAFFOLD renews its control variates with a second pass, or without one: in round 1 nothing else differs."""
    data, local = classes(), LOCALS["epochs"]
    options: dict[str, Any] = {"data": data, "partition": Natural(), "model": small_mlp, "local": local, "seed": SEED}
    first = [
        simulate(Scaffold(lr=0.3, option=option), rounds=1, aggregate=aggregate("scaffold"), **options).metrics[1]
        for option in (1, 2)
    ]
    assert first[0]["train/loss"] == first[1]["train/loss"]


def test_all_local_steps_count_in_a_method_with_two_loops() -> None:
    """FedRep's heads train before its bases: a step of either is a step."""
    data, local = classes(), Local(steps=1, batch_size="full")
    options: dict[str, Any] = {"data": data, "partition": Natural(), "model": small_mlp, "local": local, "seed": SEED}
    engine = Engine(backend="serial", dtype="float64")
    found = simulate(FedRep(lr=0.1), rounds=1, engine=engine, **options).metrics[1]
    losses = []
    for i in range(7):
        model = build_model(small_mlp, (5,), 3, {}, 0).double()
        torch.nn.utils.vector_to_parameters(torch.from_numpy(data.x0).clone(), model.parameters())
        head, mine = model.get_submodule("head"), slice(START[i], START[i + 1])
        for _ in range(2):
            loss = F.cross_entropy(model(torch.from_numpy(data.train.x[mine])), torch.from_numpy(data.train.y[mine]))
            losses.append(float(loss.detach()))
            with torch.no_grad():
                for p, g in zip(head.parameters(), torch.autograd.grad(loss, list(head.parameters())), strict=True):
                    p -= 0.1 * g
    assert found["train/loss"] == pytest.approx(np.mean(losses), rel=1e-10)
