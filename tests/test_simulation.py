"""One run from Python: what it returns, what it writes, how it ends when something goes wrong."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fedsim import Engine, Evaluate, Local, Result, simulate
from fedsim.algorithms.fedavg import FedAvg
from fedsim.assembly.assemble import assemble
from fedsim.assembly.measuring import measures_of
from fedsim.assembly.parts import Parts
from fedsim.data import Dataset, Split
from fedsim.data.batches import Samples
from fedsim.errors import ClientError, InputError, Interrupted
from fedsim.ground.layout import Layout
from fedsim.models import mlp
from fedsim.objective import Objective
from fedsim.partition import Dirichlet, Natural
from fedsim.pool.scores import Scores
from fedsim.runs.evaluation import evaluate, summarise
from fedsim.schedule import Uniform
from fedsim.types import Message, Round
from tests.conftest import Quadratics, images

SPLIT = Dirichlet(clients=6, alpha=1.0)


def run(data: Dataset, rule: Any = None, **changes: Any) -> Result:
    options: dict[str, Any] = {
        "data": data,
        "partition": SPLIT,
        "model": mlp,
        "rounds": 4,
        "schedule": Uniform(cohort=3),
        "local": Local(batch_size=16),
    }
    return simulate(rule or FedAvg(lr=0.1), **{**options, **changes})


def test_the_folder_holds_what_the_result_says(squares: Dataset, tmp_path: Path) -> None:
    result = run(squares, run_dir=tmp_path / "run", trajectory=True)
    folder = result.run_dir
    assert folder == tmp_path / "run"
    assert [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()] == result.metrics
    summary = json.loads((folder / "summary.json").read_text())
    assert summary == json.loads(json.dumps(result.summary))
    assert (summary["status"], summary["rounds"]) == ("finished", 4)
    points = np.load(folder / "trajectory.npz")["x"]
    assert points.shape == (5, sum(p.numel() for p in result.model.parameters()))
    np.testing.assert_array_equal(points[-1], result.server.x.numpy())
    provenance = json.loads((folder / "provenance.json").read_text())
    assert provenance["partition"] == {"clients": 6, "digest": SPLIT.split(squares, 0).digest}
    assert provenance["data"]["name"] == "squares"
    assert provenance["engine"]["kernel"] in ("stacked", "vmap", "loop")
    assert list((folder / "tensorboard").iterdir())
    assert "lr: 0.1" in (folder / "config.yaml").read_text()


def test_the_model_learns_and_is_the_one_evaluated(squares: Dataset) -> None:
    result = run(squares, rounds=15, evaluate=Evaluate(clients=True))
    x = (torch.from_numpy(squares.test.x).float() / 255 - squares.mean[0]) / squares.std[0]
    with torch.no_grad():
        right = (result.model(x).argmax(1).numpy() == squares.test.y).astype(float)
    last = result.metrics[-1]
    assert last["eval/accuracy"] == pytest.approx(right.mean(), abs=1e-12)
    assert last["eval/accuracy"] > 0.9 > result.metrics[0]["eval/accuracy"]
    plain = run(squares, rounds=15, evaluate=Evaluate(clients=True), engine=Engine(backend="serial", kernel="vmap"))
    assert plain.metrics[-1]["eval/loss"] == pytest.approx(last["eval/loss"], rel=1e-3), "lanes are not the model"
    own = np.array([right[rows].mean() for rows in SPLIT.split(squares, 0).test if len(rows)])
    assert last["eval/client_accuracy_mean"] == pytest.approx(own.mean(), abs=1e-12)
    assert last["eval/client_accuracy_std"] == pytest.approx(own.std(), abs=1e-12)
    assert last["eval/client_accuracy_worst10"] == pytest.approx(own.min(), abs=1e-12)


@pytest.mark.parametrize("total", [1, 3, 511, 513, 1030])
@pytest.mark.parametrize("kernel", ["stacked", "loop"])
def test_evaluation_covers_every_sample_once(total: int, kernel: str) -> None:
    """Chunks and lanes of any remainder: losses, guesses and the confusion matrix are those of the plain module."""
    data = images(n=40, side=8)
    data = replace(data, test=images(n=total, side=8, seed=1).train)
    engine = Engine(backend="serial", dtype="float64", batching="auto" if kernel == "stacked" else "loop")
    parts = Parts(FedAvg(lr=0.1), data, Dirichlet(clients=4, alpha=5.0), mlp, 1, engine=engine)
    prepared = assemble(parts, data).prepared
    assert prepared.setup.kernels == (kernel,)
    backend = prepared.start(engine)
    found = evaluate(backend, prepared.x0.numpy(), prepared.setup, clients=False)
    backend.close()
    x = ((torch.from_numpy(prepared.setup.test.x).double() / 255) - data.mean[0]) / data.std[0]
    model = Layout.of(prepared.setup.models[0]).load(prepared.setup.models[0], prepared.x0)
    with torch.no_grad():
        outputs = model(x)
    y = torch.from_numpy(prepared.setup.test.y)
    assert found.metrics["eval/loss"] == pytest.approx(float(nn.functional.cross_entropy(outputs, y)), abs=1e-12)
    want = np.zeros((4, 4), dtype=int)
    np.add.at(want, (y.numpy(), outputs.argmax(1).numpy()), 1)
    np.testing.assert_array_equal(found.confusion, want[: len(found.confusion), : len(found.confusion)])
    assert found.confusion.sum() == total


def test_bytes_are_those_of_the_encoded_messages(squares: Dataset) -> None:
    result = run(squares)
    d = sum(p.numel() for p in result.model.parameters())
    down, up = (1 + 1 + len(field) + 2 + 4 + 4 * d for field in ("x", "update"))
    for t, record in enumerate(result.metrics[1:], start=1):
        assert record["comm/uplink_bytes"] == 3 * up
        assert record["comm/downlink_bytes"] == 3 * down
        assert record["comm/uplink_total_bytes"] == 3 * up * t
    assert result.summary["comm/downlink_bytes"] == 4 * 3 * down


def test_evaluation_can_be_rare(squares: Dataset) -> None:
    result = run(squares, rounds=5, evaluate=Evaluate(every=3))
    assert [r["round"] for r in result.metrics if "eval/loss" in r] == [0, 3, 5]
    assert all("train/loss" in r for r in result.metrics[1:])


def test_without_test_samples_the_training_samples_are_evaluated(quadratics: Quadratics) -> None:
    result = simulate(
        FedAvg(lr=0.1),
        data=quadratics.dataset(),
        partition=Natural(),
        model=nn.Linear(quadratics.d, 1, bias=False),
        rounds=1,
        local=Local(batch_size="full"),
        engine=Engine(backend="serial", dtype="float64"),
    )
    x = np.linspace(-1, 1, quadratics.d)
    f = np.mean([0.5 * np.sum((a @ x - b) ** 2) for a, b in zip(quadratics.a, quadratics.b, strict=True)])
    assert result.metrics[0]["eval/loss"] == pytest.approx(f, rel=1e-12)
    # one full-batch step: the loss where it began is the loss of the initial model
    assert result.metrics[1]["train/loss"] == pytest.approx(f, rel=1e-12)


@pytest.mark.parametrize("backend", ["serial", "ray"])
def test_divergence_keeps_what_was_recorded(squares: Dataset, tmp_path: Path, backend: str) -> None:
    result = run(squares, FedAvg(lr=1e30), run_dir=tmp_path / "run", engine=Engine(backend=backend, actors=1))
    assert result.status == "diverged"
    assert "non-finite" in result.message
    assert "clients [" in result.message
    assert result.summary["status"] == "diverged"
    assert json.loads((tmp_path / "run/summary.json").read_text())["message"] == result.message
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    assert len(lines) == len(result.metrics) == result.summary["rounds"] + 1
    assert torch.isfinite(result.server.x).all(), "the last finite model is kept"


def test_a_test_loss_without_a_value_is_divergence(squares: Dataset) -> None:
    """The parameters are finite still, and no client computes with them: it is the last round."""
    result = run(squares, FedAvg(lr=1e25), rounds=1, local=Local(steps=1))
    assert torch.isfinite(result.server.x).all()
    assert (result.status, len(result.metrics)) == ("diverged", 2)
    assert result.message == "the loss on the test samples is not finite after round 1"


@dataclass(frozen=True)
class Stops(FedAvg):
    """FedAvg that raises something in round 3."""

    error: type[BaseException] = KeyboardInterrupt

    def local(self, obj: Objective, client: tuple[()], got: Message, rnd: Round) -> tuple[Message, tuple[()]]:
        if rnd.index == 2:
            raise self.error("on purpose")
        return super().local(obj, client, got, rnd)


def test_an_interrupted_run_raises_with_what_it_had(squares: Dataset, tmp_path: Path) -> None:
    with pytest.raises(Interrupted, match="KeyboardInterrupt after round 2") as stop:
        run(squares, Stops(lr=0.1), run_dir=tmp_path / "run")
    result = stop.value.result
    assert (result.status, result.summary["rounds"], len(result.metrics)) == ("interrupted", 2, 3)
    assert json.loads((tmp_path / "run/summary.json").read_text())["status"] == "interrupted"


def test_a_failed_run_leaves_its_records_and_says_so(squares: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ClientError, match=r"Stops failed in round 3 for clients .* RuntimeError: on purpose"):
        run(squares, Stops(lr=0.1, error=RuntimeError), run_dir=tmp_path / "run")
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert (summary["status"], summary["rounds"]) == ("failed", 2)
    assert len((tmp_path / "run/metrics.jsonl").read_text().splitlines()) == 3


class OwnModel(nn.Module):
    """A user's module with a residual connection; knows nothing of fedsim."""

    def __init__(self, outputs: int, width: int = 16):
        super().__init__()
        self.first = nn.Linear(144, width)
        self.second = nn.Linear(width, width)
        self.last = nn.Linear(width, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.relu(self.first(x.flatten(1)))
        return self.last(h + torch.relu(self.second(h)))


class Odd(OwnModel):
    """A module with an operation that has no stacked kernel."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.special.expit(torch.cumsum(self.first(x.flatten(1)), dim=1)))


@pytest.mark.parametrize("model", [OwnModel, OwnModel(4), Odd])
def test_a_users_own_module(squares: Dataset, model: Any) -> None:
    together = run(squares, model=model, engine=Engine(backend="serial", dtype="float64"))
    alone = run(squares, model=model, engine=Engine(backend="serial", dtype="float64", batching="loop"))
    assert together.metrics[-1]["eval/loss"] < together.metrics[0]["eval/loss"]
    torch.testing.assert_close(together.server.x, alone.server.x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"rounds": 0}, "rounds must be >= 1, got 0"),
        ({"schedule": Uniform(cohort=7)}, "cohort must be .*7"),
        ({"engine": Engine(backend="serial", device="cuda")}, "engine.device must be cpu"),
        ({"model": nn.Linear(3, 4)}, "fails on a zero sample"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_starts(
    squares: Dataset, tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    if torch.cuda.is_available() and "device" in says:
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(InputError, match=says):
        run(squares, run_dir=tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


def test_a_folder_that_holds_a_run_is_left_alone(squares: Dataset, tmp_path: Path) -> None:
    run(squares, run_dir=tmp_path / "run", rounds=1)
    before = (tmp_path / "run/metrics.jsonl").read_bytes()
    with pytest.raises(InputError, match="already holds a run"):
        run(squares, run_dir=tmp_path / "run", rounds=1)
    assert (tmp_path / "run/metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize(("clients", "counted"), [(1, 1), (9, 1), (10, 1), (11, 2), (19, 2), (20, 2), (21, 3)])
@pytest.mark.parametrize("task", ["classification", "regression"])
def test_the_worst_tenth_is_rounded_up(task: str, clients: int, counted: int) -> None:
    random = np.random.default_rng(clients)
    sizes = random.integers(1, 6, clients)
    start, n = np.concatenate([[0], np.cumsum(sizes)]), int(sizes.sum())
    losses, hits = random.random(n), random.integers(2, size=n).astype(np.float64)
    measures = measures_of(Evaluate(), Dataset("rows", Split(np.zeros((2, 1)), np.zeros(2, int)), None, task, 1))
    values = hits[:, None] if task == "classification" else losses[:, None]
    found = Scores(losses, values, np.zeros(n, dtype=np.int64), np.zeros((n, 0)))
    test = Samples(np.zeros((n, 1)), np.zeros(n, dtype=np.int64), start)
    metrics = summarise(found, test, measures, clients=True).metrics
    each = sorted((hits if task == "classification" else -losses)[a:b].mean() for a, b in pairwise(start.tolist()))
    name = "accuracy" if task == "classification" else "loss"
    want = abs(np.mean(each[:counted]))
    assert metrics[f"eval/client_{name}_worst10"] == pytest.approx(want, rel=1e-12)
