"""Private runs: DIFF2 and the Gaussian mechanisms against numpy, their noise measured, their promises kept."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from fedsim import Engine, Evaluate, Local, Mean, Result, simulate
from fedsim.algorithms.diff2 import Diff2
from fedsim.algorithms.fedavg import FedAvg
from fedsim.channel.channel import Channel
from fedsim.channel.ef21 import EF21
from fedsim.channel.onion import Layer
from fedsim.channel.topk import TopK
from fedsim.data import Dataset, Split
from fedsim.errors import InputError
from fedsim.models import linear_zero
from fedsim.partition import Natural
from fedsim.privacy.accountant import Accountant
from fedsim.privacy.central import CentralNoise
from fedsim.privacy.config import CentralGaussian, LocalGaussian, Own
from fedsim.schedule import All, Bernoulli, Uniform
from fedsim.traits.releases import Release

pytest.importorskip("dp_accounting")

SIZES, D = (3, 5, 9, 4), 6


def problem(seed: int = 0) -> Dataset:
    """Least squares by sample, squared errors, clients of sizes that do not divide evenly."""
    random = np.random.default_rng(seed)
    n = sum(SIZES)
    a, b = random.normal(size=(n, D)), random.normal(size=n) * 3
    group = np.repeat(np.arange(len(SIZES)), SIZES)
    return Dataset("rows", Split(a, b, group), None, "regression", 1, x0=np.linspace(-1, 1, D))


MANY = 200_000  # numbers in a draw: four standard deviations of their measured one are 0.7 %


def flat(d: int = MANY) -> Dataset:
    """Inputs of zeros: gradients are zero and all that moves a model is noise."""
    data = problem()
    train = Split(np.zeros((sum(SIZES), d)), data.train.y, data.train.group)
    return replace(data, train=train, x0=np.zeros(d))


def sample_gradients(data: Dataset, x: np.ndarray) -> np.ndarray:
    """[n, d] gradient of each sample's squared error."""
    return 2 * (data.train.x @ x - data.train.y)[:, None] * data.train.x


def clipped(g: np.ndarray, c: float) -> np.ndarray:
    return g * np.minimum(1.0, c / np.linalg.norm(g, axis=1))[:, None]


def client_mean(data: Dataset, g: np.ndarray) -> np.ndarray:
    return np.mean([g[data.train.group == i].sum(0) / n for i, n in enumerate(SIZES)], axis=0)


def diff2_loop(data: Dataset, rounds: int, lr: float, period: int, c1: float, c2: float) -> list[np.ndarray]:
    x = before = np.linspace(-1, 1, D)
    v = np.zeros(D)
    out = [x]
    for r in range(rounds):
        if r % period == 0:
            v = client_mean(data, clipped(sample_gradients(data, x), c1))
        else:
            c = c2 * np.linalg.norm(x - before)
            v = v + client_mean(data, clipped(sample_gradients(data, x) - sample_gradients(data, before), c))
        before, x = x, x - lr * v
        out.append(x)
    return out


def run(algorithm: Any, data: Dataset | None = None, rounds: int = 6, **options: Any) -> Result:
    local = Local(steps=1, batch_size="full")
    settings: dict[str, Any] = {"schedule": All(), "batching": "auto", "seed": 0, "local": local} | options
    engine = Engine(backend="serial", dtype="float64", batching=settings.pop("batching"))
    return simulate(
        algorithm,
        data=data or problem(),
        partition=Natural(),
        model=linear_zero,
        rounds=rounds,
        aggregate=settings.pop("aggregate", Mean(weights="uniform")),
        engine=engine,
        evaluate=Evaluate(every=1),
        trajectory=True,
        **settings,
    )


@pytest.mark.parametrize("batching", ["auto", "loop"])
@pytest.mark.parametrize("period", [1, 3, 50])
def test_diff2_without_noise_is_the_numpy_loop(period: int, batching: str) -> None:
    found = run(Diff2(lr=0.05, period=period, c1=2.0, c2=3.0), rounds=8, batching=batching)
    want = diff2_loop(problem(), 8, 0.05, period, 2.0, 3.0)
    np.testing.assert_allclose(found.trajectory, want, rtol=0, atol=1e-12)


