"""Graphs of files: what a file says, its nodes in an order that everybody would expect, and nothing guessed.

Labels that are all numbers are numbers, others are text, in which numbers count as such: n2 comes before n10.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any, NoReturn
from xml.etree import ElementTree

from fedsim.errors import InputError
from fedsim.ground.later import networkx as nx
from fedsim.topology.graphs import connected

TEXTS = ("", ".txt", ".csv", ".tsv", ".edges", ".edgelist", ".dat")
"""Endings of files with one edge a line."""
NODES = re.compile(r"(source|target|from|to|src|dst|sender|receiver|(from_?|to_?)?node_?(id|[12ab])?|[uvij])", re.I)
WEIGHTS = re.compile(r"(weight|w|w_?ij|value)", re.I)
"""What the columns of a text are called, and a GraphML file's key for the weights of edges."""
LABEL = re.compile(r"[+-]?\.?\w([\w./:@+-]*\w)?\.?")
"""What names a node; neither ``->``, nor a bracket, nor a colon that belongs to a list of neighbours."""

SHOWN = 12
"""Labels that a message names; provenance.json has all."""


def read_graph(path: Path, *, directed: bool) -> nx.Graph:
    """The graph of a GraphML file or of a text with one edge a line; labels as numbers where all are.

    Raises:
        InputError: the file cannot be read, or not in one way only; one line, with the number of the file's line.
    """
    if path.suffix.lower() == ".graphml":
        return relabelled(_graphml(path))
    if path.suffix.lower() not in TEXTS:
        kinds = f"GraphML (*.graphml) or a text with one edge a line ({', '.join(TEXTS[1:])})"
        raise InputError(f"path must be {kinds}, got {str(path)!r}; write the graph as one of them")
    return _edge_list(path, directed)


def numbered(graph: nx.Graph, what: str) -> nx.Graph:
    """The graph on 0..n-1 in the order of its labels, which are its attribute ``labels`` unless they are 0..n-1.

    Raises:
        InputError: it is not connected, or has self loops.
    """
    if len(graph) < 2:
        raise InputError(f"{what} must have at least two nodes, got {len(graph)}")
    loops = list(nx.nodes_with_selfloops(graph))
    if loops:
        must = "must not have self loops (what is left of a row goes on the diagonal)"
        raise InputError(f"{what} {must}, got {str(loops[0])!r}")
    if not connected(graph):
        parts = nx.number_strongly_connected_components if graph.is_directed() else nx.number_connected_components
        kind = "strongly connected" if graph.is_directed() else "connected"
        raise InputError(f"{what} must be {kind}, got {parts(graph)} components")
    order = ascending(list(graph))
    done = nx.empty_graph(len(order), create_using=nx.DiGraph if graph.is_directed() else nx.Graph)
    ids = {label: i for i, label in enumerate(order)}
    done.add_nodes_from((ids[label], data) for label, data in graph.nodes(data=True))
    done.add_edges_from((ids[a], ids[b], data) for a, b, data in graph.edges(data=True))
    labels = tuple(map(str, order))
    if labels != tuple(map(str, range(len(order)))):
        done.graph["labels"] = labels
    return done


def order_of(graph: nx.Graph) -> tuple[str, ...]:
    """A sentence for the user that says which client is which node, where the graph has labels other than 0..n-1."""
    labels: tuple[str, ...] = graph.graph.get("labels", ())
    shown = ", ".join(labels[:SHOWN]) + (", ..." if len(labels) > SHOWN else "")
    return (f"topology: clients 0..{len(labels) - 1} are the graph's nodes {shown}, in this order",) if labels else ()


def ascending(labels: list[Any]) -> list[Any]:
    """Numbers and tuples as they compare; else as text in which numbers count as numbers."""
    numbers = {label: number for label in labels if (number := _number(str(label))) is not None}
    if len(numbers) == len(labels):
        return sorted(labels, key=numbers.__getitem__)
    try:
        if all(isinstance(label, tuple) for label in labels):
            return sorted(labels)
    except TypeError:  # tuples of numbers and text
        pass
    return sorted(labels, key=lambda label: (_natural(str(label)), str(label)))


