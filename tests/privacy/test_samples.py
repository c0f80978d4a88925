"""Private methods on minibatches against numpy loops, their noise measured, their minibatches' law tested."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fedsim import Local
from fedsim.algorithms.diff2 import Diff2
from fedsim.algorithms.diff2_bvr import Diff2BVR
from fedsim.algorithms.dp_sgd import PrivateSGD
from fedsim.algorithms.dp_srm import DPSRM
from fedsim.algorithms.kit.shared_noise import DRAWS_AT_ONCE
from fedsim.algorithms.private_spiderboost import PrivateSpiderBoost
from fedsim.data.batches import SWEEP, Feed, Samples, work_of
from fedsim.errors import InputError
from fedsim.schedule import Uniform
from tests.privacy.test_runs import MANY, SIZES, D, client_mean, clipped, flat, problem, run, sample_gradients

POISSON = Local(steps=3, batch_size=3, sampling="poisson")
STARTS = np.concatenate([[0], np.cumsum(SIZES)])


def feed(starts: np.ndarray = STARTS) -> Feed:
    n = int(starts[-1])
    return Feed(Samples(np.zeros((n, 1)), np.zeros(n), starts), torch.device("cpu"), torch.float64)


def minibatches(index: int, local: Local, seed: int = 0) -> list[list[np.ndarray]]:
    """Rows of the data set in each minibatch of each client."""
    work = work_of(tuple(range(len(SIZES))), index, feed(), local, seed)
    assert work.rows is not None
    return [[work.rows[i, k, :m].numpy() for k, m in enumerate(work.counts[i].tolist())] for i in range(len(SIZES))]


def batch_mean(index: int, local: Local, each: np.ndarray, bound: float = math.inf) -> np.ndarray:
    """Mean over clients and their minibatches of the clipped sum of some rows of ``each`` [n, d] over B_i."""
    of = [
        np.mean([clipped(each[rows], bound).sum(0) for rows in batches], axis=0) / local.batch(n)
        for batches, n in zip(minibatches(index, local), SIZES, strict=True)
    ]
    return np.mean(of, axis=0)


@pytest.mark.parametrize("batching", ["auto", "loop"])
def test_dp_sgd_without_noise_is_the_numpy_loop(batching: str) -> None:
    rule = PrivateSGD(lr=0.05, lr_decay=0.9, clip=2.0, server_lr=0.7)
    local = replace(POISSON, batch_size=2)
    found = run(rule, rounds=10, batching=batching, local=local).trajectory
    data, x = problem(), np.linspace(-1, 1, D)
    for t, got in enumerate(found):
        np.testing.assert_allclose(got, x, rtol=0, atol=1e-12)
        moved = []
        for batches in minibatches(t, local):
            y = x
            for rows in batches:
                y = y - 0.05 * 0.9**t * clipped(sample_gradients(data, y)[rows], 2.0).sum(0) / 2
            moved.append(y - x)
        x = x + 0.7 * np.mean(moved, axis=0)
    sizes = {len(rows) for t in range(10) for batches in minibatches(t, local) for rows in batches}
    assert {0, 4} < sizes, "empty and large minibatches are among them"


@pytest.mark.parametrize("batching", ["auto", "loop"])
def test_private_spiderboost_without_noise_is_the_numpy_loop(batching: str) -> None:
    rule = PrivateSpiderBoost(lr=0.05, period=3, l0=2.0, l1=3.0)
    found = run(rule, rounds=8, batching=batching, local=POISSON).trajectory
    data = problem()
    x = before = np.linspace(-1, 1, D)
    v, capped = np.zeros(D), set()
    for t, got in enumerate(found):
        np.testing.assert_allclose(got, x, rtol=0, atol=1e-12)
        if t % 3 == 0:
            v = client_mean(data, clipped(sample_gradients(data, x), 2.0))
        else:
            far = 3.0 * float(np.linalg.norm(x - before))
            change = sample_gradients(data, x) - sample_gradients(data, before)
            v = v + batch_mean(t, POISSON, change, min(far, 4.0))
            capped.add(far > 4.0)
        x, before = x - 0.05 * v, x
    assert capped == {False}


def test_the_cap_of_private_spiderboost_is_reached_by_long_steps() -> None:
    rule = PrivateSpiderBoost(lr=4.0, period=2, l0=2.0, l1=3.0)
    found = run(rule, rounds=2, local=POISSON).trajectory
    data, x = problem(), np.linspace(-1, 1, D)
    v = client_mean(data, clipped(sample_gradients(data, x), 2.0))
    after = x - 4.0 * v
    assert 3.0 * np.linalg.norm(after - x) > 4.0
    v = v + batch_mean(1, POISSON, sample_gradients(data, after) - sample_gradients(data, x), 4.0)
    np.testing.assert_allclose(found[2], after - 4.0 * v, rtol=0, atol=1e-12)


def test_a_sampled_anchor_is_an_unbiased_mean_and_the_same_in_any_block() -> None:
    rule = PrivateSpiderBoost(lr=1.0, period=1, l0=2.0, anchor_rate=0.4)
    data, x = problem(), np.linspace(-1, 1, D)
    want = -client_mean(data, clipped(sample_gradients(data, x), 2.0))
    got = np.stack([run(rule, rounds=1, seed=s).trajectory[1] - x for s in range(60)])
    assert np.abs((got.mean(0) - want) / (got.std(0) / math.sqrt(len(got)))).max() < 4.5
    alone = run(rule, rounds=1, seed=3, batching="loop").trajectory[1] - x
    np.testing.assert_allclose(got[3], alone, rtol=0, atol=1e-12)
    assert DRAWS_AT_ONCE >= SWEEP


@pytest.mark.parametrize("alpha", [0.3, 1.0])
@pytest.mark.parametrize("batching", ["auto", "loop"])
def test_dp_srm_without_noise_is_the_numpy_loop(alpha: float, batching: str) -> None:
    found = run(DPSRM(lr=0.05, alpha=alpha, c1=2.0, c2=3.0), rounds=8, batching=batching, local=POISSON).trajectory
    data = problem()
    x = before = np.linspace(-1, 1, D)
    v = np.zeros(D)
    for t, got in enumerate(found):
        np.testing.assert_allclose(got, x, rtol=0, atol=1e-12)
        a = alpha if t else 1.0
        new, change = sample_gradients(data, x), sample_gradients(data, x) - sample_gradients(data, before)
        v = (1 - a) * v + a * batch_mean(t, POISSON, new, 2.0)
        if a < 1:
            v = v + (1 - a) * batch_mean(t, POISSON, change, 3.0 * float(np.linalg.norm(x - before)))
        x, before = x - 0.05 * v, x


def test_dp_srm_without_clipping_is_storm() -> None:
    """v_t = g_t(x_t) + (1 - alpha) (v_(t-1) - g_t(x_(t-1))), both gradients on the same minibatches."""
    found = run(DPSRM(lr=0.05, alpha=0.3, c1=None, c2=None), rounds=6, local=POISSON).trajectory
    data = problem()
    x = before = np.linspace(-1, 1, D)
    v = np.zeros(D)
    for t, got in enumerate(found):
        np.testing.assert_allclose(got, x, rtol=0, atol=1e-12)
        now, then = (batch_mean(t, POISSON, sample_gradients(data, point)) for point in (x, before))
        v = now + 0.7 * (v - then) if t else now
        x, before = x - 0.05 * v, x


@pytest.mark.parametrize("batching", ["auto", "loop"])
def test_diff2_bvr_without_noise_is_the_numpy_loop(batching: str) -> None:
    rule = Diff2BVR(lr=0.05, period=3, c1=2.0, c2=3.0, c3=2.5)
    found = run(rule, rounds=14, batching=batching, local=POISSON).trajectory
    data = problem()
    x = before = np.linspace(-1, 1, D)
    v = np.zeros(D)
    for r in range(7):
        np.testing.assert_allclose(found[2 * r], x, rtol=0, atol=1e-12)
        np.testing.assert_allclose(found[2 * r + 1], x, rtol=0, atol=1e-12)
        if r % 3 == 0:
            v = client_mean(data, clipped(sample_gradients(data, x), 2.0))
        else:
            change = sample_gradients(data, x) - sample_gradients(data, before)
            v = v + client_mean(data, clipped(change, 3.0 * float(np.linalg.norm(x - before))))
        worker, y, u = r % len(SIZES), x, v
        for rows in minibatches(2 * r + 1, POISSON)[worker]:
            after = y - 0.05 * u
            change = (sample_gradients(data, after) - sample_gradients(data, y))[rows]
            u = u + clipped(change, 2.5 * float(np.linalg.norm(after - y))).sum(0) / min(3, SIZES[worker])
            y = after
        x, before = y, x
    np.testing.assert_allclose(found[14], x, rtol=0, atol=1e-12)


def test_one_local_step_of_diff2_bvr_is_diff2() -> None:
    """At K = 1 the worker's step is exact; its model alone is sent, not everybody's."""
    local = Local(steps=1, batch_size=2, sampling="poisson")
    slow = run(Diff2BVR(lr=0.05, period=3, c1=2.0, c2=3.0), rounds=12, local=local)
    fast = run(Diff2(lr=0.05, period=3, c1=2.0, c2=3.0), rounds=6)
    np.testing.assert_allclose(slow.trajectory[::2], fast.trajectory, rtol=0, atol=1e-12)
    even, odd = slow.metrics[1]["comm/uplink_bytes"], slow.metrics[2]["comm/uplink_bytes"]
    assert even - odd > 2 * 8 * D, "four clients' gradients, then one client's model"


SMALL, P = min(SIZES), len(SIZES)
NOISY = [  # rule, rounds, standard deviation at z = 1 where the loss is flat
    (PrivateSGD(lr=1.0, clip=2.0), 1, 2.0 * math.sqrt(sum(3 / min(3, n) ** 2 for n in SIZES)) / P),
    (PrivateSpiderBoost(lr=1.0, period=1, l0=2.0, anchor_noise=0.5), 1, 0.5 * 2.0 / (SMALL * P)),
    (DPSRM(lr=1.0, c1=2.0), 1, 2.0 / (3 * P) / math.sqrt(3)),
    (Diff2BVR(lr=1.0, period=1, c1=2.0), 2, 2 * 2.0 / (SMALL * P)),
]


@pytest.mark.parametrize(("rule", "rounds", "std"), NOISY, ids=["dp_sgd", "spiderboost", "dp_srm", "diff2_bvr"])
def test_noise_has_the_promised_size(rule: Any, rounds: int, std: float) -> None:
    z, local = 1.5, POISSON if rounds == 1 else replace(POISSON, steps=1)
    moved = run(replace(rule, noise_multiplier=z), flat(), rounds=rounds, local=local).server.x.numpy()
    assert np.std(moved) == pytest.approx(z * std, rel=0.01)
    assert stats.kstest(moved[:5000] / (z * std), "norm").pvalue > 1e-4


def test_noise_of_local_differences_is_in_proportion_to_the_steps() -> None:
    """On a flat loss v is noise and y_2 = x - 2 lr v - lr (noise of the first local difference)."""
    z, lr, c3 = 1.5, 0.001, 2.0
    rule = Diff2BVR(lr=lr, period=1, c1=1.0, c3=c3, noise_multiplier=z, local_noise=0.5)
    found = run(rule, flat(), rounds=2, local=Local(steps=2, batch_size=2, sampling="poisson"))
    v = found.server.v.numpy()
    noise = (-2 * lr * v - found.trajectory[2]) / lr
    assert np.std(noise) == pytest.approx(0.5 * z * 2 * c3 * lr * np.linalg.norm(v) / 2, rel=0.01)
    assert abs(np.corrcoef(noise, v)[0, 1]) < 4 / math.sqrt(MANY)


def test_noise_of_two_local_steps_is_independent() -> None:
    rule = PrivateSGD(lr=1.0, noise_multiplier=1.0)
    one, two = (run(rule, flat(), rounds=1, local=replace(POISSON, steps=k)).server.x.numpy() for k in (1, 2))
    assert abs(np.corrcoef(one, two - one)[0, 1]) < 4 / math.sqrt(MANY)
    assert np.std(two - one) == pytest.approx(np.std(one), rel=0.015)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 20), st.floats(-50, 50), st.floats(-1000, 1000), st.sampled_from([0.5, 2.0]))
def test_a_sample_moves_a_minibatch_sum_by_at_most_the_clip(row: int, a: float, b: float, clip: float) -> None:
    """The first minibatch of a client, replaced in one sample: twice what adding or removing it can do."""
    local = Local(steps=1, batch_size=3, sampling="poisson")
    other = problem()
    other.train.x[row] *= a
    other.train.y[row] += b
    rule = PrivateSGD(lr=1.0, clip=clip)
    before, after = (run(rule, data, rounds=1, local=local).trajectory[1] for data in (problem(), other))
    i = int(np.searchsorted(STARTS, row, side="right")) - 1
    moved = np.linalg.norm(after - before) * len(SIZES) * min(3, SIZES[i])
    assert moved <= 2 * clip * (1 + 1e-9)
    assert row in minibatches(0, local)[i][0] or moved < 1e-9


def test_poisson_minibatches_hold_each_example_independently() -> None:
    n, q, steps = 40, 0.15, 4000
    work = work_of((0,), 0, feed(np.array([0, n])), Local(steps=steps, batch_size=6, sampling="poisson"), 5)
    assert work.rows is not None
    inside = np.zeros((steps, n))
    for k, m in enumerate(work.counts[0].tolist()):
        inside[k, work.rows[0, k, :m].numpy()] = 1
    assert (inside.sum(1) == work.counts[0]).all(), "no example twice"
    assert work.rows.shape[2] == work.counts.max(), "no draw is cut"
    seen, law = np.bincount(work.counts[0], minlength=n + 1), stats.binom(n, q).pmf(np.arange(n + 1)) * steps
    kept = law > 5
    pooled = [np.append(v[kept], v[~kept].sum()) for v in (seen, law)]
    assert stats.chisquare(*pooled).pvalue > 1e-4
    assert np.abs(inside.mean(0) - q).max() < 4.5 * math.sqrt(q * (1 - q) / steps)
    assert np.abs(np.corrcoef(inside.T) - np.eye(n)).max() < 5 / math.sqrt(steps)
    assert abs(np.corrcoef(inside[:-1].ravel(), inside[1:].ravel())[0, 1]) < 5 / math.sqrt(steps * n)


def test_a_client_draws_the_same_whoever_shares_its_block() -> None:
    together = work_of((0, 1, 2, 3), 4, feed(), POISSON, 7)
    for i in range(4):
        alone = work_of((i,), 4, feed(), POISSON, 7)
        assert together.rows is not None
        assert alone.rows is not None
        assert (alone.counts[0] == together.counts[i]).all()
        for k, m in enumerate(alone.counts[0].tolist()):
            assert torch.equal(alone.rows[0, k, :m], together.rows[i, k, :m])


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: PrivateSGD(lr=0.1, clip=None, noise_multiplier=1.0), "without clipping nothing is private"),
        (lambda: PrivateSpiderBoost(lr=0.1, l1=None, noise_multiplier=1.0), "without clipping nothing is private"),
        (lambda: DPSRM(lr=0.1, c2=None, noise_multiplier=1.0), "without clipping nothing is private"),
        (lambda: Diff2BVR(lr=0.1, c3=None, noise_multiplier=1.0), "c3 must be given where there is noise"),
        (lambda: PrivateSpiderBoost(lr=0.1, anchor_rate=0.0), "anchor_rate must be in"),
        (lambda: DPSRM(lr=0.1, alpha=0.0), "alpha must be in"),
        (lambda: run(DPSRM(lr=0.1), rounds=2, schedule=Uniform(cohort=2)), "let all 4 clients take part"),
    ],
)
def test_what_cannot_be_private_is_refused(make: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        make()
