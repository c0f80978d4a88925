"""What every topology promises of its mixing matrices, by hypothesis over kinds, sizes, weights and rounds."""

from __future__ import annotations

from dataclasses import MISSING, fields
from pathlib import Path

import networkx as nx
import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from scipy import sparse

import fedsim.topology as topologies
from fedsim.assembly.nodes import build_object
from fedsim.errors import InputError
from fedsim.ground.rng import numpy_stream
from fedsim.topology import (
    BarabasiAlbert,
    Barbell,
    BaseKPlus1,
    Bipartite,
    Complete,
    ErdosRenyi,
    Exponential,
    ExponentialDirected,
    Grid,
    Hypercube,
    Networkx,
    OnePeerExponential,
    RandomGeometric,
    RandomRegular,
    Ring,
    SmallWorld,
    Star,
    Torus,
    weigh,
)
from fedsim.topology import (
    Path as PathGraph,
)
from fedsim.topology.mixing import checked

NONE = Path(__file__).parents[2] / "configs" / "topology" / "none.yaml"
CONFIGS = sorted(path for path in NONE.parent.glob("*.yaml") if path != NONE)
SYMMETRIC = ("metropolis", "max_degree", "lazy")


def every(weights="metropolis"):
    """A topology of each kind that takes weights, for 16 peers and more."""
    return [
        Ring(weights=weights),
        PathGraph(weights=weights),
        Star(weights=weights),
        Complete(weights=weights),
        Grid(rows=1, weights=weights),
        Torus(rows=1, weights=weights),
        Exponential(weights=weights),
        Barbell(weights=weights),
        ErdosRenyi(0.5, weights=weights),
        ErdosRenyi(0.5, weights=weights, fresh=True),
        RandomRegular(4, weights=weights),
        SmallWorld(4, 0.3, weights=weights),
        BarabasiAlbert(2, weights=weights),
        RandomGeometric(0.6, weights=weights),
        Bipartite(weights=weights),
        Bipartite(3, 0.8, weights=weights),
        Networkx(generator="networkx.circulant_graph", options={"offsets": [1, 3]}, weights=weights),
    ]


RANDOM = [t for t in every() if hasattr(t, "fresh") and not isinstance(t, Networkx) and t != Bipartite()]


def inspect(mixing, n):
    """The promises that hold for every W; returns it dense."""
    w = mixing.w
    assert isinstance(w, sparse.csr_matrix)
    assert w.dtype == np.float64
    dense = w.toarray()
    assert dense.shape == (n, n)
    assert np.isfinite(dense).all()
    assert (dense >= 0).all()
    linked = nx.to_numpy_array(mixing.graph, nodelist=range(n), weight=None).T > 0  # [receiver, sender]
    assert not dense[~linked & ~np.eye(n, dtype=bool)].any()
    assert (dense[linked] > 0).all()
    assert mixing.symmetric == bool(np.abs(dense - dense.T).max() <= 1e-12)
    assert mixing.row_stochastic == bool(np.abs(dense.sum(axis=1) - 1).max() <= 1e-12)
    assert mixing.column_stochastic == bool(np.abs(dense.sum(axis=0) - 1).max() <= 1e-12)
    assert {tuple(e) if mixing.directed else frozenset(e) for e in mixing.edges.tolist()} == {
        e if mixing.directed else frozenset(e) for e in mixing.graph.edges()
    }
    assert mixing.edges.tolist() == sorted(mixing.edges.tolist())
    return dense


@given(
    st.sampled_from(SYMMETRIC).flatmap(lambda w: st.sampled_from(every(w))),
    st.integers(5, 33),
    st.integers(0, 50),
    st.integers(0, 3),
)
@hypothesis_settings(max_examples=120, deadline=None)
def test_undirected_graphs_mix_symmetrically_and_preserve_the_mean(topology, n, index, seed):
    mixing = topology.mixing(n, index, seed)
    dense = inspect(mixing, n)
    assert mixing.symmetric
    assert mixing.row_stochastic
    assert mixing.column_stochastic
    assert mixing.warnings == ()
    x = np.random.default_rng(0).normal(size=(n, 3))
    np.testing.assert_allclose((mixing.w @ x).mean(axis=0), x.mean(axis=0), atol=1e-12)
    assert nx.is_connected(mixing.graph)
    assert mixing.period == (None if getattr(topology, "fresh", False) else 1)
    assert mixing.static == (mixing.period == 1)
    if topology.weights == "lazy":
        assert np.linalg.eigvalsh(dense).min() >= -1e-12


