"""Graphs from files and from networkx, and their pictures."""

from __future__ import annotations

import json

import networkx as nx
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from fedsim import Local, simulate
from fedsim.algorithms.dpsgd import DPSGD
from fedsim.data import Digits
from fedsim.errors import InputError
from fedsim.models import linear
from fedsim.partition import Iid
from fedsim.topology import (
    Barbell,
    ErdosRenyi,
    ExponentialDirected,
    File,
    Grid,
    Networkx,
    Ring,
    Star,
    spectral_gap,
    weigh,
)
from fedsim.topology.figure import draw_graph
from fedsim.topology.reading import ascending, order_of


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
    words = nx.path_graph(2)
    nx.set_edge_attributes(words, "heavy", "weight")
    nx.write_graphml(words, tmp_path / "words.graphml")
    with pytest.raises(InputError, match=r"^path: the edge of 0 and 1 in .* must have a number as its weight"):
        File(path=str(tmp_path / "words.graphml"), weights="given")
    with pytest.raises(InputError, match=r"^path must be a readable graph file, got '.*none.txt'"):
        File(path=str(tmp_path / "none.txt"))
    (tmp_path / "bad.graphml").write_text("<graphml")
    with pytest.raises(InputError, match=r"^path must be a readable graph file"):
        File(path=str(tmp_path / "bad.graphml"))


