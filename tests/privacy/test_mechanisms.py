"""Adaptive clipping, banded factorisation and the secure sum against independent arithmetic and laws."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.linalg import hadamard

from fedsim.errors import InputError
from fedsim.privacy.clipping import next_clip, noisy_fraction, value_multiplier
from fedsim.privacy.matrix_mechanism import banded_factor
from fedsim.privacy.secure_sum import (
    SecureSum,
    discrete_gaussian,
    draw_signs,
    padded_length,
    rotate,
    rounded,
    unrotate,
    wrap,
)


def test_adaptive_clipping():
    z = value_multiplier(1.0, 5.0)
    assert z**-2 + 10.0**-2 == pytest.approx(1.0)
    with pytest.raises(InputError, match="bits_std"):
        value_multiplier(1.0, 0.5)
    assert noisy_fraction(30, 40, 40, 0.0) == pytest.approx(0.75)
    clip, norms = 0.1, np.linspace(0, 8, 1001)
    for _ in range(400):
        clip = next_clip(clip, float((norms <= clip).mean()), 0.5, 0.2)
    assert clip == pytest.approx(4.0, rel=0.01)


def dense(factor):
    rows = factor.noise_coefficients
    c = np.zeros((len(rows), len(rows)))
    for t in range(len(rows)):
        for j in range(min(t + 1, rows.shape[1])):
            c[t, t - j] = rows[t, j]
    return c


def prefix_errors(factor):
    """Std of the noise in the prefix sum after each round [T], for white noise of std 1."""
    return np.linalg.norm(np.tri(len(factor.noise_coefficients)) @ np.linalg.inv(dense(factor)), axis=1)


@pytest.mark.parametrize(("rounds", "bands"), [(1, 1), (12, 1), (32, 4), (32, 32)])
def test_banded_factor_against_dense_algebra(rounds, bands):
    factor = banded_factor(rounds, bands)
    c = dense(factor)
    assert np.allclose((c**2).sum(0), 1)
    white = np.random.default_rng(0).normal(size=(rounds, 3))
    made = []
    for t in range(rounds):
        made.append(factor.noise(t, white[t], made[::-1][: bands - 1]))
    assert np.allclose(np.stack(made), np.linalg.solve(c, white))
    # the gradient of the convex problem over the Gram matrix vanishes on the free entries
    x = np.linalg.inv(c.T @ c)
    slope = x @ np.tri(rounds).T @ np.tri(rounds) @ x
    near = np.abs(np.subtract.outer(np.arange(rounds), np.arange(rounds)))
    free = slope[(near > 0) & (near < bands)]
    assert np.abs(free).max(initial=0) < 2e-2 * np.abs(np.diag(slope)).max()


def test_banded_noise_beats_independent_noise_and_the_tree():
    n = 32
    independent = math.sqrt(n * (n + 1) / 2)
    tree = np.concatenate([np.kron(np.eye(n >> k), np.ones((1, 1 << k))) for k in range(6)])
    decoder = np.tri(n) @ np.linalg.pinv(tree)  # the best decoder of the tree
    full_tree = np.linalg.norm(decoder) * math.sqrt(6)
    assert np.linalg.norm(prefix_errors(banded_factor(n, 1))) == pytest.approx(independent)
    errors = [np.linalg.norm(prefix_errors(banded_factor(n, b))) for b in (1, 2, 4, 8, 32)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < min(full_tree, independent)


@pytest.mark.parametrize("sigma", [0.4, 1.0, 3.7])
def test_discrete_gaussian_law(sigma):
    drawn = discrete_gaussian(sigma, 100_000, np.random.default_rng(1))
    reach = math.ceil(3 * sigma)
    x = np.arange(-60, 61)
    law = np.exp(-(x**2) / (2 * sigma**2))
    law /= law.sum()
    inside = np.abs(x) <= reach
    counts = np.array([(drawn == value).sum() for value in x[inside]])
    expected = np.append(law[inside], law[~inside].sum()) * len(drawn)
    counts = np.append(counts, len(drawn) - counts.sum())
    kept = expected > 5
    counts = np.append(counts[kept], counts[~kept].sum())
    expected = np.append(expected[kept], max(expected[~kept].sum(), 1e-9))
    if expected[-1] < 5:
        counts, expected = np.append(counts[:-2], counts[-2:].sum()), np.append(expected[:-2], expected[-2:].sum())
    assert stats.chisquare(counts, expected * counts.sum() / expected.sum()).pvalue > 1e-4
    variance = (law * x**2).sum()
    assert drawn.var() == pytest.approx(variance, rel=0.03)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 70), st.integers(0, 10**6))
def test_rotation_is_the_hadamard_matrix_and_inverts(d, seed):
    rng = np.random.default_rng(seed)
    v, signs = rng.normal(size=d), draw_signs(d, rng)
    full = np.zeros(padded_length(d))
    full[:d] = v
    turned = rotate(v, signs)
    assert np.allclose(turned, hadamard(padded_length(d)) @ (full * signs) / math.sqrt(padded_length(d)))
    assert np.allclose(unrotate(turned, signs)[:d], v, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 9), st.integers(0, 10**6), st.sampled_from([0.0, 0.5]))
def test_sums_are_exact_in_any_order_and_decode_to_the_sum(d, n, seed, z):
    rng = np.random.default_rng(seed)
    rule = SecureSum(clip=2.0, noise_multiplier=z, expected=n, bits=24, deviations=30.0)
    signs, vectors = draw_signs(d, rng), rng.normal(size=(n, d))
    sent = np.stack([rule.encode(v, signs, rng) for v in vectors])
    half = 2 ** (rule.bits - 1)
    assert sent.min() >= -half
    assert sent.max() < half
    step = np.zeros(padded_length(d), dtype=np.int64)
    for message in sent[::-1]:
        step = wrap(step + message, rule.bits)
    assert (step == wrap(sent.sum(0), rule.bits)).all()
    got = rule.decode(step, d, signs)
    clipped = vectors * np.minimum(1, 2 / np.linalg.norm(vectors, axis=1, keepdims=True))
    slack = n * rule.grain(d) * math.sqrt(padded_length(d)) + 8 * rule.std(n) * math.sqrt(padded_length(d))
    assert np.linalg.norm(got - clipped.sum(0)) <= slack + 1e-9
    assert sent.shape == (n, padded_length(d))


@given(st.lists(st.integers(-(2**40), 2**40), min_size=1), st.integers(2, 40))
def test_wrap_is_a_representative(values, bits):
    got = wrap(np.array(values), bits)
    assert all((a - int(b)) % 2**bits == 0 for a, b in zip(values, got, strict=True))
    assert all(-(2 ** (bits - 1)) <= b < 2 ** (bits - 1) for b in got.tolist())


def test_rounding_keeps_the_bound_and_dropouts_lower_the_noise():
    rng = np.random.default_rng(0)
    x = rng.normal(size=256)
    x *= 3 / np.linalg.norm(x)
    assert all(np.linalg.norm(rounded(x, 9.0, rng)) <= 9.0 for _ in range(50))
    rule = SecureSum(clip=1.0, noise_multiplier=1.0, expected=100)
    assert rule.std(100) == pytest.approx(1.0)
    assert rule.std(25) == pytest.approx(0.5)
    full, half = rule.release(1000, 100), rule.release(1000, 50)
    assert full.sensitivity >= rule.bound(1000) > 1.0
    assert half.multiplier < full.multiplier < 1.0
    draws = np.stack([rule.encode(np.zeros(64), np.ones(64), rng) for _ in range(2000)]) * rule.grain(64)
    assert draws.std() == pytest.approx(rule.local_std, rel=0.02)
    with pytest.raises(InputError, match="bits"):
        SecureSum(clip=1.0, noise_multiplier=1.0, expected=10_000, bits=4)
