"""FedAvg and SGD against numpy loops and closed forms on quadratics, and against a plain torch loop on a CNN."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fedsim import Engine, Local, Mean, simulate
from fedsim.algorithms.fedavg import FedAvg
from fedsim.algorithms.sgd import SGD
from fedsim.data import Dataset
from fedsim.ground.rng import stream
from fedsim.models import linear_zero
from fedsim.partition import Dirichlet, Natural
from fedsim.schedule import All, Cohorts
from tests.conftest import Quadratics, small_cnn

FLOAT64 = 1e-12  # a few hundred float64 operations on numbers of order 1 to 10
COHORTS = [[0, 1, 2], [1, 4], [3], [0, 2, 3, 4], [0, 1, 2, 3, 4], [2]]


def run(problem: Quadratics, algorithm, schedule, rounds: int, steps: int, batching: str = "auto") -> np.ndarray:
    """Trajectory [rounds + 1, d] of a full-batch float64 run."""
    result = simulate(
        algorithm,
        data=problem.dataset(),
        partition=Natural(),
        model=linear_zero,
        rounds=rounds,
        schedule=schedule,
        local=Local(steps=steps, batch_size="full"),
        aggregate=Mean(weights="uniform"),
        engine=Engine(backend="serial", dtype="float64", batching=batching),
        trajectory=True,
    )
    assert result.status == "finished"
    return result.trajectory


def numpy_fedavg(
    problem: Quadratics, cohorts, *, lr, steps, decay=1.0, server_lr=1.0, momentum=0.0
) -> list[np.ndarray]:
    x, v = np.linspace(-1, 1, problem.d), np.zeros(problem.d)
    out = [x]
    for t, cohort in enumerate(cohorts):
        updates = []
        for i in cohort:
            y = x.copy()
            for _ in range(steps):
                y = y - lr * decay**t * problem.grad(i, y)
            updates.append(y - x)
        v = momentum * v + np.mean(updates, axis=0)
        x = x + server_lr * v
        out.append(x)
    return out


@pytest.mark.parametrize("batching", ["auto", "loop"])
@pytest.mark.parametrize("partial", [False, True])
def test_trajectory_equals_numpy_loop(quadratics: Quadratics, tmp_path: Path, batching: str, partial: bool) -> None:
    cohorts = COHORTS if partial else [list(range(quadratics.n))] * 6
    file = tmp_path / "cohorts.json"
    file.write_text(json.dumps(cohorts))
    got = run(
        quadratics,
        FedAvg(lr=0.2, lr_decay=0.9, server_lr=0.7, server_momentum=0.5),
        Cohorts(path=str(file)),
        len(cohorts),
        3,
        batching,
    )
    want = numpy_fedavg(quadratics, cohorts, lr=0.2, decay=0.9, steps=3, server_lr=0.7, momentum=0.5)
    np.testing.assert_allclose(got, want, rtol=FLOAT64, atol=FLOAT64)


def test_reaches_its_closed_form_limit(quadratics: Quadratics) -> None:
    """y_K - x = -P_i (x - x_i*), P_i = I - (I - lr H_i)^K; the fixed point solves sum_i P_i (x - x_i*) = 0."""
    lr, steps, eye = 0.3, 5, np.eye(quadratics.d)
    p = [eye - np.linalg.matrix_power(eye - lr * quadratics.hessian(i), steps) for i in range(quadratics.n)]
    target = np.linalg.solve(sum(p), sum(p[i] @ quadratics.optimum(i) for i in range(quadratics.n)))
    x = run(quadratics, FedAvg(lr=lr), All(), 400, steps)[-1]
    np.testing.assert_allclose(x, target, rtol=1e-10, atol=1e-10)
    h = sum(quadratics.hessian(i) for i in range(quadratics.n))
    best = np.linalg.solve(h, sum(quadratics.hessian(i) @ quadratics.optimum(i) for i in range(quadratics.n)))
    assert np.linalg.norm(x - best) > 1e-2, "heterogeneous clients: the limit is not the minimiser"


@pytest.mark.parametrize("batching", ["auto", "loop"])
def test_sgd_is_gradient_descent_on_the_mean(quadratics: Quadratics, batching: str) -> None:
    got = run(quadratics, SGD(lr=0.3, lr_decay=0.95), All(), 8, 2, batching)
    x = np.linspace(-1, 1, quadratics.d)
    want = [x]
    for t in range(8):
        x = x - 0.3 * 0.95**t * np.mean([quadratics.grad(i, x) for i in range(quadratics.n)], axis=0)
        want.append(x)
    np.testing.assert_allclose(got, want, rtol=FLOAT64, atol=FLOAT64)


def torch_loop(data: Dataset, shards, model: torch.nn.Module, *, lr: float, batch: int, seed: int) -> torch.nn.Module:
    """One FedAvg round over all clients with nn.Module, DataLoader-style batches and torch.optim.SGD."""
    images = (torch.from_numpy(data.train.x).float() / 255 - data.mean[0]) / data.std[0]
    labels = torch.from_numpy(data.train.y)
    total = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in model.named_parameters()}
    for client, rows in enumerate(shards):
        mine = copy.deepcopy(model)
        optimizer = torch.optim.SGD(mine.parameters(), lr=lr)
        order = torch.randperm(len(rows), generator=stream(seed, "batches", 0, client))
        for first in range(0, len(rows), batch):
            chosen = torch.tensor(rows)[order[first : first + batch]]
            optimizer.zero_grad()
            F.cross_entropy(mine(images[chosen]), labels[chosen]).backward()
            optimizer.step()
        for name, p in mine.named_parameters():
            total[name] += len(rows) * p.detach().double()
    averaged = copy.deepcopy(model)
    with torch.no_grad():
        for name, p in averaged.named_parameters():
            p.copy_(total[name] / sum(map(len, shards)))
    return averaged


@pytest.mark.parametrize("batching", ["auto", "loop"])
def test_one_round_of_a_cnn_equals_a_plain_torch_loop(squares: Dataset, batching: str) -> None:
    model = small_cnn(squares.input_shape, squares.outputs)
    partition = Dirichlet(clients=6, alpha=1.0)
    result = simulate(
        FedAvg(lr=0.05),
        data=squares,
        partition=partition,
        model=model,
        rounds=1,
        local=Local(batch_size=8),
        engine=Engine(backend="serial", batching=batching),
        seed=3,
    )
    want = torch_loop(squares, partition.split(squares, 3).train, model, lr=0.05, batch=8, seed=3)
    for (name, got), expected in zip(result.model.named_parameters(), want.parameters(), strict=True):
        # float32, a handful of steps: other kernels, same numbers to rounding
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-6, msg=name)