@pytest.mark.parametrize(
    "data",
    [
        b"0 1\n1 2\n2 3\n",
        b"\xef\xbb\xbf0 1\n1 2\n2 3\n",  # a byte-order mark
        "0 1\r\n1 2\r\n2 3\r\n".encode("utf-16"),  # Notepad's Unicode
        b"0 1\r\n1 2\r\n\r\n2 3",  # Windows line ends, a blank line, none at the end
        b"0 1\r1 2\r2 3\r",
        b"% a comment\n# another\n0 1 % here too\n1 2\t# and here\n2 3\n  \n",
        b"source,target\n0,1\n1,2\n2,3\n",
        b"\xef\xbb\xbfFromNodeId\tToNodeId\r\n0\t1\r\n1\t2\r\n2\t3\r\n",
        b"from;to;weight\n0;1;1\n1;2;0.5\n2;3;2\n",
        b'"source","target"\n"0","1"\n"1","2"\n"2","3"\n',
        b"00 01\n01 2\n2 3\n",
        b"0.000e+00 1.000e+00\n1.000e+00 2.000e+00\n2.000e+00 3.000e+00\n",  # numpy.savetxt
    ],
)
def test_the_same_graph_however_it_is_written(tmp_path, data):
    path = tmp_path / "graph.csv"
    path.write_bytes(data)
    mixing = File(path=str(path)).mixing(4, 0, 0)
    assert mixing.edges.tolist() == [[0, 1], [1, 2], [2, 3]]
    assert order_of(mixing.graph) == ()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("0 1 0\n1 2 1\n", r"line 1 .* must have a finite weight > 0, got 0; leave out"),
        ("0 1 1\n1 2 -1\n", r"line 2 .* must have a finite weight > 0, got -1"),
        ("0 1 nan\n", r"line 1 .* must have a finite weight > 0, got nan"),
        ("0 1 inf\n", r"line 1 .* must have a finite weight > 0, got inf"),
        ("a,b\n1,2\n2,3\n", r"line 1 .* must be an edge like the others, or call the columns source, target"),
        ("index,source,target\n0,1,2\n1,2,3\n", r"line 1 .* must be an edge like the others, or call the columns"),
        (",source,target\n0,1,2\n1,2,3\n", r"line 1 .* must hold two labels"),
        ("0 1 0,5\n1 2 0,5\n", r"line 1 .* must hold two labels"),  # a decimal comma
        ("0;1;0,5\n1;2;0,5\n", r"line 1 .* must have a number as its weight, got '0,5'"),
        ("0,1,\n1,2,\n", r"line 1 .* must hold two labels"),
        ("0 1#2\n1 3\n", r"line 1 .* must have a blank before a comment"),
        ("1 2\n01 3\n", r"labels must be different numbers, got '1' and '01'"),
        ("1 2\n1.0 3\n", r"labels must be different numbers, got '1' and '1.0'"),
        ("%%MatrixMarket matrix coordinate pattern symmetric\n3 3 2\n2 1\n3 2\n", r"got Matrix Market"),
        ("0 1\n1 0\n", r"line 2 .* must name an edge that no line before names"),
        ("alice bob\ncarl dora\n", r"must be connected, got 2 components"),  # no heading
        ("0 1\n1 2\nsource 2\n2\n", r"line 4 .* must hold two labels"),
        *(
            (f"0 {sign} 1\n1 {sign} 2\n", r"line 1 .* must hold two labels")
            for sign in ("->", "--", "-", "=>", ":", "→")
        ),
        *((f"a {sign} 1\nb {sign} 1\n", r"line 1 .* must hold two labels") for sign in ("->", "--", "|", "<->")),
        *(
            (f"a{sign}b 1\nb{sign}c 1\n", r"line 1 .* must hold two labels")
            for sign in ("->", "--", "-", ":", "|", "=")
        ),
        *((f"0{sign}1 0.5\n1{sign}2 0.5\n", r"line 1 .* must hold") for sign in ("->", "--", "-", ":", "|", "=")),
        ("0-1\n1-2\n", r"line 1 .* must hold two labels"),
        ("0: 1\n1: 2\n", r"line 1 .* must hold two labels without"),  # lists of neighbours
        ("0: 1 2\n1: 0 2\n", r"line 1 .* must hold two labels without"),
        ("graph {\na b\n", r"line 1 .* must hold two labels without"),
        ("a -- b;\nb -- c;\n", r"line 1 .* must hold two labels"),  # DOT
        ("[0, 1]\n[1, 2]\n", r"line 1 .* must hold two labels without"),
        ("(0, 1)\n(1, 2)\n", r"line 1 .* must hold two labels without"),
        ('{"0": ["1"], "1": ["2"]}\n', r"line 1 .* must hold two labels"),
        ("1,2;2,3\n2,3;3,4\n", r"line 1 .* must hold two labels without"),  # edges of pairs
        ("*Edges 2\n1 2\n", r"line 1 .* must hold two labels without"),  # Pajek
        ("e 1 2\ne 2 3\n", r"line 1 .* must hold two labels of one kind"),  # DIMACS
        ("0 to 1\n1 to 2\n", r"line 1 .* must hold two labels of one kind"),
        ("0.6 0.2 0.2\n0.2 0.5 0.3\n0.2 0.3 0.5\n", r"line 1 .* must hold whole numbers or names"),  # a matrix
        ("5 4\n0 1\n1 2\n2 3\n3 4\n", r"line 1 .* must be an edge for certain"),
        ("5 4\n1 2\n2 3\n3 4\n5 1\n", r"line 1 .* must be an edge for certain"),
        ("4 5\n1 2\n2 3\n3 4\n5 1\n", r"line 1 .* must be an edge for certain"),
        ("3 3\n0 1\n1 2\n2 0\n", r"line 1 .* must be an edge for certain"),
        ("3 2 1\n0 1 1\n1 2 1\n", r"line 1 .* must be an edge for certain"),
        ("5\t4\n4\t3\n3\t2\n2\t1\n1\t0\n", r"line 1 .* must be an edge for certain"),  # it may be one
    ],
)
def test_what_can_be_read_in_more_ways_is_refused_in_one_line(tmp_path, content, message):
    with pytest.raises(InputError, match="^path: .*" + message + "|^path must .*" + message) as caught:
        text(tmp_path, content)
    assert "\n" not in str(caught.value)


def test_names_may_hold_signs_and_numbers_may_go_down(tmp_path):
    names = text(tmp_path, "host-1.lan:80 host-2.lan:80\nhost-2.lan:80 a@b\n").mixing(3, 0, 0)
    assert names.graph.graph["labels"] == ("a@b", "host-1.lan:80", "host-2.lan:80")
    down = text(tmp_path, "4 3\n3 2\n2 1\n1 0\n0 4\n").mixing(5, 0, 0)  # as a heading it would say three edges
    assert down.edges.tolist() == Ring().mixing(5, 0, 0).edges.tolist()


def graphml(tmp_path, keys, *data, more=""):
    """A path of three nodes with these keys, and data for each edge."""
    edges = "".join(f'<edge source="{i}" target="{i + 1}">{text}</edge>' for i, text in enumerate(data))
    body = f'<graph edgedefault="undirected"><node id="0"/><node id="1"/><node id="2"/>{edges}</graph>{more}'
    path = tmp_path / "g.graphml"
    path.write_text(f'<graphml xmlns="http://graphml.graphdrawing.org/xmlns">{keys}{body}</graphml>')
    return str(path)


