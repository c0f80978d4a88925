"""What every partition promises, checked on random data sets; laws of the random ones are in test_partition_laws.py."""

from __future__ import annotations

from dataclasses import MISSING, fields
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from fedsim.assembly.nodes import build_object
from fedsim.data.dataset import Dataset, Split
from fedsim.errors import InputError
from fedsim.partition import (
    Blocks,
    Classes,
    ClassesPerClient,
    Dirichlet,
    DirichletPerClient,
    Iid,
    Natural,
    Partition,
    Population,
    Quantity,
    QuantityDirichlet,
    Shards,
)
from fedsim.partition.population import apportion, even

CONFIGS = sorted((Path(__file__).parent.parent / "configs" / "partition").glob("*.yaml"))


def toy(train, test, classes, *, groups=None, task="classification", seed=0, skew=0.0):
    """Labels in random order, every class present; ``skew`` > 0 makes later classes rarer."""
    rng = np.random.default_rng(seed)
    weights = np.exp(-skew * np.arange(classes))

    def split(size):
        y = np.concatenate([np.arange(classes), rng.choice(classes, size - classes, p=weights / weights.sum())])
        group = None if groups is None else rng.permutation(np.arange(size) % groups)
        return Split(np.zeros((size, 1)), rng.permutation(y) if task == "classification" else y * 1.0, group)

    return Dataset("toy", split(train), split(test) if test else None, task, classes if task == "classification" else 1)


@st.composite
def cases(draw):
    """A rule with a data set on which it can be satisfied."""
    clients, classes = draw(st.integers(1, 12)), draw(st.integers(2, 6))
    data = toy(
        train=draw(st.integers(200, 300)),
        test=draw(st.sampled_from([0, classes, 40, 97])),
        classes=classes,
        groups=draw(st.integers(clients, 20)),
        seed=draw(st.integers(0, 99)),
        skew=draw(st.sampled_from([0.0, 0.3])),
    )
    rule: Partition = draw(
        st.sampled_from(
            [
                Iid(clients),
                Dirichlet(clients, 1.0),
                Dirichlet(clients, 1.0, cap=True),
                DirichletPerClient(clients, 0.2),
                Classes(clients, draw(st.integers(1, min(classes, 3)))),
                Classes(clients, draw(st.integers(1, min(classes, 3))), owners="drawn"),
                Classes(clients, draw(st.integers(1, min(classes, 3))), held_out=draw(st.integers(1, 20))),
                ClassesPerClient(clients, draw(st.integers(1, min(classes, 3)))),
                Shards(clients, draw(st.integers(1, 4))),
                Quantity(clients, 1.5, min_samples=3),
                QuantityDirichlet(clients, 0.5, min_samples=3),
                Natural(),
                Natural(clients),
                Blocks(clients),
                Blocks(clients, sort=True),
                Blocks(clients, sort=True, mixed=0.5),
            ]
        )
    )
    return rule, data


def smallest_class(data):
    return np.bincount(data.train.y).min()


@given(cases(), st.integers(0, 5))
@hypothesis_settings(max_examples=150, deadline=None)
def test_every_client_has_ascending_indices_of_both_splits_and_only_some_rules_may_repeat_or_drop(case, seed):
    rule, data = case
    if isinstance(rule, Classes) and smallest_class(data) < rule.clients + rule.held_out:
        return  # an error, tested below
    population = rule.split(data, seed)
    clients = rule.clients if getattr(rule, "clients", None) else len(np.unique(data.train.group))
    assert len(population) == len(population.train) == clients
    assert len(population.test) == (clients if data.test else 0)
    for owned, split in ((population.train, data.train), (population.test, data.test)):
        for indices in owned:
            assert indices.dtype == np.int64
            assert not indices.flags.writeable
            assert (np.diff(indices) >= 0).all()
            assert indices.size == 0 or (indices[0] >= 0 and indices[-1] < len(split))
    assert min(map(len, population.train)) >= 1
    held = np.bincount(np.concatenate(population.train), minlength=len(data.train))
    if not isinstance(rule, (DirichletPerClient, ClassesPerClient)):
        assert held.max() == 1
    if not isinstance(rule, (DirichletPerClient, ClassesPerClient, Classes, Natural)):
        assert held.min() == 1
    counts = population.counts(data)
    for client, indices in enumerate(population.train):
        assert [int((data.train.y[indices] == k).sum()) for k in range(data.outputs)] == counts[client].tolist()