def test_diff2_without_noise_and_clipping_is_gradient_descent() -> None:
    found = run(Diff2(lr=0.05, period=3, c1=None, c2=None), rounds=8)
    x, data = np.linspace(-1, 1, D), problem()
    for got in found.trajectory:
        np.testing.assert_allclose(got, x, rtol=0, atol=1e-12)
        x = x - 0.05 * client_mean(data, sample_gradients(data, x))


@pytest.mark.parametrize("who", ["server", "clients"])
def test_the_noise_of_an_anchor_has_the_promised_size(who: str) -> None:
    """On a flat loss one round of lr 1 shows v, all noise."""
    z, c1 = 1.5, 2.0
    moved = run(Diff2(lr=1.0, period=1, c1=c1, noise_multiplier=z, noise=who), flat(), rounds=1).server.x.numpy()  # type: ignore[arg-type]
    std = z * 2 * c1 / (min(SIZES) * len(SIZES))
    assert np.std(moved) == pytest.approx(std, rel=0.01)
    assert abs(np.mean(moved)) < 4 * std / math.sqrt(MANY)


def test_changing_one_sample_moves_the_released_mean_by_at_most_the_sensitivity() -> None:
    c1 = 2.0
    bound = 2 * c1 / (min(SIZES) * len(SIZES))
    base, moved = problem(), []
    before = run(Diff2(lr=1.0, period=1, c1=c1), base, rounds=1).trajectory
    for row in range(sum(SIZES)):
        other = problem()
        other.train.x[row] *= -50.0
        other.train.y[row] += 1000.0
        after = run(Diff2(lr=1.0, period=1, c1=c1), other, rounds=1).trajectory
        moved.append(np.linalg.norm((after[1] - after[0]) - (before[1] - before[0])))
    assert max(moved) <= bound * (1 + 1e-12)
    assert max(moved) > 0.5 * bound, "a bound that nothing comes near would say little"


def test_a_target_is_met_and_reported() -> None:
    found = run(Diff2(lr=1e-4, period=4), rounds=10, privacy=Own(delta=1e-5, target_epsilon=3.0))
    z = found.summary["privacy/noise_multiplier"]
    anchors, bound = 3, 2 / (min(SIZES) * len(SIZES))
    releases = [
        Release(bound, z * math.sqrt(0.25 / 4) * bound, anchors),
        Release(bound, z * bound, 10 - anchors),
    ]
    assert Accountant("pld", 1e-5).epsilon(releases) == pytest.approx(3.0, rel=1e-5)
    assert found.summary["privacy/epsilon"] == pytest.approx(3.0, rel=1e-5)
    assert found.summary["privacy/promise"].startswith("sample-level (replace), pld, delta 1e-05")
    seen = [record["privacy/epsilon"] for record in found.metrics]
    assert seen[0] == 0.0
    assert all(a < b for a, b in pairwise(seen))


def test_clipping_without_noise_is_all_that_a_mechanism_does_then() -> None:
    plain = run(FedAvg(lr=0.05))
    wide = run(CentralNoise(FedAvg(lr=0.05), 1e9, 0.0, len(SIZES)))
    np.testing.assert_allclose(wide.trajectory, plain.trajectory, rtol=0, atol=1e-12)
    x, data = np.linspace(-1, 1, D), problem()
    narrow = run(CentralNoise(FedAvg(lr=0.05), 0.1, 0.0, len(SIZES)), rounds=3)
    for got in narrow.trajectory:
        np.testing.assert_allclose(got, x, rtol=0, atol=1e-12)
        g = sample_gradients(data, x)
        updates = np.array([-0.05 * g[data.train.group == i].mean(0) for i in range(len(SIZES))])
        x = x + clipped(updates, 0.1).mean(0)


