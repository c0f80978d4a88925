"""Rules that give the edges of a graph their weights: graph -> W.

Metropolis-Hastings and maximum-degree weights: Xiao and Boyd, Fast linear iterations for distributed averaging,
Systems & Control Letters 2004. Push-sum: Kempe, Dobra and Gehrke, Gossip-based computation of aggregate information,
FOCS 2003; for learning, Assran et al., Stochastic Gradient Push, ICML 2019, arXiv 1811.10792.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
from scipy import sparse

from fedsim.errors import InputError, first_line
from fedsim.ground.later import networkx as nx
from fedsim.topology.mixing import Mixing, checked, edge_array, matrix

Weights = Literal["metropolis", "max_degree", "lazy", "uniform", "push_sum", "given", "fastest_mixing"]
_SWAPS = (
    "topology.weights=given has spectral gap 0: without weight on the diagonal, peers of this graph swap models and "
    "never agree; leave some of a row for the diagonal"
)
ONE_WAY = ("uniform", "push_sum", "given")  # rules that make sense on directed graphs


def weigh(graph: nx.Graph, weights: Weights, period: int | None) -> Mixing:
    """The mixing matrix of a connected graph on 0..n-1.

    With deg the number of neighbours (of senders, for arcs) and the rest of each row on the diagonal:

    - ``metropolis``: w_ij = 1 / (1 + max(deg_i, deg_j)); symmetric.
    - ``max_degree``: w_ij = 1 / (1 + max_l deg_l); symmetric.
    - ``lazy``: (I + metropolis) / 2; symmetric with eigenvalues >= 0.
    - ``uniform``: w_ij = w_ii = 1 / (1 + deg_i); rows sum to 1, columns only if all degrees agree.
    - ``push_sum``: w_ij = w_jj = 1 / (1 + number of receivers of j); columns sum to 1, for algorithms that divide by
      the push-sum weight.
    - ``given``: w_ij is the attribute ``weight`` of the edge.
    - ``fastest_mixing``: the symmetric W >= 0 of smallest lambda, by semidefinite programming (needs cvxpy).

    Raises:
        InputError: the rule does not fit the graph; names ``topology.weights``.
    """
    directed, n = bool(graph.is_directed()), len(graph)
    if directed and weights not in ONE_WAY:
        raise InputError(f"topology.weights must be one of {', '.join(ONE_WAY)} on a directed graph, got {weights!r}")
    edges = edge_array(graph)
    if weights in ("uniform", "push_sum"):
        return _warned(_shares(graph, edges, period, split=weights == "push_sum"), weights)
    values = _given(graph, edges) if weights == "given" else _symmetric(graph, edges, weights)
    w = matrix(n, edges, values, directed=directed)
    received = np.asarray(w.sum(axis=1)).ravel()
    # Rules by degree and the optimiser keep below 1 but for rounding, so more than that comes from a user's file.
    if received.max() > 1 + 1e-12:
        at = int(received.argmax())
        raise InputError(
            f"topology.weights=given: the weights of a node's edges must sum to <= 1, got {received[at]:.6g} at node "
            f"{at}; the rest of each row goes on the diagonal"
        )
    diagonal = np.maximum(0.0, 1.0 - received)
    mixing = _warned(checked(graph, (w + sparse.diags(diagonal)).tocsr(), period, columns=not directed), weights)
    return mixing if diagonal.max() > 1e-12 or _mixes(graph) else replace(mixing, warnings=(*mixing.warnings, _SWAPS))


def _mixes(graph: nx.Graph) -> bool:
    """Whether a W with nothing on its diagonal brings all peers together.

    It does where the lengths of the graph's cycles have no common divisor. On a bipartite graph, whose cycles are even,
    the two sides only swap what they hold.
    """
    return bool(nx.is_aperiodic(graph)) if graph.is_directed() else not nx.is_bipartite(graph)


def _symmetric(graph: nx.Graph, edges: np.ndarray, weights: Weights) -> np.ndarray:
    """Weights [m] of the edges of an undirected graph, by degree or by optimisation."""
    if weights == "fastest_mixing":
        from fedsim.topology.sdp import fastest_mixing

        return fastest_mixing(len(graph), edges)
    degree = np.bincount(edges.ravel(), minlength=len(graph))
    larger = np.full(len(edges), degree.max()) if weights == "max_degree" else degree[edges].max(axis=1)
    return (0.5 if weights == "lazy" else 1.0) / (1.0 + larger)


def _given(graph: nx.Graph, edges: np.ndarray) -> np.ndarray:
    """The attribute ``weight`` [m] of the edges."""
    weights = nx.get_edge_attributes(graph, "weight")
    bare = len(edges) - len(weights)
    if bare:
        raise InputError(
            f"topology.weights must not be 'given' for a graph with {bare} edges of {len(edges)} without a weight"
        )
    of = {**weights, **({} if graph.is_directed() else {(j, i): value for (i, j), value in weights.items()})}
    try:
        values = np.array([float(of[i, j]) for i, j in edges.tolist()])
    except (TypeError, ValueError) as error:
        raise InputError(
            f"topology.weights=given: the weight of every edge must be a number ({first_line(error)})"
        ) from error
    bad = ~(np.isfinite(values) & (values > 0))
    if bad.any():
        at = int(bad.argmax())
        must = f"the weight of every edge must be finite and > 0, got {values[at]:g} at {tuple(edges[at].tolist())}"
        raise InputError(f"topology.weights=given: {must}; leave out edges that do not exist")
    return values


def _shares(graph: nx.Graph, edges: np.ndarray, period: int | None, *, split: bool) -> Mixing:
    """Equal shares: of what a peer receives (rows sum to 1), or ``split``: of what it sends (columns do)."""
    n, directed = len(graph), bool(graph.is_directed())
    ones = matrix(n, edges, np.ones(len(edges)), directed=directed) + sparse.identity(n, format="csr")
    scale = sparse.diags(1.0 / np.asarray(ones.sum(axis=0 if split else 1)).ravel())
    w = (ones @ scale if split else scale @ ones).tocsr()
    return checked(graph, w, period, rows=not split, columns=split)


def _warned(mixing: Mixing, weights: Weights) -> Mixing:
    """Name a W that moves the mean of the peers; push-sum corrects its own bias and gets no warning."""
    if mixing.column_stochastic:
        return mixing
    text = (
        f"topology.weights={weights} is not doubly stochastic on this graph: mixing does not preserve the mean of the "
        "peers, which drifts to a weighted objective"
    )
    ways = "push_sum with an algorithm that supports it" if mixing.directed else "metropolis"
    return replace(mixing, warnings=(*mixing.warnings, f"{text}; use topology.weights={ways}"))