def key(name="weight", kind="double", default=None, id_="k"):
    inner = "" if default is None else f"<default>{default}</default>"
    return f'<key id="{id_}" for="edge" attr.name="{name}" attr.type="{kind}">{inner}</key>'


@pytest.mark.parametrize("name", ["weight", "Weight", "WEIGHT", "w", "value"])
@pytest.mark.parametrize("kind", ["double", "float", "int", "long", "string", "boolean"])
@pytest.mark.parametrize("default", [True, False])
def test_the_weight_of_a_graphml_file_however_it_is_written(tmp_path, name, kind, default):
    half, none = {"double": "0.5 0", "float": "0.5 0.0", "string": "0.5 0", "boolean": "true false"}.get(
        kind, "1 0"
    ).split()
    for weight in (half, none):
        given = f'<data key="k">{half}</data>', "" if default else f'<data key="k">{weight}</data>'
        path = graphml(tmp_path, key(name, kind, weight if default else None), *given)
        if weight == none:
            with pytest.raises(InputError, match=r"^path: the edge of 1 and 2 in .* must have a finite weight > 0"):
                File(path=path)
        else:
            want = {"true": 1.0}.get(half) or float(half)
            graph = File(path=path).mixing(3, 0, 0).graph
            assert [weight for _, _, weight in graph.edges(data="weight")] == [want, want]


@pytest.mark.parametrize(
    ("keys", "data", "more", "message"),
    [
        (key(kind="string"), '<data key="k">much</data>', "", "must have a number as its weight, got 'much'"),
        (
            key() + key("value", id_="v"),
            '<data key="k">1</data><data key="v">2</data>',
            "",
            "must have one weight, got value and weight",
        ),
        ("", "", '<graph edgedefault="undirected"/>', "must hold one graph, got 2"),
    ],
)
def test_a_graphml_file_that_says_two_things_is_refused(tmp_path, keys, data, more, message):
    with pytest.raises(InputError, match="^path.*" + message) as caught:
        File(path=graphml(tmp_path, keys, data, data, more=more))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["w.npy", "w.mtx", "g.gml", "g.json", "g.graphml.gz", "g.net"])
def test_other_forms_are_refused_by_name(tmp_path, name):
    (tmp_path / name).write_text("0 1\n1 2\n")
    with pytest.raises(InputError, match=r"^path must be GraphML \(\*.graphml\) or a text .*, got"):
        File(path=str(tmp_path / name))


@pytest.mark.parametrize("data", [b"\x93NUMPY\x01\x00v\x00", b"0 1\n1 \xff\n", "0 1\n1 2\n".encode("utf-16-le")])
def test_what_is_no_text_is_refused(tmp_path, data):
    (tmp_path / "graph.txt").write_bytes(data)
    with pytest.raises(InputError, match=r"^path must be a readable graph file, got '.*graph.txt' \(.*\)$"):
        File(path=str(tmp_path / "graph.txt"))


def test_names_that_end_in_numbers_are_in_their_order_and_the_order_is_said(tmp_path):
    ring = "".join(f"n{i} n{(i + 1) % 12}\n" for i in (10, 2, 11, 0, 1, 3, 5, 4, 7, 6, 9, 8))
    mixing = text(tmp_path, ring).mixing(12, 0, 0)
    assert mixing.edges.tolist() == Ring().mixing(12, 0, 0).edges.tolist()
    (line,) = order_of(mixing.graph)
    assert line == "topology: clients 0..11 are the graph's nodes " + ", ".join(f"n{i}" for i in range(12)) + (
        ", in this order"
    )
    graph = nx.relabel_nodes(nx.cycle_graph(12), lambda i: f"n{i}")
    nx.write_graphml(graph, tmp_path / "ring.graphml")
    assert File(path=str(tmp_path / "ring.graphml")).mixing(12, 0, 0).edges.tolist() == mixing.edges.tolist()
    again = Networkx(generator="networkx.read_graphml", options={"path": str(tmp_path / "ring.graphml")})
    assert again.mixing(12, 0, 0).edges.tolist() == mixing.edges.tolist()
    assert ascending(["b2", "b10", "a", "b1x", "b1"]) == ["a", "b1", "b1x", "b2", "b10"]