@given(
    st.one_of(st.just(ExponentialDirected()), st.just(OnePeerExponential()), st.integers(1, 4).map(BaseKPlus1)),
    st.integers(2, 33),
    st.integers(0, 50),
)
@hypothesis_settings(max_examples=80, deadline=None)
def test_topologies_with_weights_of_their_own_are_doubly_stochastic_and_periodic(topology, n, index):
    mixing = topology.mixing(n, index, 0)
    dense = inspect(mixing, n)
    assert mixing.row_stochastic
    assert mixing.column_stochastic
    later = topology.mixing(n, index + 3 * mixing.period, 7)
    assert later.w.toarray().tolist() == dense.tolist()
    if isinstance(topology, BaseKPlus1):
        assert max(d for _, d in mixing.graph.degree()) <= topology.k
        assert mixing.symmetric
    if isinstance(topology, OnePeerExponential):
        assert {d for _, d in mixing.graph.out_degree()} == {1}


def test_weights_by_hand():
    path = nx.path_graph(3)
    assert weigh(path, "metropolis", 1).w.toarray() == pytest.approx(np.array([[2, 1, 0], [1, 1, 1], [0, 1, 2]]) / 3)
    lazy = np.array([[5, 1, 0], [1, 4, 1], [0, 1, 5]]) / 6
    assert weigh(path, "lazy", 1).w.toarray() == pytest.approx(lazy)
    uniform = np.array([[1 / 2, 1 / 2, 0], [1 / 3, 1 / 3, 1 / 3], [0, 1 / 2, 1 / 2]])
    assert weigh(path, "uniform", 1).w.toarray() == pytest.approx(uniform)
    assert weigh(path, "push_sum", 1).w.toarray() == pytest.approx(uniform.T)
    star = nx.star_graph(3)
    expected = np.full((4, 4), 0.0)
    expected[0] = expected[:, 0] = 1 / 4
    expected[[1, 2, 3], [1, 2, 3]] = 3 / 4
    assert weigh(star, "metropolis", 1).w.toarray() == pytest.approx(expected)
    tail = nx.Graph([(0, 1), (0, 2), (0, 3), (3, 4)])  # the last edge: degrees 2 and 1
    assert weigh(tail, "metropolis", 1).w[3, 4] == pytest.approx(1 / 3)
    assert weigh(tail, "max_degree", 1).w[3, 4] == pytest.approx(1 / 4)


def test_push_sum_on_arcs_sends_shares_to_the_receivers():
    arcs = nx.DiGraph([(0, 1), (0, 2), (1, 2), (2, 0)])
    mixing = weigh(arcs, "push_sum", 1)
    expected = np.array([[1 / 3, 0, 1 / 2], [1 / 3, 1 / 2, 0], [1 / 3, 1 / 2, 1 / 2]])
    assert inspect(mixing, 3) == pytest.approx(expected)
    assert (mixing.row_stochastic, mixing.column_stochastic) == (False, True)
    assert mixing.warnings == ()
    x, weight = np.array([5.0, -1.0, 2.0]), np.ones(3)
    for _ in range(200):
        x, weight = mixing.w @ x, mixing.w @ weight
    assert x / weight == pytest.approx([2.0] * 3, abs=1e-12)
    with pytest.raises(InputError, match=r"^topology.weights must be one of uniform, push_sum, given on a directed"):
        weigh(arcs, "metropolis", 1)


def test_uniform_weights_warn_only_where_they_move_the_mean():
    mixing = Star(weights="uniform").mixing(10, 0, 0)
    assert mixing.row_stochastic
    assert not mixing.column_stochastic
    assert len(mixing.warnings) == 1
    assert mixing.warnings[0].startswith("topology.weights=uniform is not doubly stochastic on this graph")
    assert "use topology.weights=metropolis" in mixing.warnings[0]
    regular = Ring(weights="uniform").mixing(10, 0, 0)
    assert regular.warnings == ()
    assert regular.w.toarray() == pytest.approx(Ring().mixing(10, 0, 0).w.toarray())


@pytest.mark.parametrize("topology", RANDOM, ids=lambda t: type(t).__name__)
def test_random_graphs_are_addressed_by_seed_and_round(topology):
    def edges(rule, index, seed):
        return rule.mixing(24, index, seed).edges.tolist()

    fresh = type(topology)(**{**{f.name: getattr(topology, f.name) for f in fields(topology)}, "fresh": True})
    fixed = type(topology)(**{**{f.name: getattr(topology, f.name) for f in fields(topology)}, "fresh": False})
    before = np.random.get_state()[1].tolist()  # noqa: NPY002
    assert edges(fresh, 3, 0) == edges(fresh, 3, 0)
    assert np.random.get_state()[1].tolist() == before  # noqa: NPY002
    assert len({str(edges(fresh, index, 0)) for index in range(6)}) == 6
    assert len({str(edges(fixed, index, 0)) for index in range(6)}) == 1
    assert len({str(edges(fixed, 0, seed)) for seed in range(6)}) == 6
    assert edges(fixed, 5, 2) == edges(fresh, 0, 2)


