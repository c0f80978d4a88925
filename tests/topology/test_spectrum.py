"""Lambda and the constants of asynchronous gossip against closed forms and published tables."""

from __future__ import annotations

from math import ceil, cos, log, log2, pi, sqrt

import networkx as nx
import numpy as np
import pytest

from fedsim.errors import InputError
from fedsim.topology import (
    Barbell,
    BaseKPlus1,
    Bipartite,
    Complete,
    Exponential,
    ExponentialDirected,
    Grid,
    Hypercube,
    OnePeerExponential,
    Path,
    RandomRegular,
    Ring,
    Star,
    Torus,
    chi1,
    chi2,
    edge_array,
    edge_rates,
    lam,
    minimal_rates,
    spectral_gap,
    spectrum,
)


def w_of(topology, n, index=0):
    return topology.mixing(n, index, 0).w


def period_of(topology, n):
    period = topology.mixing(n, 0, 0).period
    return [w_of(topology, n, index) for index in range(period)]


@pytest.mark.parametrize(
    ("topology", "n", "edges", "expected"),
    [
        (Ring(), 100, 100, 0.998684),
        (Grid(), 100, 180, 0.979470),
        (Torus(), 100, 200, 0.923607),
        (Exponential(), 100, 700, 0.733333),
        (Complete(), 100, 4950, 0.0),
        (Ring(), 16, 16, 0.949253),
        (Grid(), 16, 24, 0.868641),
        (Torus(), 16, 32, 0.6),
        (Exponential(), 16, 56, 0.5),
    ],
)
def test_lambda_of_the_metropolis_table(topology, n, edges, expected):
    mixing = topology.mixing(n, 0, 0)
    assert len(mixing.edges) == edges
    assert lam(mixing.w) == pytest.approx(expected, abs=1e-6)
    assert spectral_gap(mixing.w) == pytest.approx(1 - expected, abs=1e-6)


@pytest.mark.parametrize("n", [3, 4, 7, 16, 100, 499, 500, 2000])
def test_lambda_of_the_ring_in_closed_form_dense_and_sparse(n):
    assert lam(w_of(Ring(), n)) == pytest.approx(1 / 3 + 2 / 3 * cos(2 * pi / n), abs=1e-10)


@pytest.mark.parametrize("n", [8, 510])
def test_other_closed_forms(n):
    assert lam(w_of(Path(), n)) == pytest.approx(1 / 3 + 2 / 3 * cos(pi / n), abs=1e-10)
    assert lam(w_of(Star(), n)) == pytest.approx(1 - 1 / n, abs=1e-10)
    assert lam(w_of(Complete(), min(n, 500))) == pytest.approx(0, abs=1e-7)
    side = n // 2
    assert lam(w_of(Bipartite(), n)) == pytest.approx((side - 1) / (side + 1), abs=1e-10)  # the negative end
    tau = ceil(log2(n))
    assert lam(w_of(ExponentialDirected(), n)) == pytest.approx(1 - 2 / (1 + tau), abs=1e-10)
    assert lam(w_of(Hypercube(), 1 << tau)) == pytest.approx((tau - 1) / (tau + 1), abs=1e-10)


def test_sparse_and_dense_agree_on_random_graphs_and_on_products():
    rule = RandomRegular(6)
    ws = [w_of(rule, 520, index) for index in range(3)]
    for some in (ws[:1], ws):
        product = np.linalg.multi_dot([w.toarray() for w in reversed(some)]) if len(some) > 1 else some[0].toarray()
        assert lam(*some) == pytest.approx(np.linalg.norm(product - 1 / 520, 2), abs=1e-9)


def test_q_gossip_steps_contract_by_lambda_to_the_q():
    w = w_of(Torus(), 100)
    assert lam(w, w, w, w) == pytest.approx(0.923607**4, abs=1e-5)


@pytest.mark.parametrize("n", [2, 4, 16, 64, 1024])
def test_one_peer_exponential_reaches_the_exact_average_of_a_power_of_two(n):
    ws = period_of(OnePeerExponential(), n)
    assert len(ws) == log2(n)
    product = np.eye(n)
    for w in ws:
        product = w @ product
    assert (product == 1 / n).all()  # powers of two: exact in floating point
    assert lam(*ws) < 1e-12
    assert lam(ws[0]) == pytest.approx(cos(pi / n), abs=1e-10)  # a shift by one
    assert n == 2 or lam(ws[-1]) == pytest.approx(1.0, abs=1e-10)  # pairs alone do not mix


@pytest.mark.parametrize("n", [3, 6, 12, 100])
def test_one_peer_exponential_only_approaches_the_average_of_others(n):
    ws = period_of(OnePeerExponential(), n)
    assert len(ws) == ceil(log2(n))
    assert 1e-3 < lam(*ws) < 0.5


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_base_k_plus_1_reaches_the_exact_average_of_any_number_of_peers(k):
    for n in [*range(2, 17), 35, 49, 60]:
        ws = period_of(BaseKPlus1(k), n)
        product = np.eye(n)
        for w in ws:
            product = w @ product
        assert np.abs(product - 1 / n).max() < 1e-14
        assert len(ws) <= 2 * log(n, k + 1) + 2  # the paper's Theorem 1
    assert lam(*period_of(BaseKPlus1(k), 500)) < 1e-7


def test_base_2_has_the_periods_of_the_authors_code():
    periods = [BaseKPlus1(1).mixing(n, 0, 0).period for n in range(2, 17)]
    assert periods == [1, 3, 2, 5, 4, 5, 3, 7, 6, 7, 5, 7, 6, 7, 4]
    assert [BaseKPlus1(n - 1).mixing(n, 0, 0).period for n in (3, 5, 7)] == [1, 1, 1]  # one complete round


