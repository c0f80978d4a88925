"""Graphs from elsewhere: an edge list or GraphML file, any generator of networkx."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from pathlib import Path as FilePath
from typing import Any

from fedsim.errors import InputError, first_line, require
from fedsim.fields import hints_of
from fedsim.ground.later import networkx as nx
from fedsim.topology.graphs import WeightedGraph, first_connected
from fedsim.topology.mixing import Mixing
from fedsim.topology.reading import numbered, read_graph
from fedsim.topology.weights import weigh

_RESERVED = ("backend", "backend_kwargs", "create_using")  # arguments of generators that are not numbers of a graph


@dataclass(frozen=True, kw_only=True)
class File(WeightedGraph):
    """The graph of a file; its labels in ascending order are clients 0..n-1: as numbers if all are, else n2 before n10.

    A run says which client is which node, and provenance.json lists it, where labels are not 0..n-1.

    Attributes:
        path: a GraphML file (``*.graphml``), or text (UTF-8, or UTF-16 with its mark; ``.txt``, ``.csv``, ``.tsv``,
            ``.edges``, ``.edgelist``, ``.dat`` or no ending) with one edge a line: two labels without blanks and, if
            all lines have it, a weight > 0, separated by blanks, a comma or a semicolon. ``#`` or ``%``, at the start
            or after a blank, begins a comment; a first line ``source target weight`` is skipped. Labels are whole
            numbers or names; a first line that may be the numbers of nodes and edges is refused.
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
        graph = read_graph(FilePath(self.path).expanduser(), directed=self.directed)
        return numbered(graph, f"path: the graph of {self.path}")

    def mixing(self, n: int, index: int, seed: int) -> Mixing:
        """The same W in every round."""
        _require_size(self.graph, n, "topology.path", "hold a graph")
        return weigh(self.graph, self.weights, period=1)


@dataclass(frozen=True, kw_only=True)
class Networkx(WeightedGraph):
    """The graph of any networkx generator; drawn again until it is connected if the generator takes a seed.

    Attributes:
        generator: dotted path of a generator or reader of networkx, such as ``networkx.circulant_graph``, or of a
            function of yours that takes ``n`` or is annotated to return a ``networkx.Graph``; no other is called.
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
                raise InputError(
                    f"topology.options must suit {self.generator}, got {options} ({first_line(error)})"
                ) from error
            must = "return a graph (networkx.Graph or DiGraph without parallel edges)"
            good = isinstance(graph, nx.Graph) and not graph.is_multigraph()
            require(good, "topology.generator", must, self.generator)
            _require_size(graph, n, "topology.options", f"make {self.generator} return a graph")
            return graph

        if "seed" in takes and "seed" not in options:
            found = first_connected(lambda rng: sample(seed=rng), seed, at, self.attempts, "change topology.options")
        else:
            found = sample()
        graph = numbered(found, f"topology.generator: the graph of {self.generator}")
        return weigh(graph, self.weights, period=None if self.fresh else 1)

    def _function(self) -> Callable[..., Any]:
        module, _, name = self.generator.rpartition(".")
        try:
            found = getattr(import_module(module), name, None) if module else None
        except (ImportError, ValueError):
            found = None
        require(callable(found), "generator", "be the dotted path of a function", self.generator)
        must = "be a generator of networkx, or a function that takes n or is annotated to return a networkx.Graph"
        require(_draws_graphs(found), "generator", must, self.generator)
        return found  # type: ignore[return-value]


def _draws_graphs(function: Any) -> bool:
    """Whether it is known, before it is called, to make graphs: ``os.system`` is a function too."""
    home = str(getattr(function, "__module__", ""))
    if home.startswith("networkx.generators.") or (home.startswith("networkx.readwrite.") and _reads(function)):
        return True
    if not inspect.isfunction(function):
        return False
    returned = hints_of(function).get("return")
    if returned is None:
        return "n" in inspect.signature(function).parameters
    return inspect.isclass(returned) and issubclass(returned, nx.Graph)


def _reads(function: Any) -> bool:
    return str(getattr(function, "__name__", "")).startswith("read_")


def _require_size(graph: nx.Graph, n: int, key: str, must: str) -> None:
    do = "choose another graph or partition.clients"
    require(len(graph) == n, key, f"{must} with a node for each of the {n} clients", len(graph), do)
