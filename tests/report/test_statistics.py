"""Intervals against scipy's."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from fedsim.report.statistics import UNBOUNDED, Estimate, bands, bounds_of, estimate, paired


@pytest.mark.parametrize("count", [3, 4, 10])
def test_mean_and_interval_are_students(count: int) -> None:
    values = np.random.default_rng(count).normal(5, 2, count)
    found = estimate(values)
    assert found is not None
    assert found.half is not None
    low, high = stats.t.interval(0.95, count - 1, loc=values.mean(), scale=stats.sem(values))
    np.testing.assert_allclose([found.mean - found.half, found.mean + found.half], [low, high], rtol=1e-9)
    assert found.count == count


def test_of_two_values_there_are_the_values_and_no_interval() -> None:
    """Student's t of two is 12.7 standard errors: accuracies of 0.75 and 1 would be 0.88 +- 1.59."""
    found = estimate([0.75, math.nan, 1.0])
    assert found == Estimate(0.875, None, 2)
    assert found.values == (0.75, 1.0)
    assert found.sign == 0
    assert np.isnan(bands(np.array([[0.83], [0.95]]))[1]).all()


@pytest.mark.parametrize("tag", ["eval/accuracy", "eval/client_macro_f1", "eval/top5", "eval/auc"])
def test_intervals_of_shares_stay_between_zero_and_one(tag: str) -> None:
    cut = 0
    for seed in range(50):
        values = np.random.default_rng(seed).beta(0.5, 0.2, size=3 + seed % 4)
        found = estimate(values, bounds_of(tag, values))
        assert found is not None
        assert found.half is not None
        low, high = found.cut or (found.mean - found.half, found.mean + found.half)
        assert 0 <= low <= found.mean <= high <= 1
        cut += found.cut is not None
    assert cut > 10


def test_what_is_no_share_or_is_in_per_cent_has_no_bounds() -> None:
    assert bounds_of("eval/loss", [0.5]) == bounds_of("eval/accuracy", [93.0, 0.5]) == UNBOUNDED
    assert estimate([0.01, 0.9, 0.5]).cut is None


def test_one_value_has_no_interval_and_none_has_no_mean() -> None:
    assert estimate([3.0]) == Estimate(3.0, None, 1)
    assert estimate([]) is None
    assert estimate([math.nan, math.inf]) is None
    assert estimate([3.0, math.nan]) == Estimate(3.0, None, 1)


def test_paired_differences_are_those_of_the_paired_test() -> None:
    ours, theirs = {0: 0.9, 1: 0.8, 2: 0.85, 7: 0.1}, {0: 0.88, 1: 0.79, 2: 0.81, 8: 0.9}
    found = paired(ours, theirs)
    assert found is not None
    assert found.half is not None
    a, b = [0.9, 0.8, 0.85], [0.88, 0.79, 0.81]
    interval = stats.ttest_rel(a, b).confidence_interval(0.95)
    np.testing.assert_allclose([found.mean - found.half, found.mean + found.half], interval, rtol=1e-9)
    assert found.count == 3
    assert paired({0: 1.0}, {1: 1.0}) is None


def test_the_sign_of_a_difference_needs_an_interval_without_zero() -> None:
    assert [Estimate(m, h, 3).sign for m, h in ((2.0, 1.0), (-2.0, 1.0), (1.0, 1.0), (0.5, 1.0))] == [1, -1, 0, 0]
    assert Estimate(5.0, None, 1).sign == 0


def test_bands_are_the_estimates_of_the_columns() -> None:
    rows = np.random.default_rng(0).normal(size=(4, 5))
    rows[0, 1] = rows[1:, 2] = rows[:, 3] = np.nan
    mean, half = bands(rows)
    for k in range(5):
        found = estimate(rows[:, k])
        assert (found is None) == math.isnan(mean[k])
        if found is not None:
            np.testing.assert_allclose(mean[k], found.mean)
            np.testing.assert_allclose(half[k], math.nan if found.half is None else found.half)