def _natural(text: str) -> list[tuple[int, int, str]]:
    """A key by which n2 comes before n10: text and numbers in turn."""
    parts = re.split(r"([0-9]+)", text)
    return [(0, int(part), "") if i % 2 else (1, 0, part) for i, part in enumerate(parts) if part]


def relabelled(graph: nx.Graph) -> nx.Graph:
    """The graph with numbers for labels if all are numbers.

    Raises:
        InputError: two labels are the same number, such as 1 and 01.
    """
    numbers = {label: _number(str(label)) for label in graph}
    if None in numbers.values():
        return graph
    seen: dict[Any, Any] = {}
    for label, number in numbers.items():
        if number in seen:
            raise InputError(f"path: labels must be different numbers, got {seen[number]!r} and {label!r}")
        seen[number] = label
    return nx.relabel_nodes(graph, numbers)


def _number(text: str) -> int | float | None:
    """A whole number as an int, another number as a float, else None."""
    if re.fullmatch(r"[+-]?[0-9]+", text):
        return int(text)
    if not re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?", text):
        return None
    value = float(text)
    if not math.isfinite(value):
        return None
    return int(value) if value.is_integer() else value


def _graphml(path: Path) -> nx.Graph:
    """The graph of a GraphML file, the weight of each edge in its attribute ``weight`` as a number > 0."""
    try:
        tags = [element.tag.rpartition("}")[2] for element in ElementTree.parse(path).iter()]
        graph = nx.read_graphml(path)
    except Exception as error:  # networkx passes on whatever its XML parser raises
        _unreadable(path, error)
    if graph.is_multigraph():
        raise InputError(f"path must name each edge once, got {str(path)!r}")
    if tags.count("graph") > 1:
        raise InputError(f"path must hold one graph, got {tags.count('graph')} in {str(path)!r}; write each to a file")
    default = graph.graph.get("edge_default", {})  # what edges that say nothing have; networkx leaves it to us
    for a, b, data in graph.edges(data=True):
        where = f"path: the edge of {a} and {b} in {path}"
        given = {name: value for name, value in (default | data).items() if WEIGHTS.fullmatch(name)}
        if len(given) > 1:
            raise InputError(f"{where} must have one weight, got {' and '.join(sorted(given))}; leave out the others")
        for value in given.values():
            data["weight"] = _weight(str(float(value) if isinstance(value, bool) else value), where)
    return graph


def _edge_list(path: Path, directed: bool) -> nx.Graph:
    """The graph of a text with one edge a line."""
    lines = _lines(path)
    if _headed(lines, path):
        del lines[0]
    graph = nx.DiGraph() if directed else nx.Graph()
    for number, words in lines:
        where = f"path: line {number} of {path}"
        line = " ".join(words)
        if len(words) not in (2, 3) or len(words) != len(lines[0][1]) or not all(len(w.split()) == 1 for w in words):
            raise InputError(f"{where} must hold two labels, and a weight if all lines do, got {line!r}")
        if any(set(word) & set("#%") for word in words):
            raise InputError(f"{where} must have a blank before a comment, and no # or % in labels, got {line!r}")
        if not all(LABEL.fullmatch(word) and not re.search(r"--|\+\+", word) for word in words[:2]):
            must = "hold two labels without signs such as -> or brackets around them"
            raise InputError(f"{where} must {must}, got {line!r}; write one edge as: 0 1")
        if any(isinstance(_number(word), float) for word in words[:2]):
            must = "hold whole numbers or names as labels"
            raise InputError(f"{where} must {must}, got {line!r}; write one edge as: 0 1, or 0 1 0.5 with its weight")
        if graph.has_edge(*words[:2]):
            raise InputError(f"{where} must name an edge that no line before names, got {line!r}")
        graph.add_edge(*words[:2], **({"weight": _weight(words[2], where)} if len(words) == 3 else {}))
    graph = relabelled(graph)
    _only_edges(lines, path)
    return graph