@given(cases(), st.integers(0, 5))
@hypothesis_settings(max_examples=150, deadline=None)
def test_test_samples_go_to_one_client_each_in_proportion_to_its_training_samples_of_the_class(case, seed):
    rule, data = case
    if data.test is None or isinstance(rule, (Natural, Classes)):
        return  # these fix the test split themselves
    population = rule.split(data, seed)
    train = population.counts(data)
    test = Population(population.test, ()).counts(Dataset("t", data.test, None, "classification", data.outputs))
    held = np.bincount(np.concatenate(population.test), minlength=len(data.test))
    owned = train.sum(axis=0) > 0
    assert held.tolist() == owned[data.test.y].astype(int).tolist()
    quota = np.bincount(data.test.y, minlength=data.outputs) * train / np.maximum(1, train.sum(axis=0))
    assert (np.abs(test - quota) < 1 + 1e-9).all()
    assert (test[train == 0] == 0).all()


@given(cases(), st.integers(0, 5))
@hypothesis_settings(max_examples=60, deadline=None)
def test_a_split_is_a_function_of_the_data_and_the_seed_alone(case, seed):
    rule, data = case
    if isinstance(rule, Classes) and smallest_class(data) < rule.clients + rule.held_out:
        return
    before = np.random.get_state()  # noqa: NPY002
    first = rule.split(data, seed)
    after = np.random.get_state()  # noqa: NPY002
    assert before[2] == after[2]
    assert (before[1] == after[1]).all()
    np.random.random(3)  # noqa: NPY002
    second = rule.split(data, seed)
    assert first.digest == second.digest
    for a, b in zip((*first.train, *first.test), (*second.train, *second.test), strict=True):
        assert a.tolist() == b.tolist()


@pytest.mark.parametrize(
    "rule",
    [
        Iid(5),
        Dirichlet(5, 1.0),
        Dirichlet(5, 1.0, cap=True),
        DirichletPerClient(5, 1.0),
        Classes(5, 2),
        Classes(5, 2, owners="drawn"),
        ClassesPerClient(5, 2),
        Shards(5, 2),
        Quantity(5, 1.0),
        QuantityDirichlet(5, 1.0),
        Natural(5),
        Blocks(5, mixed=0.3),
    ],
    ids=lambda rule: type(rule).__name__,
)
def test_seeds_give_different_splits(rule):
    data = toy(300, 60, 4, groups=9)
    assert len({rule.split(data, seed).digest for seed in range(5)}) == 5


def test_blocks_and_all_natural_groups_do_not_depend_on_the_seed():
    data = toy(300, 0, 4, groups=9)
    for rule in (Blocks(5), Blocks(5, sort=True), Natural()):
        assert rule.split(data, 0).digest == rule.split(data, 1).digest


def test_digest_tells_assignments_apart():
    def digest(train, test=()):
        return Population(*(tuple(np.array(a, dtype=np.int64) for a in s) for s in (train, test))).digest

    base = digest([[0, 1], [2]], [[0], [1]])
    assert base == digest([[0, 1], [2]], [[0], [1]])
    others = [
        digest([[0], [1, 2]], [[0], [1]]),  # another boundary, same order
        digest([[2], [0, 1]], [[0], [1]]),  # clients exchanged
        digest([[0, 1], [2]], [[0, 1], []]),
        digest([[0, 1], [2]]),
        digest([[0, 1], [2], [0], [1]]),
        digest([[0, 1], [3]], [[0], [1]]),
    ]
    assert len({base, *others}) == 7


def test_blocks_by_hand():
    y = np.array([2, 0, 1, 0, 2, 1, 0])
    data = Dataset("hand", Split(np.zeros((7, 1)), y), None, "classification", 3)
    assert [a.tolist() for a in Blocks(3).split(data, 0).train] == [[0, 1, 2], [3, 4], [5, 6]]
    # sorted by label: 1 3 6 | 2 5 | 0 4
    assert [a.tolist() for a in Blocks(3, sort=True).split(data, 0).train] == [[1, 3, 6], [2, 5], [0, 4]]
    assert Blocks(3).split(data, 0).test == ()


def test_natural_by_hand():
    train = Split(np.zeros((7, 1)), np.zeros(7, dtype=np.int64), np.array([3, 0, 3, 5, 0, 3, 1]))
    test = Split(np.zeros((4, 1)), np.zeros(4, dtype=np.int64), np.array([1, 3, 3, 0]))
    data = Dataset("hand", train, test, "classification", 1)
    every = Natural().split(data, 0)
    assert [a.tolist() for a in every.train] == [[1, 4], [6], [0, 2, 5], [3]]
    assert [a.tolist() for a in every.test] == [[3], [0], [1, 2], []]
    assert [a.tolist() for a in Natural(min_samples=2).split(data, 0).train] == [[1, 4], [0, 2, 5]]
    some = Natural(clients=2)
    assert all({tuple(a) for a in some.split(data, s).train} <= {tuple(a) for a in every.train} for s in range(5))
    ungrouped = Dataset("hand", train, Split(test.x, test.y), "classification", 1)
    assert sorted(np.concatenate(Natural().split(ungrouped, 0).test).tolist()) == [0, 1, 2, 3]


