"""Random graphs, addressed by (seed, round): Erdos-Renyi, regular, small world, preferential attachment, geometric."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import combinations
from typing import ClassVar

import numpy as np

from fedsim.errors import require
from fedsim.ground.later import networkx as nx
from fedsim.topology.graphs import RandomGraph, placed, require_peers


@dataclass(frozen=True)
class ErdosRenyi(RandomGraph):
    """Every pair of peers is an edge with probability p, independently.

    Attributes:
        p: probability of an edge, in (0, 1]; connected with high probability above ln(n) / n.
    """

    more_edges: ClassVar[str] = "raise topology.p"

    p: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.p <= 1, "p", "be in (0, 1]", self.p)

    def sample(self, n: int, rng: np.random.Generator) -> nx.Graph:
        """G(n, p)."""
        require_peers(n, 2, "erdos_renyi")
        return nx.complete_graph(n) if self.p == 1 else nx.fast_gnp_random_graph(n, self.p, seed=rng)


@dataclass(frozen=True)
class RandomRegular(RandomGraph):
    """Every peer has the same number of random neighbours, by default others in every round.

    Attributes:
        degree: neighbours of a peer, in 1..n-1, even if n is odd.
    """

    more_edges: ClassVar[str] = "raise topology.degree"

    degree: int
    fresh: bool = field(default=True, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.degree >= 1, "degree", "be >= 1", self.degree)

    def sample(self, n: int, rng: np.random.Generator) -> nx.Graph:
        """A random regular graph; above n/2 neighbours, the complement of one."""
        require(self.degree < n, "topology.degree", f"be < the {n} clients", self.degree)
        require(n * self.degree % 2 == 0, "topology.degree", f"be even for {n} clients, an odd number", self.degree)
        sparse = 2 * self.degree < n
        graph = nx.empty_graph(n)
        graph.add_edges_from(_regular(n, self.degree if sparse else n - 1 - self.degree, rng))
        return graph if sparse else nx.complement(graph)


@dataclass(frozen=True)
class SmallWorld(RandomGraph):
    """A ring with its nearest neighbours, some edges rewired to random peers (Watts and Strogatz, Nature 1998).

    Attributes:
        neighbours: of a peer before rewiring, even, in 2..n-1.
        p: probability of an edge to be rewired, in [0, 1].
    """

    more_edges: ClassVar[str] = "raise topology.neighbours"

    neighbours: int = 4
    p: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        even = self.neighbours >= 2 and self.neighbours % 2 == 0
        require(even, "neighbours", "be an even number >= 2", self.neighbours)
        require(0 <= self.p <= 1, "p", "be in [0, 1]", self.p)

    def sample(self, n: int, rng: np.random.Generator) -> nx.Graph:
        """A Watts-Strogatz graph."""
        require(self.neighbours < n, "topology.neighbours", f"be < the {n} clients", self.neighbours)
        return nx.watts_strogatz_graph(n, self.neighbours, self.p, seed=rng)


@dataclass(frozen=True)
class BarabasiAlbert(RandomGraph):
    """Peers join one by one and attach to earlier ones in proportion to their degrees (Science 1999).

    Attributes:
        edges: of a peer that joins, in 1..n-1.
    """

    more_edges: ClassVar[str] = "raise topology.edges"

    edges: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.edges >= 1, "edges", "be >= 1", self.edges)

    def sample(self, n: int, rng: np.random.Generator) -> nx.Graph:
        """A graph of preferential attachment, always connected."""
        require_peers(n, 2, "barabasi_albert")
        require(self.edges < n, "topology.edges", f"be < the {n} clients", self.edges)
        return nx.barabasi_albert_graph(n, self.edges, seed=rng)


@dataclass(frozen=True)
class RandomGeometric(RandomGraph):
    """Peers at random in the unit square, with all those in reach.

    Attributes:
        radius: reach, > 0; connected with high probability above sqrt(ln(n) / (pi n)).
    """

    more_edges: ClassVar[str] = "raise topology.radius"

    radius: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.radius > 0, "radius", "be > 0", self.radius)

    def sample(self, n: int, rng: np.random.Generator) -> nx.Graph:
        """A geometric graph with the positions of its nodes."""
        require_peers(n, 2, "random_geometric")
        positions = rng.random((n, 2))
        return nx.random_geometric_graph(n, self.radius, pos=dict(enumerate(positions.tolist())))


@dataclass(frozen=True)
class Bipartite(RandomGraph):
    """Two sides: every pair across is an edge with probability p, none within a side.

    Attributes:
        left: peers 0..left-1 are one side, in 1..n-1; None: n // 2.
        p: probability of an edge, in (0, 1]; 1: the complete bipartite graph.
    """

    more_edges: ClassVar[str] = "raise topology.p"

    left: int | None = None
    p: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.left is None or self.left >= 1, "left", "be >= 1", self.left)
        require(0 < self.p <= 1, "p", "be in (0, 1]", self.p)

    def sample(self, n: int, rng: np.random.Generator) -> nx.Graph:
        """A bipartite graph, the two sides in two columns of its picture."""
        require_peers(n, 2, "bipartite")
        left = n // 2 if self.left is None else self.left
        require(left < n, "topology.left", f"be < the {n} clients", left)
        graph = nx.empty_graph(n)
        pairs = np.argwhere(rng.random((left, n - left)) < self.p) + np.array([0, left])
        graph.add_edges_from(pairs.tolist())
        height = np.concatenate([np.arange(left) / left, np.arange(n - left) / (n - left)])
        return placed(graph, np.stack([np.arange(n) >= left, -height], axis=1) * [1.4, 1.0])


def _regular(n: int, degree: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    """The pairs of a random regular graph, ascending; all graphs have nearly one probability once n >> degree^3.

    Steger and Wormald, Generating random regular graphs quickly, Combinatorics, Probability and Computing 1999: two
    random stubs make a pair unless it is a loop or a pair already; a dead end starts anew. One pair at a time: the
    pairing in batches of ``networkx.random_regular_graph`` is slower and makes a fifth more triangles.
    """
    uniform = _uniforms(rng)
    while True:
        stubs, pairs, refused = [node for node in range(n) for _ in range(degree)], set[tuple[int, int]](), 0
        # After some refusals in a row the stubs left may allow no pair at all; looking that up each time would be slow.
        while stubs and (refused < 20 or _open(set(stubs), pairs)):
            low, high = sorted((int(next(uniform) * len(stubs)), int(next(uniform) * len(stubs))))
            pair = (min(stubs[low], stubs[high]), max(stubs[low], stubs[high]))
            if pair[0] == pair[1] or pair in pairs:
                refused += 1
                continue
            pairs.add(pair)
            refused = 0
            for place in (high, low):
                stubs[place] = stubs[-1]
                stubs.pop()
        if not stubs:
            return sorted(pairs)


def _uniforms(rng: np.random.Generator) -> Iterator[float]:
    """Uniform numbers in [0, 1) without end."""
    while True:
        yield from rng.random(4096).tolist()


def _open(nodes: set[int], pairs: set[tuple[int, int]]) -> bool:
    """Whether two of the nodes are no pair yet."""
    return any(pair not in pairs for pair in combinations(sorted(nodes), 2))