def _only_edges(lines: list[tuple[int, list[str]]], path: Path) -> None:
    """Raise InputError where lines of labels may say something else: other columns, or how much there is of what."""
    if not lines:
        return
    (number, first), rest = lines[0], lines[1:]
    named = [_number(word) is None for word in first[:2]]
    if named[0] != named[1] and all([_number(word) is None for word in words[:2]] == named for _, words in rest):
        got = f"{' '.join(first)!r}; leave out what is no label, or begin the numbers' labels with a letter"
        raise InputError(f"path: line {number} of {path} must hold two labels of one kind, got {got}")
    nodes = {_number(word) for _, words in rest for word in words[:2]}
    n, m = len(nodes), len(rest)
    counted = n > 0 and nodes in (set(range(n)), set(range(1, n + 1)))
    if counted and [_number(word) for word in first[:2]] in ([n, m], [m, n]):
        do = "begin it with # if it is none, or move it to the end if it is an edge"
        must = "be an edge for certain, not the numbers of nodes and edges"
        raise InputError(f"path: line {number} of {path} must {must}, got {' '.join(first)!r}; {do}")


def _lines(path: Path) -> list[tuple[int, list[str]]]:
    """The words of each line that has any, with its number; comments begin with # or %, at the start or after a blank.

    A byte-order mark says how the text is encoded and is not part of it; without one it is UTF-8.
    """
    try:
        data = path.read_bytes()
        wide = data.startswith((b"\xff\xfe", b"\xfe\xff"))
        text = data.decode("utf-16" if wide else "utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        _unreadable(path, error)
    if "\0" in text:
        _unreadable(path, ValueError("it is not text"))
    if text.startswith("%%MatrixMarket"):
        raise InputError(
            f"path must be GraphML or a text with one edge a line, got Matrix Market in {str(path)!r}; write its edges"
        )
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        line = re.split(r"(?:^|\s)[#%]", line, maxsplit=1)[0].strip()
        mark = next((mark for mark in ";," if mark in line), None)
        words = line.split(mark) if mark else line.split()
        if words:
            found.append((number, [word.strip().strip('"') for word in words]))
    return found


def _headed(lines: list[tuple[int, list[str]]], path: Path) -> bool:
    """Whether the first line names the columns: no number in it, and its labels nowhere else.

    Raises:
        InputError: among edges of numbers, it names columns that may be anything.
    """
    if len(lines) < 2:
        return False
    (number, first), *rest = lines
    others = {word for _, words in rest for word in words[:2]}
    if "" in first or any(_number(word) is not None for word in first) or others & set(first[:2]):
        return False
    if all(NODES.fullmatch(word) for word in first[:2]) and all(WEIGHTS.fullmatch(word) for word in first[2:]):
        return True
    if all(_number(word) is not None for word in others):
        must = "be an edge like the others, or call the columns source, target and, where there is one, weight"
        raise InputError(f"path: line {number} of {path} must {must}, got {' '.join(first)!r}")
    return False  # an edge


def _weight(word: str, where: str) -> float:
    try:
        weight = float(word)
    except ValueError as error:
        raise InputError(f"{where} must have a number as its weight, got {word!r}") from error
    return _positive(weight, where)


def _positive(weight: float, where: str) -> float:
    """The weight, if it is one: with a weight of zero, a graph in pieces would be called connected."""
    if not (math.isfinite(weight) and weight > 0):
        raise InputError(f"{where} must have a finite weight > 0, got {weight:g}; leave out edges that do not exist")
    return weight


def _unreadable(path: Path, error: Exception) -> NoReturn:
    why = " ".join(str(error).split())
    raise InputError(f"path must be a readable graph file, got {str(path)!r} ({why})") from error
