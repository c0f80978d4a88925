"""Cohorts: range, law, addresses, and what is refused before a run."""

from __future__ import annotations

import json
import pickle
from dataclasses import MISSING, fields
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fedsim.algorithms.fedavg import FedAvg
from fedsim.assembly.nodes import build_object
from fedsim.data.dataset import Dataset, Split
from fedsim.errors import InputError
from fedsim.local import Local
from fedsim.models import linear
from fedsim.partition import Natural
from fedsim.schedule import All, Asynchronous, Bernoulli, Cohorts, Cyclic, Uniform, smaller_cohort
from fedsim.simulation import simulate

CONFIGS = sorted((Path(__file__).parent.parent / "configs" / "schedule").glob("*.yaml"))


def written(folder, cohorts):
    path = folder / "cohorts.json"
    path.write_text(cohorts if isinstance(cohorts, str) else json.dumps(cohorts))
    return str(path)


@given(st.integers(1, 200), st.integers(0, 10**6), st.integers(0, 2**40), st.data())
def test_cohorts_are_ascending_ids_without_repetition_and_never_empty(population, index, seed, draw):
    size = draw.draw(st.integers(1, population))
    for schedule in (All(), Uniform(size), Bernoulli(size / population)):
        schedule.check(population, index + 1)
        cohort = schedule.clients(index, population, seed)
        assert cohort == tuple(sorted(set(cohort)))
        assert cohort[0] >= 0
        assert cohort[-1] < population
        assert all(type(client) is int for client in cohort)
        assert cohort == schedule.clients(index, population, seed)
        assert schedule.expected(population) >= 1
    assert len(Uniform(size).clients(index, population, seed)) == Uniform(size).expected(population) == size


def test_all_and_full_cohorts_are_everybody():
    everybody = (0, 1, 2, 3, 4)
    assert All().clients(3, 5, 0) == Uniform(5).clients(3, 5, 0) == Bernoulli(1.0).clients(3, 5, 0) == everybody
    assert All().expected(5) == 5


@pytest.mark.parametrize("schedule", [Uniform(10), Bernoulli(0.1)])
def test_rounds_and_seeds_address_different_cohorts(schedule):
    drawn = {schedule.clients(index, 1000, seed) for index in range(20) for seed in range(20)}
    assert len(drawn) == 400


@pytest.mark.parametrize(("population", "size"), [(30, 3), (400, 3), (30, 29)])
def test_uniform_draws_every_client_and_pair_equally(population, size):
    rounds = 4000
    came = np.zeros((rounds, population), dtype=bool)
    for index in range(rounds):
        came[index, list(Uniform(size).clients(index, population, 7))] = True
    expected = rounds * size / population
    # the counts are negatively correlated: (n-1)/n * sum is chi-square with n-1 degrees for draws of one,
    # and the factor (n-1)/(n-size) restores the variance of draws without replacement
    statistic = ((came.sum(axis=0) - expected) ** 2).sum() / expected * (population - 1) / (population - size)
    assert 0.001 < stats.chi2(population - 1).sf(statistic) < 0.999
    pairs = (came[:, 0] & came[:, 1]).mean()
    chance = size * (size - 1) / (population * (population - 1))
    assert abs(pairs - chance) < 5 * np.sqrt(chance * (1 - chance) / rounds)


def test_bernoulli_sizes_are_binomial_given_that_somebody_came():
    population, rate, rounds = 4, 0.2, 3000
    cohorts = [Bernoulli(rate).clients(index, population, 1) for index in range(rounds)]
    law = stats.binom(population, rate)
    expected = rounds * law.pmf(np.arange(1, 4)) / law.sf(0)
    expected = np.append(expected, rounds - expected.sum())
    sizes = np.bincount([len(cohort) for cohort in cohorts], minlength=5)
    assert sizes[0] == 0
    assert stats.chisquare(sizes[1:], expected).pvalue > 0.01
    share = np.bincount(np.concatenate(cohorts), minlength=4) / rounds
    chance = rate / law.sf(0)
    assert np.abs(share - chance).max() < 5 * np.sqrt(chance * (1 - chance) / rounds)


