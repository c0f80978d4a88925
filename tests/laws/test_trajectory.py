"""A trajectory has a row for each line of metrics.jsonl, of the same moment, in all four kinds of run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from fedsim import Engine, Local, Mean, simulate
from fedsim.aggregate import Stack
from fedsim.algorithms.dadao import DADAO
from fedsim.algorithms.dfedavg import DFedAvg
from fedsim.algorithms.fedavg import FedAvg
from fedsim.algorithms.fedbuff import FedBuff
from fedsim.errors import Interrupted
from fedsim.evaluate import Evaluate
from fedsim.models import linear_zero
from fedsim.partition import Natural
from fedsim.record.checkpoint import Checkpointing
from fedsim.schedule import All, Events
from fedsim.schedule.delays import Asynchronous
from fedsim.topology import Complete, Ring
from tests.conftest import Quadratics

ROUNDS = 5
KINDS: dict[str, dict[str, Any]] = {
    "rounds": {"algorithm": FedAvg(lr=0.2), "schedule": All()},
    "peers": {"algorithm": DFedAvg(lr=0.2), "schedule": All(), "topology": Ring()},
    "events": {"algorithm": DADAO(), "schedule": Events(t_end=2.0), "topology": Complete()},
    "async": {
        "algorithm": FedBuff(lr=0.2, buffer=2),
        "schedule": Asynchronous(concurrency=3),
        "aggregate": Stack(weights="uniform"),
    },
}


@dataclass(frozen=True)
class Stopped(Evaluate):
    """Ctrl-C comes as these rounds end."""

    rounds: ClassVar[set[int]] = set()

    def due(self, done: int, rounds: int) -> bool:
        if done in self.rounds:
            self.rounds.discard(done)
            raise KeyboardInterrupt
        return super().due(done, rounds)


@pytest.fixture(autouse=True)
def _no_stops() -> Iterator[None]:
    yield
    Stopped.rounds.clear()


def run(kind: str, problem: Quadratics, folder: Path, *, resume: bool = False) -> Any:
    parts = {"aggregate": Mean(weights="uniform"), **KINDS[kind]}
    whole = partial(
        simulate,
        parts.pop("algorithm"),
        data=problem.dataset(),
        partition=Natural(),
        model=linear_zero,
        rounds=ROUNDS,
        local=Local(steps=2, batch_size="full"),
        engine=Engine(backend="serial", dtype="float64"),
        evaluate=Stopped(),
        trajectory=True,
        checkpoint=Checkpointing(seconds=0.0),
        run_dir=folder,
        resume=resume,
        **parts,
    )
    try:
        return whole()
    except Interrupted as stop:
        return stop.result


def rows_match_lines(problem: Quadratics, folder: Path) -> np.ndarray:
    """Every row gives the loss of its line: that of the model, or of the mean of the peers' models."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    with np.load(folder / "trajectory.npz") as saved:
        x: np.ndarray = saved["x"]
        if "time/virtual_s" in lines[-1]:
            assert saved["t"].tolist() == [line.get("time/virtual_s", 0.0) for line in lines]
    models = x.mean(1) if x.ndim == 3 else x
    errors = problem.a @ models.T - problem.b[..., None]  # [n, m, rows]
    losses = problem.m / 2 * np.square(errors).mean((0, 1))
    assert len(x) == len(lines)
    known = [loss for loss, line in zip(losses, lines, strict=True) if "eval/loss" in line]  # not where it was stopped
    want = [line["eval/loss"] for line in lines if "eval/loss" in line]
    np.testing.assert_allclose(known, want, rtol=1e-10)  # float64 sums
    return x


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_those_of_the_metrics(kind: str, quadratics: Quadratics, tmp_path: Path) -> None:
    result = run(kind, quadratics, tmp_path / "run")
    x = rows_match_lines(quadratics, tmp_path / "run")
    assert len(x) == ROUNDS + 1
    np.testing.assert_array_equal(result.trajectory, x)
    steps = np.abs(np.diff(x, axis=0)).reshape(ROUNDS, -1).max(1)
    assert steps.min() > 1e-6, "nothing moved: the test proves nothing"


@pytest.mark.parametrize("kind", KINDS)
def test_also_after_a_resume(kind: str, quadratics: Quadratics, tmp_path: Path) -> None:
    whole = run(kind, quadratics, tmp_path / "whole")
    Stopped.rounds.add(3)
    stopped = run(kind, quadratics, tmp_path / "run")
    assert stopped.status == "interrupted"
    x = rows_match_lines(quadratics, tmp_path / "run")
    assert len(x) == len(stopped.metrics) < ROUNDS + 1
    resumed = run(kind, quadratics, tmp_path / "run", resume=True)
    x = rows_match_lines(quadratics, tmp_path / "run")
    np.testing.assert_array_equal(resumed.trajectory, whole.trajectory)
    np.testing.assert_array_equal(x, whole.trajectory)
