"""Small groups that change from round to round so that a period reaches the exact average."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from fedsim.errors import require
from fedsim.fields import check_fields
from fedsim.ground.later import networkx as nx
from fedsim.topology.graphs import circle, placed, require_peers
from fedsim.topology.mixing import Mixing, checked, matrix


@dataclass(frozen=True)
class BaseKPlus1:
    """Pairs and small groups that change so that a period reaches the exact average, for any number of peers.

    Takezawa et al., Beyond exponential graph: communication-efficient topologies for decentralized learning via
    finite-time convergence, NeurIPS 2023, arXiv 2305.11420: the Base-(k+1) graph (its Algorithm 3, the shorter of
    Algorithms 2 and 3). A period is at most 2 log_{k+1}(n) + 2 rounds, each W symmetric and doubly stochastic.

    Attributes:
        k: most neighbours of a peer in a round, >= 1.
    """

    k: int = 1

    def __post_init__(self) -> None:
        check_fields(self)
        require(self.k >= 1, "k", "be >= 1", self.k)

    def mixing(self, n: int, index: int, seed: int) -> Mixing:
        """The W of round ``index`` modulo the period."""
        require_peers(n, 2, "base_k_plus_1")
        rounds = base_rounds(list(range(n)), self.k)
        pairs = rounds[index % len(rounds)]
        graph = nx.empty_graph(n)
        graph.add_edges_from(pairs)
        off = matrix(n, np.array([*pairs], dtype=np.int64).reshape(-1, 2), np.array([*pairs.values()]), directed=False)
        w = off + sparse.diags(np.maximum(0.0, 1.0 - np.asarray(off.sum(axis=1)).ravel()))
        return checked(placed(graph, circle(n)), w.tocsr(), len(rounds))


Pairs = dict[tuple[int, int], float]  # edges of one round with their weights


def base_rounds(nodes: list[int], k: int) -> list[Pairs]:
    """The rounds of a period of the Base-(k+1) graph.

    With n = p q, where p holds all prime factors <= k + 1: p groups of q nodes average inside by the simple graph,
    then q groups of p nodes, one of each, by the hyper-hypercube; or the simple graph on all, if that is shorter.
    """
    simple, n = simple_rounds(nodes, k), len(nodes)
    smooth, rough = _split(n, k)
    if smooth == 1 or rough == 1:
        return simple
    inside = _parallel([simple_rounds(nodes[g * rough : (g + 1) * rough], k) for g in range(smooth)])
    across = _parallel([hyper_hypercube(nodes[g::rough], k) for g in range(rough)])
    return simple if len(simple) <= len(inside) + len(across) else inside + across


def simple_rounds(nodes: list[int], k: int) -> list[Pairs]:
    """The rounds of the Simple Base-(k+1) graph (Algorithm 2).

    With the digits n = a_1 (k+1)^p_1 + a_2 (k+1)^p_2 + ..., the part V_l has a_l (k+1)^p_l nodes. First every part
    averages inside. Then, part by part, every node of the later parts meets one node of each of the a_l groups of
    (k+1)^p_l nodes of V_l, with such weights that each group's mean, and that of the later parts, become the mean of
    all; the group averages inside while the later parts go on among themselves.
    """
    if _split(len(nodes), k)[1] == 1:
        return hyper_hypercube(nodes, k)
    parts: list[list[list[int]]] = []  # V_l as its groups
    rest = nodes
    while rest:
        size = 1
        while size * (k + 1) <= len(rest):
            size *= k + 1
        count = len(rest) // size
        parts.append([rest[g * size : (g + 1) * size] for g in range(count)])
        rest = rest[count * size :]
    first = _parallel([hyper_hypercube([v for group in groups for v in group], k) for groups in parts])
    return first + _exchange(parts, k)


def _exchange(parts: list[list[list[int]]], k: int) -> list[Pairs]:
    """The rounds after every part is constant: the first part meets the later ones, and so on."""
    if len(parts) == 1:
        return []
    groups, later = parts[0], [v for part in parts[1:] for group in part for v in group]
    weight = len(groups[0]) / (len(groups) * len(groups[0]) + len(later))
    meet = {_pair(v, group[place]): weight for place, v in enumerate(later) for group in groups}
    return [meet, *_parallel([*(hyper_hypercube(group, k) for group in groups), _exchange(parts[1:], k)])]


def hyper_hypercube(nodes: list[int], k: int) -> list[Pairs]:
    """The rounds of the k-peer hyper-hypercube graph (Algorithm 1): n = n_1 n_2 ... with the fewest factors <= k + 1.

    In round l the nodes that differ in digit l only, of the mixed radix n_1, n_2, ..., take their mean.
    """
    rounds: list[Pairs] = []
    stride = 1
    for factor in _factors(len(nodes), k + 1):
        starts = [i for i in range(len(nodes)) if i // stride % factor == 0]
        groups = [[nodes[i + stride * digit] for digit in range(factor)] for i in starts]
        rounds.append({_pair(a, b): 1 / factor for g in groups for at, a in enumerate(g) for b in g[:at]})
        stride *= factor
    return rounds


def _factors(n: int, most: int) -> list[int]:
    """The fewest factors 2..most with product n, whose prime factors are all <= most."""
    best: dict[int, list[int]] = {1: []}
    for m in (d for d in range(2, n + 1) if n % d == 0):
        ways = [[*best[m // f], f] for f in range(2, min(m, most) + 1) if m % f == 0 and m // f in best]
        if ways:
            best[m] = min(ways, key=len)
    return best[n]


def _split(n: int, k: int) -> tuple[int, int]:
    """n = smooth * rough: the prime factors <= k + 1, and the others."""
    rough = n
    for factor in range(2, k + 2):
        while rough % factor == 0:
            rough //= factor
    return n // rough, rough


def _parallel(sequences: list[list[Pairs]]) -> list[Pairs]:
    """Rounds of disjoint node sets side by side; shorter sequences end earlier."""
    together: list[Pairs] = [{} for _ in range(max(map(len, sequences), default=0))]
    for sequence in sequences:
        for at, pairs in enumerate(sequence):
            together[at].update(pairs)
    return together


def _pair(a: int, b: int) -> tuple[int, int]:
    return (a, b) if a < b else (b, a)