def test_numbers_from_one_and_with_gaps_are_said(tmp_path):
    one = text(tmp_path, "1 2\n2 3\n").mixing(3, 0, 0)
    assert one.edges.tolist() == [[0, 1], [1, 2]]
    assert order_of(one.graph) == ("topology: clients 0..2 are the graph's nodes 1, 2, 3, in this order",)
    gap = text(tmp_path, "-1 7\n7 100\n").mixing(3, 0, 0)
    assert gap.graph.graph["labels"] == ("-1", "7", "100")
    many = nx.path_graph(40)
    nx.write_edgelist(nx.relabel_nodes(many, lambda i: i + 1), tmp_path / "many.txt", data=False)
    (line,) = order_of(File(path=str(tmp_path / "many.txt")).mixing(40, 0, 0).graph)
    assert line.endswith("11, 12, ..., in this order")


def test_a_run_says_which_client_is_which_node(tmp_path, capfd):
    path = tmp_path / "graph.txt"
    path.write_text("n1 n2\nn2 n10\nn10 n1\n")
    options = {"partition": Iid(3), "rounds": 1, "local": Local(steps=1), "model": linear}
    simulate(
        DPSGD(lr=0.1),
        data=Digits(),
        topology=File(path=str(path)),
        run_dir=tmp_path / "run",
        progress=True,
        **options,
    )
    assert json.loads((tmp_path / "run/provenance.json").read_text())["topology"] == {"nodes": ["n1", "n2", "n10"]}
    assert "clients 0..2 are the graph's nodes n1, n2, n10" in " ".join(capfd.readouterr().err.split())


def test_weights_that_are_none_are_refused_for_every_graph(tmp_path):
    for weight in (0.0, -0.5, float("nan"), float("inf")):
        graph = nx.path_graph(3)
        nx.set_edge_attributes(graph, {(0, 1): 0.5, (1, 2): weight}, "weight")
        nx.write_graphml(graph, tmp_path / "g.graphml")
        for weights in ("given", "metropolis"):
            with pytest.raises(InputError, match=r"^path: the edge of 1 and 2 in .* must have a finite weight > 0"):
                File(path=str(tmp_path / "g.graphml"), weights=weights)
        with pytest.raises(InputError, match=r"^topology.weights=given: the weight of every edge must be finite"):
            weigh(graph, "given", period=1)


def test_a_graph_whose_peers_only_swap_models_is_named(tmp_path):
    swap = text(tmp_path, "0 1 1\n", weights="given").mixing(2, 0, 0)
    assert spectral_gap(swap.w) == pytest.approx(0, abs=1e-12)  # rounding of an SVD
    assert len(swap.warnings) == 1
    assert "spectral gap 0" in swap.warnings[0]
    turn = text(tmp_path, "0 1 1\n1 2 1\n2 0 1\n", weights="given", directed=True).mixing(3, 0, 0)
    assert "spectral gap 0" in turn.warnings[0]
    for n, content in ((2, "0 1 0.5\n"), (3, "0 1 0.5\n1 2 0.5\n0 2 0.5\n")):  # a diagonal; an odd cycle
        assert text(tmp_path, content, weights="given").mixing(n, 0, 0).warnings == ()


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
            lambda: Networkx(generator="networkx.graph_atlas_g").mixing(2, 0, 0),
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
    first = pixels(draw_graph(graph, None, "a graph"))
    assert (first == pixels(draw_graph(graph, None, "a graph"))).all()
    values = np.arange(n) / n
    figure = draw_graph(graph, values, "a graph", "label skew")
    assert (first != pixels(figure)).any()
    assert [axes.get_ylabel() for axes in figure.axes[1:]] == ["label skew"]
    shown = figure.axes[0].collections[-1].get_array() if n > 40 else None
    assert shown is None or shown.tolist() == values.tolist()


def test_positions_that_are_no_points_are_not_used():
    graph = nx.path_graph(4)
    nx.set_node_attributes(graph, "here", "pos")
    plain = pixels(draw_graph(nx.path_graph(4), None, "path"))
    assert (pixels(draw_graph(graph, None, "path")) == plain).all()


def test_equal_values_are_in_the_title_and_nodes_are_numbered():
    figure = draw_graph(Ring().mixing(5, 0, 0).graph, None, "ring of 5")
    assert figure.axes[0].get_title() == "ring of 5\ndegree of every node: 2"
    assert [t.get_text() for t in figure.axes[0].texts] == list("01234")
    assert len(figure.axes) == 1
    assert len(draw_graph(Star().mixing(60, 0, 0).graph, None, "star").axes[0].texts) == 0
    assert len(draw_graph(Barbell().mixing(10, 0, 0).graph, None, "barbell").axes) == 2