@pytest.mark.parametrize(("n", "degree"), [(100, 10), (10, 3), (9, 8), (9, 6), (12, 9), (30, 1), (6, 0)])
def test_regular_graphs_have_equal_degrees_without_loops(n, degree):
    if degree in (0, 1):
        with pytest.raises(InputError, match=r"^degree must be >= 1|raise topology.degree"):
            RandomRegular(degree, attempts=3).mixing(n, 0, 0)
        return
    for seed in range(5):
        graph = RandomRegular(degree).mixing(n, 0, seed).graph
        assert {d for _, d in graph.degree()} == {degree}
        assert nx.number_of_selfloops(graph) == 0


def test_regular_graphs_reach_every_graph_and_have_the_triangles_of_the_uniform_law():
    """Six peers: 60 prisms and 10 bipartite graphs. Large n: Poisson((degree - 1)^3 / 6) triangles."""
    six = {str(sorted(RandomRegular(3).sample(6, numpy_stream(0, "test", i)).edges())) for i in range(700)}
    assert len(six) == 70
    triangles = [sum(nx.triangles(RandomRegular(3).mixing(200, index, 0).graph).values()) / 3 for index in range(150)]
    assert np.mean(triangles) == pytest.approx(8 / 6, abs=0.25)  # 2.7 standard errors; networkx draws 1.65


def test_shapes_are_what_their_names_say():
    def graph(topology, n):
        return topology.mixing(n, 0, 0).graph

    assert nx.is_isomorphic(graph(Grid(), 12), nx.grid_2d_graph(3, 4))
    assert nx.is_isomorphic(graph(Grid(rows=2), 12), nx.grid_2d_graph(2, 6))
    assert nx.is_isomorphic(graph(Grid(rows=1), 7), nx.path_graph(7))
    assert nx.is_isomorphic(graph(Torus(), 12), nx.grid_2d_graph(3, 4, periodic=True))
    assert nx.is_isomorphic(graph(Torus(rows=1), 7), nx.cycle_graph(7))
    assert nx.is_isomorphic(graph(Hypercube(), 16), nx.hypercube_graph(4))
    assert nx.is_isomorphic(graph(Barbell(), 10), nx.barbell_graph(5, 0))
    assert nx.is_isomorphic(graph(Barbell(), 11), nx.barbell_graph(5, 1))
    assert nx.is_isomorphic(graph(Barbell(bridge=4), 12), nx.barbell_graph(4, 4))
    assert nx.is_isomorphic(graph(Bipartite(2), 7), nx.complete_bipartite_graph(2, 5))
    assert sorted(graph(Exponential(), 11)[0]) == [1, 2, 3, 4, 7, 8, 9, 10]  # -8 = 3, -4 = 7
    assert sorted(graph(ExponentialDirected(), 11)[3]) == [0, 4, 5, 7]  # 3 + 8 = 0
    geometric = graph(RandomGeometric(0.4), 30)
    at = np.array([geometric.nodes[i]["pos"] for i in range(30)])
    near = np.linalg.norm(at[:, None] - at[None], axis=2) <= 0.4
    assert (nx.to_numpy_array(geometric, nodelist=range(30)) > 0).tolist() == (near & ~np.eye(30, dtype=bool)).tolist()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Ring().mixing(2, 0, 0), r"^partition.clients must be >= 3 for topology=ring, got 2$"),
        (lambda: Complete().mixing(1, 0, 0), r"^partition.clients must be >= 2 for topology=complete, got 1$"),
        (lambda: Star().mixing(1, 0, 0), r"^partition.clients must be >= 2"),
        (lambda: OnePeerExponential().mixing(1, 0, 0), r"^partition.clients must be >= 2"),
        (lambda: BaseKPlus1(2).mixing(1, 0, 0), r"^partition.clients must be >= 2"),
        (lambda: BaseKPlus1(0), r"^k must be >= 1, got 0"),
        (
            lambda: Hypercube().mixing(12, 0, 0),
            r"^partition.clients must be a power of two for topology=hypercube, got 12",
        ),
        (
            lambda: Grid().mixing(13, 0, 0),
            r"^partition.clients must be a product of two .* got 13; or set topology.rows=1",
        ),
        (lambda: Torus(rows=5).mixing(12, 0, 0), r"^topology.rows must divide the 12 clients, got 5"),
        (lambda: Barbell(bridge=2).mixing(9, 0, 0), r"^topology.bridge must leave an even number of the 9 clients"),
        (lambda: Barbell().mixing(3, 0, 0), r"^partition.clients must be >= 5 for topology=barbell"),
        (
            lambda: RandomRegular(3).mixing(9, 0, 0),
            r"^topology.degree must be even for 9 clients, an odd number, got 3",
        ),
        (lambda: RandomRegular(9).mixing(9, 0, 0), r"^topology.degree must be < the 9 clients, got 9"),
        (lambda: ErdosRenyi(1.5), r"^p must be in \(0, 1\], got 1.5"),
        (
            lambda: ErdosRenyi(0.001, attempts=4, fresh=True).mixing(20, 6, 0),
            r"none of 4 draws .* round 6 .*raise topology.p, or",
        ),
        (lambda: RandomGeometric(0.01).mixing(50, 0, 0), r"raise topology.radius, or topology.attempts$"),
        (lambda: SmallWorld(3), r"^neighbours must be an even number >= 2, got 3"),
        (lambda: BarabasiAlbert(5).mixing(5, 0, 0), r"^topology.edges must be < the 5 clients, got 5"),
        (lambda: Bipartite(7).mixing(7, 0, 0), r"^topology.left must be < the 7 clients, got 7"),
        (lambda: Ring(rates=0.0), r"^rates must be > 0, got 0.0"),
        (
            lambda: Ring(weights="given").mixing(4, 0, 0),
            r"^topology.weights must not be 'given' for a graph with 4 edges",
        ),
    ],
)
def test_errors_are_one_line_that_names_the_key(make, message):
    with pytest.raises(InputError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("w", "message"),
    [
        ([[0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.4, 0.5]], "rows that sum to 1, got row 2 off by 0.1"),
        ([[0.5, 0.5, 0], [0.2, 0.6, 0.2], [0, 0.5, 0.5]], "columns that sum to 1, got column 1 off by 0.6"),
        ([[1.5, -0.5, 0], [-0.5, 1, 0.5], [0, 0.5, 0.5]], ">= 0, got -0.5 at row 0, column 1"),
        ([[0.5, 0.5, 0], [0.5, np.nan, 0.5], [0, 0.5, 0.5]], "finite, got nan at row 1, column 1"),
        ([[0.5, 0, 0.5], [0, 1, 0], [0.5, 0, 0.5]], "zero off the edges"),
    ],
)
def test_a_wrong_matrix_is_refused(w, message):
    with pytest.raises(InputError, match=f"mixing matrix must (be|have) {message}"):
        checked(nx.path_graph(3), sparse.csr_matrix(w), 1)