@pytest.mark.parametrize("rule", [Iid(7), Shards(7, 1), Blocks(7), Quantity(7, 0.0), DirichletPerClient(7, 1.0)])
def test_sizes_are_equal_where_the_rule_says_so(rule):
    data = toy(300, 60, 4)
    sizes = [len(a) for a in rule.split(data, 0).train]
    assert max(sizes) - min(sizes) <= (0 if isinstance(rule, DirichletPerClient) else 1)
    assert sum(sizes) == (294 if isinstance(rule, DirichletPerClient) else 300)


@pytest.mark.parametrize(
    "rule",
    [
        Dirichlet(10, 0.3, min_samples=9),
        Quantity(10, 3.0, min_samples=9),
        QuantityDirichlet(10, 0.5, min_samples=9),
    ],
)
def test_every_client_has_the_minimum(rule):
    data = toy(400, 0, 10)
    smallest = [min(map(len, rule.split(data, seed).train)) for seed in range(20)]
    assert min(smallest) >= 9
    assert min(smallest) <= 12  # the minimum was at work: a client's mean is 40


def test_shards_of_mcmahan_hold_at_most_two_labels():
    y = np.random.default_rng(0).permutation(np.arange(6000) % 10)
    data = Dataset("mnist-like", Split(np.zeros((6000, 1)), y), None, "classification", 10)
    counts = Shards(100, 2).split(data, 3).counts(data)  # 200 shards of 30 samples, 20 to a label
    assert set(counts[counts > 0].tolist()) == {30, 60}
    assert (counts.sum(axis=1) == 60).all()
    assert ((counts > 0).sum(axis=1) == 2).any()