TABLE = [  # expected edge events per unit of virtual time, DADAO column; n = 300 (grid 289) beside n = 16
    (Star(), 16, 15),
    (Complete(), 16, 10.6),
    (Ring(), 16, 39.7),
    (Path(), 16, 76.5),
    (Grid(), 16, 26.3),
    (Barbell(), 16, 126.1),
    (Star(), 300, 299),
    (Complete(), 300, 211.4),
    (Ring(), 300, 14300),
    (Path(), 300, 28553),
    (Grid(), 289, 2462),
    (Barbell(), 300, 194843),
]


@pytest.mark.parametrize(("topology", "n", "total"), TABLE)
def test_minimal_rates_reproduce_the_communications_of_dadao(topology, n, total):
    graph = topology.mixing(n, 0, 0).graph
    rates = minimal_rates(graph)
    assert rates.shape == (len(edge_array(graph)),)
    assert rates.sum() == pytest.approx(total, rel=0.004)
    assert chi1(graph, rates) * chi2(graph, rates) == pytest.approx(0.5, rel=1e-9)


@pytest.mark.parametrize("n", [3, 10, 40])
def test_chi_in_closed_form(n):
    complete, ring, star = (t.mixing(n, 0, 0).graph for t in (Complete(), Ring(), Star()))
    ones = np.ones(complete.number_of_edges())
    assert chi1(complete, 2 * ones) == pytest.approx(1 / (2 * n))
    assert chi2(complete, 2 * ones) == pytest.approx(1 / (2 * n))  # resistance 2/n of unit edges, halved twice
    assert chi1(ring, np.ones(n)) == pytest.approx(1 / (2 - 2 * cos(2 * pi / n)))
    assert chi2(ring, np.ones(n)) == pytest.approx((n - 1) / (2 * n))
    assert chi1(star, np.ones(n - 1)) == pytest.approx(1.0)
    assert chi2(star, np.arange(1.0, n)) == pytest.approx(0.5)  # a tree: 1 / rate of the slowest edge
    assert minimal_rates(complete).sum() == pytest.approx((n - 1) / sqrt(2))


def test_rates_of_the_config():
    graph = Ring().mixing(5, 0, 0).graph
    assert edge_rates(graph, 0.25).tolist() == [0.25] * 5
    assert edge_rates(graph, "minimal").tolist() == minimal_rates(graph).tolist()
    with pytest.raises(InputError, match=r"^topology.rates must be of an undirected graph"):
        edge_rates(nx.DiGraph([(0, 1), (1, 0)]), "minimal")


def test_optimal_rates_beat_equal_ones_on_the_barbell_only():
    pytest.importorskip("cvxpy")
    barbell = Barbell().mixing(10, 0, 0).graph
    rates = edge_rates(barbell, "optimal")
    assert chi1(barbell, rates) * chi2(barbell, rates) == pytest.approx(0.5, rel=1e-9)
    assert minimal_rates(barbell).sum() == pytest.approx(38.44, abs=0.01)
    assert rates.sum() == pytest.approx(18.215, abs=0.01)
    for topology in (Ring(), Star(), Path(), Complete()):
        graph = topology.mixing(8, 0, 0).graph
        assert edge_rates(graph, "optimal").sum() == pytest.approx(minimal_rates(graph).sum(), rel=1e-5)


def test_fastest_mixing_on_a_path_is_one_half_and_never_slower_than_metropolis():
    pytest.importorskip("cvxpy")
    path = Path(weights="fastest_mixing").mixing(12, 0, 0)
    assert lam(path.w) == pytest.approx(cos(pi / 12), abs=1e-6)  # Boyd, Diaconis, Sun and Xiao 2006: all weights 1/2
    assert path.row_stochastic
    assert path.column_stochastic
    for topology, plain in ((Barbell(weights="fastest_mixing"), Barbell()), (Grid(weights="fastest_mixing"), Grid())):
        assert lam(w_of(topology, 12)) < lam(w_of(plain, 12)) - 0.01


def test_without_cvxpy_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "cvxpy", None)
    with pytest.raises(
        InputError, match=r"^topology.weights=fastest_mixing needs the package cvxpy.*pip install cvxpy$"
    ):
        Ring(weights="fastest_mixing").mixing(5, 0, 0)
    with pytest.raises(InputError, match=r"^topology.rates=optimal needs the package cvxpy"):
        edge_rates(nx.cycle_graph(5), "optimal")


@pytest.mark.parametrize("n", [499, 500, 501, 10_000])
def test_lambda_of_a_large_ring_is_the_closed_form_and_takes_no_iteration(n, monkeypatch):
    monkeypatch.setattr(spectrum, "eigsh", None)
    assert lam(w_of(Ring(), n)) == pytest.approx(1 / 3 + 2 / 3 * cos(2 * pi / n), abs=1e-12)


def test_circulant_matrices_of_many_peers_have_the_lambda_of_a_dense_decomposition(monkeypatch):
    families = [[w_of(Exponential(), 64)], [w_of(ExponentialDirected(), 48)], period_of(OnePeerExponential(), 24)]
    dense = [lam(*ws) for ws in families]
    monkeypatch.setattr(spectrum, "_DENSE", 0)
    monkeypatch.setattr(spectrum, "eigsh", None)
    assert [lam(*ws) for ws in families] == pytest.approx(dense, abs=1e-12)


@pytest.mark.parametrize("topology", [Path(), Grid(), Star(), Barbell(), RandomRegular(degree=3), BaseKPlus1()])
def test_what_is_not_circulant_is_not_taken_for_it(topology):
    assert spectrum.circulant(w_of(Ring(), 24))
    assert not spectrum.circulant(w_of(topology, 24))