def test_kept_empty_cohorts_leave_every_client_its_rate():
    population, rate, rounds = 4, 0.2, 3000
    rules = Bernoulli(rate), Bernoulli(rate, "keep")
    drawn, kept = ([rule.clients(t, population, 1) for t in range(rounds)] for rule in rules)
    assert all(a == b for a, b in zip(drawn, kept, strict=True) if b), "only what was empty differs"
    law = stats.binom(population, rate).pmf(np.arange(5))
    sizes = np.bincount([len(cohort) for cohort in kept], minlength=5)
    counted, expected = (np.append(of[:3], of[3:].sum()) for of in (sizes, rounds * law))
    assert stats.chisquare(counted, expected).pvalue > 0.01
    share = np.bincount(np.concatenate([c for c in kept if c]), minlength=4) / rounds
    assert np.abs(share - rate).max() < 5 * np.sqrt(rate * (1 - rate) / rounds)
    Bernoulli(1e-6, "keep").check(20, 1)


def test_a_million_clients():
    for schedule in (Uniform(1000), Bernoulli(0.001)):
        cohort = schedule.clients(0, 1_000_000, 0)
        assert 800 < len(cohort) < 1200
        assert schedule.expected(1_000_000) == 1000
        assert cohort[-1] > 950_000  # the largest of 1000 uniform ids is this small with a chance of 1e-22


def test_cohorts_of_a_file_are_sorted_and_read_once(tmp_path):
    path = written(tmp_path, [[3, 0], [1], [4, 2, 1]])
    schedule = Cohorts(path)
    Path(path).unlink()
    schedule.check(5, 3)
    schedule.check(5, 2)
    assert [schedule.clients(index, 5, 9) for index in range(3)] == [(0, 3), (1,), (1, 2, 4)]
    assert schedule.expected(5) == 2
    assert pickle.loads(pickle.dumps(schedule)).clients(1, 5, 0) == (1,)


@pytest.mark.parametrize(
    ("cohorts", "message"),
    [
        ([[0], [5]], r"^schedule.path: cohort 1 of .* must name clients in 0..4, got 5$"),
        ([[-1, 0], [1]], r"cohort 0 of .* must name clients in 0..4, got -1"),
        ([[0], []], r"cohort 1 of .* must name at least one client, got \[\]"),
        ([[2, 1, 2], [1]], r"cohort 0 of .* must name each client once, got 2 more than once"),
        ([[0]], r"^schedule.path must hold a cohort for each of the 2 rounds, got 1"),
    ],
)
def test_cohorts_are_checked_before_the_run(tmp_path, cohorts, message):
    schedule = Cohorts(written(tmp_path, cohorts))
    with pytest.raises(InputError, match=message):
        schedule.check(5, 2)


@pytest.mark.parametrize("text", ['{"0": [1]}', "[0, 1]", "[[0], [true]]", "[[0.5]]", '[["a"]]'])
def test_a_file_of_another_shape_is_refused_at_construction(tmp_path, text):
    with pytest.raises(InputError, match=r"^path must hold a JSON list of lists of client ids, such as"):
        Cohorts(written(tmp_path, text))