REQUIRED = {"p": 0.5, "radius": 0.7, "generator": "networkx.cycle_graph"}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configs_build_and_repeat_the_defaults_of_their_class(path, tmp_path):
    node = yaml.safe_load(path.read_text())
    (tmp_path / "ring.txt").write_text("".join(f"{i} {(i + 1) % 16}\n" for i in range(16)))
    given = {**REQUIRED, "path": str(tmp_path / "ring.txt")}
    with_values = {key: given[key] if value == "???" else value for key, value in node.items()}
    rule = build_object(with_values, "topology")
    assert type(rule).__name__.lower() == path.stem.replace("_", "")
    assert {f.name for f in fields(rule)} == set(node) - {"_target_"}
    for field in fields(rule):
        if field.default is not MISSING:
            assert getattr(rule, field.name) == field.default
    inspect(rule.mixing(16, 0, 0), 16)


def test_every_topology_has_a_config():
    classes = {n.lower() for n in topologies.__all__ if hasattr(getattr(topologies, n), "mixing")}
    classes -= {"topology", "fixedgraph", "randomgraph"}  # the protocol, and bases for topologies of one's own
    assert classes == {path.stem.replace("_", "") for path in CONFIGS}


def test_no_topology_is_an_option_too():
    assert yaml.safe_load(NONE.read_text()) == {"topology": None}


def test_the_builder_names_the_group():
    with pytest.raises(InputError, match=r"^topology.degree must be >= 1, got 0"):
        build_object({"_target_": "fedsim.topology.RandomRegular", "degree": 0}, "topology")
    with pytest.raises(InputError, match=r"topology.weights must be one of metropolis, max_degree"):
        build_object({"_target_": "fedsim.topology.Ring", "weights": "mean"}, "topology")
    with pytest.raises(InputError, match=r"topology.rates must be one of minimal, optimal or a float, got 'fast'"):
        build_object({"_target_": "fedsim.topology.Ring", "rates": "fast"}, "topology")
    assert build_object({"_target_": "fedsim.topology.Ring", "rates": 2}, "topology").rates == 2.0
