"""Graphs from elsewhere: an edge list or GraphML file, any generator of networkx."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from pathlib import Path as FilePath
from typing import Any

import networkx as nx

from fedsim.errors import InputError, require
from fedsim.topology.base import Weighted, connected, draw
from fedsim.topology.mixing import Mixing
from fedsim.topology.weights import weigh

_RESERVED = ("backend", "backend_kwargs", "create_using")  # arguments of generators that are not numbers of a graph


@dataclass(frozen=True, kw_only=True)
class File(Weighted):
    """The graph of a file; its labels in ascending order are clients 0..n-1 (as numbers if all are whole numbers).

    Attributes:
        path: a GraphML file (``*.graphml``), or text with one edge a line: two labels and, if all lines have it, a
            weight, separated by blanks or a comma; ``#`` starts a comment.
        directed: whether the lines of a text are arcs (sender, receiver); a GraphML file says so itself.
        weights: ``given`` takes those of the file: w_ij of edge (i, j), the rest of each row on the diagonal.
    """

    path: str
    directed: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.graph  # a file that cannot be read is an error at construction

    @cached_property
    def graph(self) -> nx.Graph:
        """The file's graph on 0..n-1; read once."""
        path = FilePath(self.path).expanduser()
        try:
            graph = nx.read_graphml(path) if path.suffix == ".graphml" else _edge_list(path, self.directed)
        except InputError:
            raise
        except Exception as error:  # networkx passes on whatever its XML parser raises
            raise InputError(f"path must be a readable graph file, got {self.path!r} ({error})") from error
        require(not graph.is_multigraph(), "path", "name each edge once", self.path)
        return _numbered(graph, f"path: the graph of {self.path}")

    def mixing(self, n: int, index: int, seed: int) -> Mixing:
        """The same W in every round."""
        _require_size(self.graph, n, "topology.path", "hold a graph")
        return weigh(self.graph, self.weights, period=1)


@dataclass(frozen=True, kw_only=True)
class Networkx(Weighted):
    """The graph of any networkx generator; drawn again until it is connected if the generator takes a seed.

    Attributes:
        generator: dotted path of a function that returns a graph, such as ``networkx.circulant_graph``.
        options: its arguments; ``n`` (the number of peers) and ``seed`` are passed if it takes them and they are not
            given here.
        fresh: a graph of its own for every round, for generators that take a seed; false: that of round 0.
        attempts: number of draws before giving up, >= 1.
    """

    generator: str
    options: Mapping[str, Any] = field(default_factory=dict)
    fresh: bool = False
    attempts: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.attempts >= 1, "attempts", "be >= 1", self.attempts)
        known = [name for name in inspect.signature(self._function()).parameters if name not in _RESERVED]
        for key in self.options:
            require(key in known, "options", f"be among {', '.join(known)} for {self.generator}", key)
        seeded = "seed" in known and "seed" not in self.options
        require(seeded or not self.fresh, "fresh", f"be false, for {self.generator} is not random", self.fresh)

    def mixing(self, n: int, index: int, seed: int) -> Mixing:
        """The W of round ``index``, or of round 0 unless ``fresh``."""
        function, at = self._function(), index if self.fresh else 0
        takes = inspect.signature(function).parameters
        options = {**({"n": n} if "n" in takes else {}), **self.options}

        def sample(**more: Any) -> nx.Graph:
            try:
                graph = function(**options, **more)
            except (nx.NetworkXException, TypeError, ValueError) as error:
                raise InputError(f"topology.options must suit {self.generator}, got {options} ({error})") from error
            must = "return a graph (networkx.Graph or DiGraph without parallel edges)"
            good = isinstance(graph, nx.Graph) and not graph.is_multigraph()
            require(good, "topology.generator", must, self.generator)
            _require_size(graph, n, "topology.options", f"make {self.generator} return a graph")
            return graph

        if "seed" in takes and "seed" not in options:
            found = draw(lambda rng: sample(seed=rng), seed, at, self.attempts, "change topology.options")
        else:
            found = sample()
        graph = _numbered(found, f"topology.generator: the graph of {self.generator}")
        return weigh(graph, self.weights, period=None if self.fresh else 1)

    def _function(self) -> Callable[..., Any]:
        module, _, name = self.generator.rpartition(".")
        try:
            found = getattr(import_module(module), name, None) if module else None
        except ImportError:
            found = None
        require(callable(found), "generator", "be the dotted path of a function", self.generator)
        return found  # type: ignore[return-value]


def _edge_list(path: FilePath, directed: bool) -> nx.Graph:
    """The graph of a text with one edge a line."""
    graph = nx.DiGraph() if directed else nx.Graph()
    widths: set[int] = set()
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        words = line.split("#")[0].replace(",", " ").split()
        if not words:
            continue
        where = f"path: line {number} of {path}"
        widths.add(len(words))
        if len(words) not in (2, 3) or len(widths) > 1:
            raise InputError(f"{where} must hold two labels, and a weight if all lines do, got {line!r}")
        if graph.has_edge(*words[:2]):
            raise InputError(f"{where} must name an edge that no line before names, got {line!r}")
        graph.add_edge(*words[:2], **({"weight": _weight(words[2], where)} if len(words) == 3 else {}))
    return graph


def _weight(word: str, where: str) -> float:
    try:
        return float(word)
    except ValueError as error:
        raise InputError(f"{where} must have a number as its weight, got {word!r}") from error


def _numbered(graph: nx.Graph, what: str) -> nx.Graph:
    """The graph on 0..n-1 in the order of its labels; an error unless it is a connected graph without self loops."""
    if len(graph) < 2:
        raise InputError(f"{what} must have at least two nodes, got {len(graph)}")
    loops = list(nx.nodes_with_selfloops(graph))
    if loops:
        raise InputError(
            f"{what} must not have self loops (what is left of a row goes on the diagonal), got {loops[0]!r}"
        )
    if not connected(graph):
        parts = nx.number_strongly_connected_components if graph.is_directed() else nx.number_connected_components
        kind = "strongly connected" if graph.is_directed() else "connected"
        raise InputError(f"{what} must be {kind}, got {parts(graph)} components")
    order = _ascending(list(graph))
    numbered = nx.empty_graph(len(order), create_using=nx.DiGraph if graph.is_directed() else nx.Graph)
    ids = {label: i for i, label in enumerate(order)}
    numbered.add_nodes_from((ids[label], data) for label, data in graph.nodes(data=True))
    numbered.add_edges_from((ids[a], ids[b], data) for a, b, data in graph.edges(data=True))
    return numbered


def _ascending(labels: list[Any]) -> list[Any]:
    """Labels as numbers if all are whole numbers, as they compare (tuples), else as text."""
    try:
        return sorted(labels, key=int)
    except (TypeError, ValueError):
        same = len({type(label) for label in labels}) == 1
        return sorted(labels) if same else sorted(labels, key=str)


def _require_size(graph: nx.Graph, n: int, key: str, must: str) -> None:
    do = "choose another graph or partition.clients"
    require(len(graph) == n, key, f"{must} with a node for each of the {n} clients", len(graph), do)
