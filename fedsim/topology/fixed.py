"""Graphs that follow from the number of peers: ring, path, star, complete, grids, hypercube, exponential, barbell."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fedsim.errors import require
from fedsim.ground.later import networkx as nx
from fedsim.topology.graphs import FixedGraph, circle, placed, require_peers


@dataclass(frozen=True)
class Ring(FixedGraph):
    """A ring: peer i is joined to i - 1 and i + 1; with Metropolis weights lambda = 1/3 + 2/3 cos(2 pi / n).

    >>> (3 * Ring().mixing(4, index=0, seed=0).w.toarray()).round().astype(int).tolist()
    [[1, 1, 0, 1], [1, 1, 1, 0], [0, 1, 1, 1], [1, 0, 1, 1]]
    """

    def graph(self, n: int) -> nx.Graph:
        """The cycle of n >= 3 peers."""
        require_peers(n, 3, "ring")
        return placed(nx.cycle_graph(n), circle(n))


@dataclass(frozen=True)
class Path(FixedGraph):
    """A path: peer i is joined to i - 1 and i + 1, and the first peer not to the last."""

    def graph(self, n: int) -> nx.Graph:
        """The path of n >= 2 peers."""
        require_peers(n, 2, "path")
        return placed(nx.path_graph(n), circle(n, share=0.9))


@dataclass(frozen=True)
class Star(FixedGraph):
    """A star: peer 0 is joined to every other, and no others to each other."""

    def graph(self, n: int) -> nx.Graph:
        """The star of n >= 2 peers."""
        require_peers(n, 2, "star")
        return placed(nx.star_graph(n - 1), np.concatenate([np.zeros((1, 2)), circle(n - 1)]))


@dataclass(frozen=True)
class Complete(FixedGraph):
    """Every peer is joined to every other; with Metropolis weights W = 11^T/n."""

    def graph(self, n: int) -> nx.Graph:
        """The complete graph of n >= 2 peers."""
        require_peers(n, 2, "complete")
        return placed(nx.complete_graph(n), circle(n))


@dataclass(frozen=True)
class Grid(FixedGraph):
    """A rectangle of peers, each with its up to four neighbours, without wrapping around.

    Attributes:
        rows: a divisor of the number of peers, >= 1; None: the largest one that is at most its square root.
    """

    rows: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.rows is None or self.rows >= 1, "rows", "be >= 1", self.rows)

    def graph(self, n: int) -> nx.Graph:
        """The grid, row by row."""
        rows = _rows(n, self.rows, "grid")
        graph = nx.convert_node_labels_to_integers(nx.grid_2d_graph(rows, n // rows), ordering="sorted")
        return placed(graph, np.stack([np.arange(n) % (n // rows), -(np.arange(n) // (n // rows))], axis=1) * 1.0)


@dataclass(frozen=True)
class Torus(FixedGraph):
    """A rectangle of peers, each with its four neighbours, wrapping around in both directions.

    Attributes:
        rows: a divisor of the number of peers, >= 1; None: the largest one that is at most its square root.
    """

    rows: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.rows is None or self.rows >= 1, "rows", "be >= 1", self.rows)

    def graph(self, n: int) -> nx.Graph:
        """The torus, row by row."""
        rows = _rows(n, self.rows, "torus")
        grid = nx.grid_2d_graph(rows, n // rows, periodic=True)
        grid.remove_edges_from(list(nx.selfloop_edges(grid)))  # a row or column of one peer
        graph = nx.convert_node_labels_to_integers(grid, ordering="sorted")
        return placed(graph, _bowed(rows, n // rows))


@dataclass(frozen=True)
class Hypercube(FixedGraph):
    """Peers whose binary numbers differ in one digit; with Metropolis weights lambda = 1 - 2 / (1 + log2 n)."""

    def graph(self, n: int) -> nx.Graph:
        """The hypercube of n = 2, 4, 8, ... peers."""
        require(n >= 2 and n & (n - 1) == 0, "partition.clients", "be a power of two for topology=hypercube", n)
        graph = nx.empty_graph(n)
        axes = n.bit_length() - 1
        graph.add_edges_from((i, i ^ (1 << k)) for i in range(n) for k in range(axes))
        turn = np.pi * (np.arange(axes) + 0.35) / axes
        sides = np.stack([np.cos(turn), np.sin(turn)], axis=1) / (1 + 0.25 * np.arange(axes)[:, None])
        return placed(graph, (np.arange(n)[:, None] >> np.arange(axes) & 1) @ sides)


@dataclass(frozen=True)
class Exponential(FixedGraph):
    """Peer i is joined to i - 2^k and i + 2^k modulo n, for all 2^k < n: the undirected exponential graph."""

    def graph(self, n: int) -> nx.Graph:
        """The circulant graph of n >= 2 peers with the powers of two as offsets."""
        require_peers(n, 2, "exponential")
        return placed(nx.circulant_graph(n, _powers(n)), circle(n))


@dataclass(frozen=True)
class Barbell(FixedGraph):
    """Two complete graphs of equal size joined by a path: the worst common case for equal rates.

    Attributes:
        bridge: peers on the path between them, >= 0; None: n mod 2.
    """

    bridge: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.bridge is None or self.bridge >= 0, "bridge", "be >= 0", self.bridge)

    def graph(self, n: int) -> nx.Graph:
        """The barbell, the path between the two in the order of ids."""
        bridge = n % 2 if self.bridge is None else self.bridge
        require_peers(n, 4 + bridge, "barbell")
        odd = (n - bridge) % 2
        require(not odd, "topology.bridge", f"leave an even number of the {n} clients", bridge, "or leave it null")
        side = (n - bridge) // 2
        ends = circle(side) @ np.array([[0.0, 1.0], [1.0, 0.0]])  # node 0 of a circle points along the path
        along = np.linspace(-1.0, 1.0, bridge + 2)[1:-1, None] * [1.0, 0.0]
        left, right = np.roll(ends, -1, axis=0) - [2.0, 0.0], ends * [-1.0, 1.0] + [2.0, 0.0]
        graph = nx.barbell_graph(side, 0)  # nodes 0..side-1 and side..2 side-1, joined by the edge (side-1, side)
        if bridge:
            graph.remove_edge(side - 1, side)
            names = {i: i if i < side else i + bridge for i in graph}
            graph = nx.relabel_nodes(graph, names)
            nx.add_path(graph, range(side - 1, side + bridge + 1))
        return placed(graph, np.concatenate([left, along, right]))


def _bowed(rows: int, columns: int) -> np.ndarray:
    """A rectangle of points [rows columns, 2] whose lines are bent, so that an edge from end to end shows."""
    row, column = (index.ravel().astype(np.float64) for index in np.indices((rows, columns)))

    def bow(along: np.ndarray, count: int) -> np.ndarray:
        arc: np.ndarray = (0.3 + 0.05 * count) * (1 - (2 * along / max(1, count - 1) - 1) ** 2)
        return arc

    return np.stack([column + bow(row, rows), -row + bow(column, columns)], axis=1)


def _powers(n: int) -> list[int]:
    """1, 2, 4, ... below n."""
    return [1 << k for k in range((n - 1).bit_length())]


def _rows(n: int, rows: int | None, topology: str) -> int:
    """The rows of a rectangle of n peers."""
    if rows is not None:
        require(rows >= 1 and n % rows == 0, "topology.rows", f"divide the {n} clients", rows)
        require_peers(n, 2, topology)
        return rows
    largest = max(d for d in range(1, math.isqrt(max(1, n)) + 1) if max(1, n) % d == 0)
    do = "or set topology.rows=1 for a single row"
    require(largest >= 2, "partition.clients", f"be a product of two numbers >= 2 for topology={topology}", n, do)
    return largest
