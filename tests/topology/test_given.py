"""Graphs from files and from networkx, and their pictures."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from fedsim.errors import InputError
from fedsim.topology import Barbell, ErdosRenyi, ExponentialDirected, File, Grid, Networkx, Ring, Star
from fedsim.topology.figure import draw


def text(tmp_path, content, **options):
    path = tmp_path / "graph.txt"
    path.write_text(content)
    return File(path=str(path), **options)


def test_edge_lists_map_labels_in_ascending_order(tmp_path):
    rule = text(tmp_path, "# a comment\n10 2\n2,7  # another\n\n10\t30\n")
    mixing = rule.mixing(4, 5, 0)
    assert mixing.edges.tolist() == [[0, 1], [0, 2], [2, 3]]  # 2, 7, 10, 30 as numbers
    assert mixing.static
    assert mixing.w[0, 2] == pytest.approx(1 / 3)
    names = text(tmp_path, "bob alice\nbob 9\n")
    assert names.mixing(3, 0, 0).edges.tolist() == [[0, 2], [1, 2]]  # 9, alice, bob as text


def test_given_weights_leave_the_rest_on_the_diagonal(tmp_path):
    mixing = text(tmp_path, "0 1 0.25\n1 2 0.5\n", weights="given").mixing(3, 0, 0)
    assert mixing.w.toarray().tolist() == [[0.75, 0.25, 0], [0.25, 0.25, 0.5], [0, 0.5, 0.5]]
    assert mixing.symmetric
    assert mixing.warnings == ()
    arcs = text(tmp_path, "0 1 0.25\n1 0 0.5\n", weights="given", directed=True).mixing(2, 0, 0)
    assert arcs.w.toarray().tolist() == [[0.5, 0.5], [0.25, 0.75]]
    assert len(arcs.warnings) == 1
    assert "use topology.weights=push_sum" in arcs.warnings[0]


def test_graphml_keeps_direction_labels_and_weights(tmp_path):
    graph = nx.DiGraph()
    graph.add_weighted_edges_from([("c", "a", 0.5), ("a", "b", 0.25), ("b", "c", 0.75)])
    nx.write_graphml(graph, tmp_path / "g.graphml")
    mixing = File(path=str(tmp_path / "g.graphml"), weights="given").mixing(3, 0, 0)
    assert mixing.directed
    assert mixing.edges.tolist() == [[0, 1], [1, 2], [2, 0]]
    assert mixing.w.toarray().tolist() == [[0.5, 0, 0.5], [0.25, 0.75, 0], [0, 0.75, 0.25]]
    undirected = nx.path_graph(4)
    nx.write_graphml(undirected, tmp_path / "u.graphml")
    assert File(path=str(tmp_path / "u.graphml")).mixing(4, 0, 0).edges.tolist() == [[0, 1], [1, 2], [2, 3]]


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("0 1\n1 1\n", {}, r"must not have self loops .*, got '1'"),
        ("0 1\n2 3\n", {}, r"must be connected, got 2 components"),
        ("0 1\n1 2\n", {"directed": True}, r"must be strongly connected, got 3 components"),
        ("0 1\n1 0\n", {}, r"line 2 .* must name an edge that no line before names"),
        ("0 1\n1 2 0.5\n", {}, r"line 2 .* must hold two labels, and a weight if all lines do"),
        ("0\n", {}, r"line 1 .* must hold two labels"),
        ("0 1 much\n", {}, r"line 1 .* must have a number as its weight, got 'much'"),
        ("", {}, r"must have at least two nodes, got 0"),
    ],
)
def test_bad_files_are_refused_at_construction(tmp_path, content, options, message):
    with pytest.raises(InputError, match="^path: .*" + message) as caught:
        text(tmp_path, content, **options)
    assert "\n" not in str(caught.value)


def test_files_that_do_not_fit(tmp_path):
    rule = text(tmp_path, "0 1\n1 2\n")
    with pytest.raises(
        InputError, match=r"^topology.path must hold a graph with a node for each of the 5 clients, got 3;"
    ):
        rule.mixing(5, 0, 0)
    heavy = text(tmp_path, "0 1 0.6\n1 2 0.6\n", weights="given")
    with pytest.raises(InputError, match=r"^topology.weights=given: .* sum to <= 1, got 1.2 at node 1"):
        heavy.mixing(3, 0, 0)
    with pytest.raises(InputError, match=r"mixing matrix must be >= 0, got -0.5"):
        text(tmp_path, "0 1 -0.5\n", weights="given").mixing(2, 0, 0)
    words = nx.path_graph(2)
    nx.set_edge_attributes(words, "heavy", "weight")
    nx.write_graphml(words, tmp_path / "words.graphml")
    with pytest.raises(InputError, match=r"^topology.weights=given: the weight of every edge must be a number"):
        File(path=str(tmp_path / "words.graphml"), weights="given").mixing(2, 0, 0)
    with pytest.raises(InputError, match=r"^path must be a readable graph file, got '.*none.txt'"):
        File(path=str(tmp_path / "none.txt"))
    (tmp_path / "bad.graphml").write_text("<graphml")
    with pytest.raises(InputError, match=r"^path must be a readable graph file"):
        File(path=str(tmp_path / "bad.graphml"))


def test_networkx_generators():
    wheel = Networkx(generator="networkx.wheel_graph").mixing(7, 0, 0)
    assert nx.is_isomorphic(wheel.graph, nx.wheel_graph(7))
    ladder = Networkx(generator="networkx.ladder_graph", options={"n": 4})
    assert nx.is_isomorphic(ladder.mixing(8, 0, 0).graph, nx.ladder_graph(4))
    named = Networkx(generator="networkx.petersen_graph").mixing(10, 0, 0)
    assert set(dict(named.graph.degree).values()) == {3}
    grid = Networkx(generator="networkx.grid_graph", options={"dim": [2, 3, 2]}).mixing(12, 0, 0)
    assert nx.is_isomorphic(grid.graph, nx.grid_graph([2, 3, 2]))
    blocks = {"sizes": [6, 6], "p": [[0.9, 0.1], [0.1, 0.9]]}
    fresh = Networkx(generator="networkx.stochastic_block_model", options=blocks, fresh=True)
    assert fresh.mixing(12, 0, 0).period is None
    assert len({str(fresh.mixing(12, index, 0).edges.tolist()) for index in range(5)}) == 5
    assert fresh.mixing(12, 3, 1).edges.tolist() == fresh.mixing(12, 3, 1).edges.tolist()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Networkx(generator="networkx.no_such_graph"), r"^generator must be the dotted path of a function"),
        (lambda: Networkx(generator="cycle_graph"), r"^generator must be the dotted path of a function"),
        (
            lambda: Networkx(generator="networkx.cycle_graph", options={"size": 4}),
            r"^options must be among n for networkx.cycle_graph, got 'size'",
        ),
        (lambda: Networkx(generator="networkx.cycle_graph", fresh=True), r"^fresh must be false, for .* is not random"),
        (
            lambda: Networkx(generator="networkx.ladder_graph").mixing(6, 0, 0),
            r"^topology.options must make networkx.ladder_graph return a graph with a node .* 6 clients, got 12",
        ),
        (
            lambda: Networkx(generator="networkx.circulant_graph").mixing(6, 0, 0),
            r"^topology.options must suit networkx.circulant_graph",
        ),
        (
            lambda: Networkx(generator="networkx.empty_graph").mixing(6, 0, 0),
            r"^topology.generator: the graph of networkx.empty_graph must be connected, got 6 components",
        ),
        (
            lambda: Networkx(generator="networkx.is_tree", options={"G": nx.path_graph(2)}).mixing(2, 0, 0),
            r"^topology.generator must return a graph",
        ),
    ],
)
def test_networkx_errors(make, message):
    with pytest.raises(InputError, match=message):
        make()


def pixels(figure):
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba()).copy()


@pytest.mark.parametrize(
    ("topology", "n"),
    [(Ring(), 3), (Grid(), 12), (ErdosRenyi(0.3), 12), (ErdosRenyi(0.1), 80), (ExponentialDirected(), 8)],
)
def test_pictures_are_deterministic_and_show_values(topology, n):
    graph = topology.mixing(n, 0, 0).graph
    first = pixels(draw(graph, None, "a graph"))
    assert (first == pixels(draw(graph, None, "a graph"))).all()
    values = np.arange(n) / n
    figure = draw(graph, values, "a graph", "label skew")
    assert (first != pixels(figure)).any()
    assert [axes.get_ylabel() for axes in figure.axes[1:]] == ["label skew"]
    shown = figure.axes[0].collections[-1].get_array() if n > 40 else None
    assert shown is None or shown.tolist() == values.tolist()


def test_positions_that_are_no_points_are_not_used():
    graph = nx.path_graph(4)
    nx.set_node_attributes(graph, "here", "pos")
    plain = pixels(draw(nx.path_graph(4), None, "path"))
    assert (pixels(draw(graph, None, "path")) == plain).all()


def test_equal_values_are_in_the_title_and_nodes_are_numbered():
    figure = draw(Ring().mixing(5, 0, 0).graph, None, "ring of 5")
    assert figure.axes[0].get_title() == "ring of 5\ndegree of every node: 2"
    assert [t.get_text() for t in figure.axes[0].texts] == list("01234")
    assert len(figure.axes) == 1
    assert len(draw(Star().mixing(60, 0, 0).graph, None, "star").axes[0].texts) == 0
    assert len(draw(Barbell().mixing(10, 0, 0).graph, None, "barbell").axes) == 2