def test_the_denominator_is_the_expected_cohort_not_the_real_one() -> None:
    schedule, data = Bernoulli(rate=0.5), problem()
    x = np.linspace(-1, 1, D)
    g = sample_gradients(data, x)
    updates = clipped(np.array([-0.05 * g[data.train.group == i].mean(0) for i in range(len(SIZES))]), 0.1)
    cohorts = {seed: schedule.clients(0, len(SIZES), seed) for seed in range(12)}
    assert {len(cohort) for cohort in cohorts.values()} > {1, 3}, "cohorts of other sizes than the expected two"
    for seed, cohort in cohorts.items():
        found = run(CentralNoise(FedAvg(lr=0.05), 0.1, 0.0, 2), rounds=1, schedule=schedule, seed=seed).trajectory
        np.testing.assert_allclose(found[1], x + updates[list(cohort)].sum(0) / 2, rtol=0, atol=1e-12)


def test_the_servers_noise_is_measured_by_the_expected_cohort() -> None:
    """Four clients come where two are expected: the noise is z clip / 2."""
    z, clip, expected = 1.5, 0.1, 2
    moved = run(CentralNoise(FedAvg(lr=0.05), clip, z, expected), flat(), rounds=1).server.x.numpy()
    assert np.std(moved) == pytest.approx(z * clip / expected, rel=0.01)


def test_noise_of_the_clients_is_drawn_for_each() -> None:
    privacy = LocalGaussian(delta=1e-5, noise_multiplier=1.0, clip=0.1)
    found = run(FedAvg(lr=0.05), rounds=2, privacy=privacy)
    quiet = run(FedAvg(lr=0.05), rounds=2)
    assert not np.allclose(found.trajectory[1], quiet.trajectory[1])
    assert "client-level (replace)" in found.summary["privacy/promise"]
    two = Accountant("pld", 1e-5).epsilon([Release(1.0, 1.0, 2)])
    assert found.summary["privacy/epsilon"] == pytest.approx(two)


def layers(*middleware: Any) -> Channel:
    return Channel(tuple(Layer(type(m).__name__.lower(), m) for m in middleware))


CENTRAL = CentralGaussian(1e-5, noise_multiplier=1.0)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"privacy": CENTRAL, "schedule": Uniform(cohort=2)}, "fixed_as_poisson=true"),
        ({"privacy": CENTRAL, "channel": layers(EF21(), TopK(k=2))}, "must not have ef21"),
        ({"privacy": Own(1e-5, noise_multiplier=1.0)}, "needs a private algorithm such as diff2, got FedAvg"),
    ],
)  # fmt: skip
def test_promises_that_cannot_be_kept_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        run(FedAvg(lr=0.05), **options)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Own(delta=0.0, noise_multiplier=1.0), "delta must be in"),
        (lambda: Own(delta=1e-5), "target_epsilon must be given"),
        (lambda: Own(delta=1e-5, target_epsilon=-1.0), "target_epsilon must be > 0"),
        (lambda: Own(delta=1e-5, target_epsilon=1.0, noise_multiplier=1.0), "not both"),
        (lambda: CentralGaussian(delta=1e-5, noise_multiplier=1.0, clip=0.0), "clip must be > 0"),
        (lambda: Diff2(lr=0.1, c1=None, noise_multiplier=1.0), "without clipping nothing is private"),
        (lambda: CentralNoise(Diff2(lr=0.1), 1.0, 1.0, 1), "use privacy=own"),
    ],
)
def test_bad_promises_are_refused(make: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        make()


def test_a_biased_sparsifier_may_stand_under_central_noise() -> None:
    privacy = CentralGaussian(1e-5, noise_multiplier=1.0, clip=0.1)
    found = run(FedAvg(lr=0.05), rounds=2, privacy=privacy, channel=layers(TopK(k=2)))
    assert found.status == "finished"
    assert torch.isfinite(found.server.x).all()