@given(st.integers(1, 30), st.integers(2, 8), st.data())
@hypothesis_settings(max_examples=60, deadline=None)
def test_classes_gives_exactly_per_client_classes_shared_within_range_and_the_same_in_the_test_split(c, k, draw):
    per_client = draw.draw(st.integers(1, k))
    low, high = draw.draw(st.sampled_from([(0.4, 0.6), (1.0, 1.0), (0.1, 0.9)]))
    data = toy(1000 * k, 700 * k, k, seed=1)
    population = Classes(c, per_client, (low, high)).split(data, draw.draw(st.integers(0, 9)))
    train = population.counts(data)
    test = Population(population.test, ()).counts(Dataset("t", data.test, None, "classification", k))
    owners = (train > 0).sum(axis=0)
    assert ((train > 0).sum(axis=1) == per_client).all()
    assert set(owners) <= {c * per_client // k, -(-c * per_client // k)}
    for label in np.flatnonzero(owners):
        mine = train[:, label][train[:, label] > 0]
        assert (mine.max() - 2) / mine.min() <= high / low + 1e-9  # each count is within one of its quota
        share, tested = train[:, label] / train[:, label].sum(), test[:, label] / test[:, label].sum()
        # two roundings of one share: within one sample each, and the one sample that every owner starts with
        assert np.abs(share - tested).max() <= (1 + owners[label]) / (data.train.y == label).sum() + 1 / 500
        assert test[:, label].sum() == (data.test.y == label).sum()
        assert (test[:, label][train[:, label] == 0] == 0).all()


def test_held_out_samples_are_nobodys_and_drawn_by_the_seed():
    data = toy(400, 60, 4)
    held = [np.concatenate(Classes(8, 2, held_out=100).split(data, seed).train) for seed in (0, 1)]
    assert [len(np.unique(a)) for a in held] == [300, 300]
    assert set(held[0].tolist()) != set(held[1].tolist())
    assert sum(map(len, Classes(8, 2, held_out=100).split(data, 0).test)) == 60


def test_test_samples_of_a_class_that_nobody_trains_on_are_nobodys():
    data = toy(300, 60, 4)
    seen = set()
    for seed in range(12):
        population = DirichletPerClient(1, 1e-6).split(data, seed)  # one client with one class
        (label,) = np.flatnonzero(population.counts(data)[0])
        seen.add(label)
        assert population.test[0].tolist() == np.flatnonzero(data.test.y == label).tolist()
    assert len(seen) > 1


def test_a_small_test_set_leaves_some_clients_without_test_samples():
    data = toy(3000, 8, 4)
    for rule in (Classes(20, 2), Iid(20), Shards(20, 2)):
        population = rule.split(data, 0)
        assert sorted(np.concatenate(population.test).tolist()) == list(range(8))
        assert sum(len(a) == 0 for a in population.test) >= 12


def test_rules_without_labels_fit_every_task():
    for task in ("regression", "least_squares"):
        data = toy(60, 20, 4, groups=5, task=task)
        for rule in (Iid(4), Quantity(4, 1.0), Blocks(4), Blocks(4, sort=True), Natural()):
            population = rule.split(data, 0)
            assert population.counts(data).tolist() == [[len(a)] for a in population.train]
            assert sorted(np.concatenate(population.test).tolist()) == list(range(20))
    quarter = Iid(4).split(toy(60, 20, 4, task="regression"), 0)
    assert [len(a) for a in quarter.test] == [5, 5, 5, 5]  # in proportion to equal sizes


def test_apportion_is_hamiltons_method_and_ties_fall_at_random():
    rng = np.random.default_rng(0)
    assert apportion(10, np.array([6, 6, 2]), rng).tolist() == [4, 4, 2]  # quotas 4.29, 4.29, 1.43
    assert apportion(10, np.array([6.0, 6.0, 0.0]), rng, at_least=2).tolist() == [4, 4, 2]
    got = np.array([apportion(1, np.ones(3), rng) for _ in range(300)])
    assert got.sum(axis=0).min() > 60  # 100 +- 8 each; always the first client would be 300, 0, 0
    assert even(7, 3).tolist() == [3, 2, 2]


LARGE = toy(300, 60, 4, groups=9)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Iid(0), r"^clients must be >= 1, got 0$"),
        (lambda: Dirichlet(3, 0.0), r"^alpha must be in \(0, 1e6\], got 0.0; small is heterogeneous"),
        (lambda: Dirichlet(3, float("nan")), r"^alpha must be a finite number, got nan"),
        (lambda: DirichletPerClient(3, float("inf")), r"^alpha must be a finite number, got inf"),
        (lambda: DirichletPerClient(3, -1.0), r"^alpha must"),
        (lambda: Dirichlet(3, 1.0, attempts=0), r"^attempts must be >= 1"),
        (lambda: Dirichlet(3, 1.0, min_samples=0), r"^min_samples must be >= 1"),
        (lambda: Classes(3, 0), r"^per_client must be >= 1"),
        (lambda: Classes(3, 2, (0.6, 0.4)), r"^share must be two numbers with 0 < low <= high, got \[0.6, 0.4\]"),
        (lambda: Classes(3, 2, (0.4,)), r"^share must"),
        (lambda: Classes(3, 2, owners="odd"), r"^owners must be one of even, drawn, got 'odd'"),
        (lambda: Classes(3, 2, held_out=-1), r"^held_out must be >= 0"),
        (lambda: ClassesPerClient(3, 0), r"^per_client must be >= 1"),
        (lambda: QuantityDirichlet(3, 0.0), r"^alpha must be in"),
        (lambda: Quantity(3, -0.1), r"^sigma must be in \[0, 100\], got -0.1"),
        (lambda: Natural(0), r"^clients must be >= 1, or null"),
        (
            lambda: Iid(301).split(LARGE, 0),
            r"^partition.clients must be <= the 300 training samples of data toy, got 301",
        ),
        (lambda: Blocks(301).split(LARGE, 0), r"^partition.clients must be <= the 300"),
        (lambda: Dirichlet(301, 1.0).split(LARGE, 0), r"^partition.clients must be <= the 300"),
        (lambda: DirichletPerClient(301, 1.0).split(LARGE, 0), r"^partition.clients must be <= the 300"),
        (lambda: Classes(301, 2).split(LARGE, 0), r"^partition.clients must be <= the 300"),
        (lambda: Shards(200, 2).split(LARGE, 0), r"^partition.clients \* partition.per_client must be <= the 300"),
        (lambda: Quantity(100, 1.0, 4).split(LARGE, 0), r"^partition.min_samples must be <= 3 for 100 clients"),
        (lambda: Classes(3, 2, held_out=300).split(LARGE, 0), r"^partition.held_out must be < the 300 training"),
        (
            lambda: ClassesPerClient(3, 5).split(LARGE, 0),
            r"^partition.per_client must be <= the 4 classes of data toy, got 5",
        ),
        (
            lambda: QuantityDirichlet(20, 0.1, attempts=50).split(LARGE, 0),
            r"^partition=quantity_dirichlet: none of 50 draws at alpha 0.1 .*raise partition.alpha",
        ),
        (lambda: Classes(3, 5).split(LARGE, 0), r"^partition.per_client must be <= the 4 classes of data toy, got 5"),
        (
            lambda: Classes(299, 3).split(LARGE, 0),
            r"^partition.clients must leave each class .*lower it or partition.per_",
        ),
        (lambda: Natural(10).split(LARGE, 0), r"^partition.clients must be <= the 9 groups of data toy"),
        (
            lambda: Natural(min_samples=99).split(LARGE, 0),
            r"^partition.min_samples must be <= 34, the size of the larg",
        ),
        (lambda: Natural().split(toy(30, 0, 3), 0), r"^partition=natural needs data with natural clients.*=iid$"),
        (
            lambda: Dirichlet(100, 0.01).split(LARGE, 0),
            r"^partition=dirichlet: none of 100 draws .*raise partition.alpha",
        ),
    ],
)
def test_errors_are_one_line_that_says_what_to_do(make, message):
    with pytest.raises(InputError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "rule", [Dirichlet(3, 1.0), DirichletPerClient(3, 1.0), Classes(3, 1), ClassesPerClient(3, 1), Shards(3, 1)]
)
def test_label_rules_refuse_data_without_classes(rule):
    with pytest.raises(InputError, match="needs class labels, but data toy is a regression task; use partition=iid"):
        rule.split(toy(60, 20, 4, task="regression"), 0)


