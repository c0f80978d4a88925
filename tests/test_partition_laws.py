"""Random partitions against the closed forms of their laws.

Seeds are fixed, so a test never fails by chance; a tolerance of five standard errors means that a correct rule would
have had a chance of 6e-7 to fail when the seed was chosen, while the wrong rules named in the comments lie far outside.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from fedsim.data.dataset import Dataset, Split
from fedsim.partition import Classes, Dirichlet, DirichletPerClient, Iid, Quantity, Shards


def balanced(per_class, classes):
    y = np.random.default_rng(0).permutation(np.repeat(np.arange(classes), per_class))
    return Dataset("balanced", Split(np.zeros((len(y), 1)), y), None, "classification", classes)


def close(draws, mean):
    """Within five standard errors of independent draws."""
    return abs(np.mean(draws) - mean) < 5 * np.std(draws) / np.sqrt(len(draws))


@pytest.mark.parametrize("alpha", [0.3, 2.0])
def test_dirichlet_shares_of_a_class_have_the_moments_of_dirichlet(alpha):
    clients, data = 10, balanced(500, 60)
    counts = np.concatenate([Dirichlet(clients, alpha).split(data, seed).counts(data).T for seed in range(20)])
    shares = counts / 500  # [1200 classes, clients], independent rows
    for client in range(clients):
        assert close(shares[:, client], 1 / clients)
        variance = (clients - 1) / (clients**2 * (clients * alpha + 1))
        assert close((shares[:, client] - 1 / clients) ** 2, variance)
    # E sum p^2; a prior over the 60 classes of a client instead would give another sum in each row
    assert close((shares**2).sum(axis=1), (alpha + 1) / (clients * alpha + 1))


def test_a_dirichlet_share_is_beta_distributed():
    clients, alpha, data = 5, 2.0, balanced(500, 100)
    counts = np.concatenate([Dirichlet(clients, alpha).split(data, seed).counts(data).T for seed in range(10)])
    for client in (0, clients - 1):  # independent over the 1000 classes
        assert stats.kstest(counts[:, client] / 500, stats.beta(alpha, (clients - 1) * alpha).cdf).pvalue > 0.01


@pytest.mark.parametrize("alpha", [0.3, 2.0])
def test_dirichlet_per_client_counts_are_dirichlet_multinomial(alpha):
    classes, clients, data = 10, 500, balanced(2000, 10)
    counts = np.concatenate([DirichletPerClient(clients, alpha).split(data, s).counts(data) for s in range(4)])
    size = 40  # [2000 clients, classes], independent rows
    assert (counts.sum(axis=1) == size).all()
    same = (counts * (counts - 1)).sum(axis=1) / (size * (size - 1))  # chance that two samples of a client agree
    assert close(same, (alpha + 1) / (classes * alpha + 1))
    for label in range(classes):
        assert close(counts[:, label], size / classes)


def test_dirichlet_per_client_refills_a_class_in_the_same_order():
    data = balanced(40, 10)
    population = DirichletPerClient(20, 0.05).split(data, 0)
    held = np.bincount(np.concatenate(population.train), minlength=400)
    assert held.max() >= 2  # some class ran out
    assert held.min() == 0  # some samples are never used
    for label in range(10):
        mine = held[data.train.y == label]
        assert mine.max() - mine.min() <= 1  # every sample of a class is dealt before any is dealt again


def test_extreme_concentrations_are_finite_and_have_their_limits():
    data = balanced(100, 5)
    for rule in (Dirichlet(4, 1e6), DirichletPerClient(4, 1e6)):
        shares = rule.split(data, 0).counts(data) / 125
        assert np.abs(shares - 0.2).max() < 5 * np.sqrt(0.2 * 0.8 / 125)
    lonely = DirichletPerClient(50, 1e-6).split(data, 0).counts(data)
    assert ((lonely > 0).sum(axis=1) == 1).all()
    assert (Dirichlet(1, 1e-6).split(data, 0).counts(data) == 100).all()


def test_dirichlet_succeeds_where_papers_use_it_and_gives_up_quickly_where_it_cannot():
    digits, mnist, cifar100 = balanced(144, 10), balanced(6000, 10), balanced(500, 100)
    for seed in range(20):
        assert min(map(len, Dirichlet(20, 0.3).split(digits, seed).train)) >= 2
        assert min(map(len, Dirichlet(100, 0.1).split(mnist, seed).train)) >= 2
    for alpha in (0.1, 0.3):  # a published splitter never returned on the latter
        assert len(Dirichlet(500, alpha).split(cifar100, 0)) == 500
    with pytest.raises(ValueError, match="none of 100 draws"):
        Dirichlet(500, 0.1).split(digits, 0)


def test_quantity_sizes_are_log_normal():
    clients, sigma = 2000, 0.5
    data = balanced(100_000, 4)
    sizes = np.array([len(a) for a in Quantity(clients, sigma).split(data, 0).train]) - 2
    logs = np.log(sizes)
    assert abs(logs.std() - sigma) < 5 * sigma / np.sqrt(2 * clients)  # standard error of a normal's deviation
    assert stats.kstest((logs - logs.mean()) / logs.std(), "norm").pvalue > 0.01


def test_iid_counts_are_hypergeometric():
    clients, data = 100, balanced(1000, 5)
    counts = Iid(clients).split(data, 0).counts(data)  # 50 samples each
    pit = stats.hypergeom(5000, 1000, 50)
    assert (counts.sum(axis=0) == 1000).all()
    assert abs(counts[:, 0].std() - pit.std()) < 5 * pit.std() / np.sqrt(2 * clients)


def test_samples_of_a_class_are_dealt_in_random_order():
    """Files are often ordered within a class (by writer, by time); only ``Blocks`` may follow that order."""
    y = np.repeat(np.arange(5), 200)
    data = Dataset("ordered", Split(np.zeros((1000, 1)), y), Split(np.zeros((1000, 1)), y), "classification", 5)
    for rule in (
        Iid(10),
        Dirichlet(10, 1.0),
        DirichletPerClient(10, 1.0),
        Classes(10, 2),
        Shards(10),
        Quantity(10, 1.0),
    ):
        population = rule.split(data, 0)
        for owned in (population.train, population.test):
            positions = [a[y[a] == 0] for a in owned]
            mine = max((a for a in positions if len(a) < 150), key=len)  # most of class 0, but not nearly all of it
            # uniform positions among 0..199 have a mean distance to their median of 50; a run of r has r / 4
            assert np.abs(mine - np.median(mine)).mean() > max(30, len(mine) / 4 + 5)


def test_classes_chooses_classes_and_shares_evenly():
    data = balanced(1000, 10)
    counts = np.concatenate([Classes(10, 2).split(data, seed).counts(data) for seed in range(100)])
    owned = counts > 0
    assert close(owned[::10, 0], 0.2)  # client 0 owns class 0 in a fifth of the seeds
    together = (owned[::10, 0] & owned[::10, 1]).mean()
    assert together < 0.1  # independent pairs: 1/45; a fixed pairing would be 0.2 or 0
    smaller = np.sort(counts.reshape(100, 10, 10), axis=1)[:, -2] / 1000  # two owners: u / (u + v), at most 1/2
    low = 0.4 / (0.4 + 0.6)
    assert low - 0.002 <= smaller.min() < low + 0.02
    assert 0.498 < smaller.max() <= 0.5