def test_a_file_that_cannot_be_read_is_refused_at_construction(tmp_path):
    for path in (str(tmp_path / "absent.json"), str(tmp_path), written(tmp_path, "[[0], ")):
        with pytest.raises(InputError, match=r"^path must be a readable JSON file, got"):
            Cohorts(path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Uniform(0), r"^cohort must be >= 1 or auto, got 0"),
        (lambda: Bernoulli(0.0), r"^rate must be in \(0, 1\], got 0.0"),
        (lambda: Bernoulli(1.1), r"^rate must be in \(0, 1\], got 1.1"),
        (lambda: Bernoulli(0.5, "sometimes"), r"^empty must be one of auto, redraw, keep, got 'sometimes'"),
        (lambda: Bernoulli(float("nan")), r"^rate must be a finite number, got nan"),
        (lambda: Uniform(50).check(20, 1), r"^schedule.cohort must be <= the 20 clients, got 50$"),
        (lambda: Uniform(10).check(7, 1), r"^schedule.cohort must be <= the 7 clients, got 10$"),
        (lambda: Uniform("some"), r"^cohort must be an int or 'auto', got 'some'"),
        (lambda: Bernoulli(1e-6).check(20, 1), r"^schedule.rate must be >= 0.0025 for 20 clients, or nearly every"),
        (
            lambda: Bernoulli(1e-12).clients(0, 20, 0),
            r"^schedule.rate must be higher: 1,000 draws of round 0 were empty",
        ),
    ],
)
def test_errors_say_what_to_do(make, message):
    with pytest.raises(InputError, match=message):
        make()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configs_build_and_repeat_the_defaults_of_their_class(path, tmp_path):
    node = yaml.safe_load(path.read_text())
    if path.stem == "cohorts":
        assert node["path"] == "???"
        node["path"] = written(tmp_path, [[0]])
    schedule = build_object(node, "schedule")
    assert type(schedule).__name__.lower() == {"async": "asynchronous"}.get(path.stem, path.stem)
    assert {f.name for f in fields(schedule)} == set(node) - {"_target_"}
    assert all(getattr(schedule, f.name) == f.default for f in fields(schedule) if f.default is not MISSING)


@pytest.mark.parametrize(("population", "cohort"), [(12, 3), (11, 3), (7, 7), (100, 9)])
def test_cyclic_brings_everyone_in_turn_equally_far_apart(population, cohort):
    rule, groups = Cyclic(cohort=cohort), population // cohort
    seen = [rule.clients(t, population, 5) for t in range(3 * groups)]
    for first in range(2 * groups):
        assert sorted(i for c in seen[first : first + groups] for i in c) == list(range(population))
    assert seen[:groups] == seen[groups : 2 * groups]
    assert {len(c) for c in seen} <= set(range(cohort, cohort + -(-population % cohort // -groups) + 1))
    assert rule.expected(population) == round(population / groups)
    assert groups == 1 or rule.clients(0, population, 6) != seen[0]
    with pytest.raises(InputError, match="cohort must be <="):
        Cyclic(cohort=population + 1).check(population, 1)


@pytest.mark.parametrize("rule", [Uniform, Cyclic])
def test_a_cohort_that_nobody_chose_is_ten_or_everybody(rule):
    rule().check(7, 3)
    assert rule().clients(2, 7, 0) == tuple(range(7))
    assert rule().clients(2, 45, 0) == rule(10).clients(2, 45, 0)
    assert rule().expected(45) == rule(10).expected(45)
    assert smaller_cohort(rule(), 10) == smaller_cohort(rule(7), 7) == smaller_cohort(All(), 7) == ()
    assert "schedule.cohort is 7:" in smaller_cohort(rule(), 7)[0]


def test_clients_at_work_that_nobody_counted_are_ten_or_everybody():
    rule = Asynchronous()
    rule.check(7, 3)
    assert (rule.expected(7), rule.expected(45), Asynchronous(20).expected(45)) == (7, 10, 20)
    assert smaller_cohort(rule, 10) == smaller_cohort(Asynchronous(7), 7) == ()
    assert "schedule.concurrency is 7:" in smaller_cohort(rule, 7)[0]
    with pytest.raises(InputError, match=r"schedule\.concurrency must be <= the 7 clients, got 8"):
        Asynchronous(8).check(7, 3)


def test_seven_clients_of_the_data_run_together_and_are_said_to(capsys):
    x = np.linspace(-1, 1, 42, dtype=np.float32).reshape(14, 3)
    data = Dataset("seven", Split(x, np.arange(14) % 2, np.arange(14) % 7), None, "classification", 2)
    run = {"data": data, "partition": Natural(), "model": linear, "rounds": 2, "local": Local(batch_size="full")}
    ours = simulate(FedAvg(lr=0.1), **run, schedule=Uniform(), progress=True)
    assert ours.summary["digest"] == simulate(FedAvg(lr=0.1), **run, schedule=All()).summary["digest"]
    assert capsys.readouterr().err.count("schedule.cohort is 7: there are fewer clients than the 10 of a round") == 1