def test_sorting_refuses_targets_that_are_not_one_number():
    tokens = Split(np.zeros((6, 3), dtype=np.int64), np.zeros((6, 3), dtype=np.int64))
    data = Dataset("text", tokens, None, "next_token", 10)
    assert len(Blocks(2).split(data, 0)) == 2
    with pytest.raises(InputError, match=r"partition.sort must be false for data text"):
        Blocks(2, sort=True).split(data, 0)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configs_build_and_repeat_the_defaults_of_their_class(path):
    node = yaml.safe_load(path.read_text())
    rule = build_object(node, "partition")
    assert type(rule).__name__.lower() == path.stem.replace("_", "")
    assert {f.name for f in fields(rule)} == set(node) - {"_target_"}
    for field in fields(rule):
        if field.default is not MISSING:
            assert getattr(rule, field.name) == field.default


def test_mixed_blocks_deal_that_share_at_random():
    """The others lie in label order, as without mixing."""
    y = np.random.default_rng(0).permutation(np.repeat(np.arange(5), 800))
    data = Dataset("sorted", Split(np.zeros((4000, 1)), y), None, "classification", 5)
    counts = Blocks(5, sort=True, mixed=0.5).split(data, 0).counts(data)
    assert counts.sum() == 4000
    assert (counts.sum(axis=1) == 800).all()
    own = np.diag(counts)  # half of a client's samples and a fifth of the other half
    others = counts[~np.eye(5, dtype=bool)]
    assert np.abs(own - 480).max() < 60  # 400 +- 14 by the draw, and at most as many moved to a neighbour
    assert np.abs(others - 80).max() < 60
    assert (
        Blocks(5, sort=True, mixed=0.5).split(data, 1).digest != Blocks(5, sort=True, mixed=0.5).split(data, 0).digest
    )


@given(st.integers(1, 12), st.floats(0, 1), st.booleans(), st.integers(40, 90), st.integers(0, 3))
@hypothesis_settings(max_examples=60, deadline=None)
def test_mixed_blocks_stay_even_and_keep_every_sample(clients, mixed, sort, size, seed):
    data = toy(size, 0, 4)
    population = Blocks(clients, sort=sort, mixed=mixed).split(data, seed)
    sizes = [len(rows) for rows in population.train]
    assert max(sizes) - min(sizes) <= 1
    assert sorted(np.concatenate(population.train).tolist()) == list(range(size))


def test_blocks_without_mixing_are_blocks_and_wholly_mixed_ones_are_iid():
    data = toy(4000, 0, 4)
    none, half, whole = (Blocks(4, sort=True, mixed=mixed).split(data, 0).counts(data) for mixed in (0.0, 0.5, 1.0))
    assert none.tolist() == Blocks(4, sort=True).split(data, 0).counts(data).tolist()
    shares = whole / whole.sum(axis=0)
    assert np.abs(shares - 0.25).max() < 0.08  # 1000 a class: six standard errors
    assert none.max(axis=0).sum() > half.max(axis=0).sum() > whole.max(axis=0).sum()
    for mixed in (-0.1, 1.1):
        with pytest.raises(InputError, match=r"^mixed must be in \[0, 1\], got"):
            Blocks(4, mixed=mixed)
