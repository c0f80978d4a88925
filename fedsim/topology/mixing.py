"""A mixing matrix W with its graph, checked when it is made; the protocol of topologies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy import sparse

from fedsim.errors import InputError
from fedsim.ground.later import networkx as nx

TOLERANCE = 1e-12  # of sums of rows and columns, and of symmetry


@dataclass(frozen=True, eq=False)
class Mixing:
    """The gossip of one round: peer i holds ``sum_j w_ij x_j`` afterwards.

    Attributes:
        w: [n, n] float64, finite, >= 0; zero but on the diagonal and on the edges.
        graph: nodes 0..n-1; an arc (j, i) of a directed graph means that j sends to i, so that w_ij > 0.
        edges: [m, 2] int64, ascending; pairs i < j, or arcs (sender, receiver) when the graph is directed.
        period: W of round t is that of round t mod period: 1 for a static W; None when every round has a fresh one.
        symmetric: whether W equals its transpose, to 1e-12.
        row_stochastic: whether every row sums to 1, to 1e-12: consensus is a fixed point.
        column_stochastic: whether every column sums to 1, to 1e-12: the mean over peers is preserved.
        warnings: what the user should know, one sentence each.
    """

    w: sparse.csr_matrix
    graph: nx.Graph
    edges: np.ndarray
    period: int | None
    symmetric: bool
    row_stochastic: bool
    column_stochastic: bool
    warnings: tuple[str, ...] = ()

    @property
    def static(self) -> bool:
        """Whether every round has this W."""
        return self.period == 1

    @property
    def directed(self) -> bool:
        """Whether edges are arcs."""
        return bool(self.graph.is_directed())


class Topology(Protocol):
    """A rule for the mixing matrix of every round: a frozen dataclass of options."""

    def mixing(self, n: int, index: int, seed: int) -> Mixing:
        """The W of n peers in round ``index`` (0-based); ``Mixing.period`` says which other rounds share it."""
        ...


def edge_array(graph: nx.Graph) -> np.ndarray:
    """The edges of a graph on 0..n-1, [m, 2] int64, ascending; i < j unless the graph is directed."""
    edges = np.array(list(graph.edges()), dtype=np.int64).reshape(-1, 2)
    if not graph.is_directed():
        edges = np.sort(edges, axis=1)
    return edges[np.lexsort((edges[:, 1], edges[:, 0]))]


def matrix(n: int, edges: np.ndarray, values: np.ndarray, *, directed: bool) -> sparse.csr_matrix:
    """[n, n] with ``values`` [m] at (receiver, sender) of each arc, at both ends of each pair when undirected."""
    senders, receivers = edges[:, 0], edges[:, 1]
    if not directed:
        senders, receivers = np.concatenate([senders, receivers]), np.concatenate([receivers, senders])
        values = np.concatenate([values, values])
    return sparse.csr_matrix((np.asarray(values, dtype=np.float64), (receivers, senders)), shape=(n, n))


def checked(
    graph: nx.Graph, w: sparse.csr_matrix, period: int | None, *, rows: bool = True, columns: bool = True
) -> Mixing:
    """A ``Mixing`` whose W is what it must be.

    Args:
        graph: nodes 0..n-1 without self loops.
        w: [n, n].
        period: see ``Mixing``.
        rows: whether rows must sum to 1.
        columns: whether columns must sum to 1.

    Raises:
        InputError: an entry is negative, not finite or not on an edge, or a sum is not 1.
    """
    edges, n = edge_array(graph), len(graph)
    allowed = matrix(n, edges, np.ones(len(edges)), directed=graph.is_directed()) + sparse.identity(n, format="csr")
    _refuse(~np.isfinite(w.data), w, "finite")
    _refuse(w.data < 0, w, ">= 0")
    if (w - w.multiply(allowed)).count_nonzero():
        raise InputError("mixing matrix must be zero off the edges of its graph, got weights between other peers")
    rows_off, columns_off = (np.abs(np.asarray(w.sum(axis=axis)).ravel() - 1) for axis in (1, 0))
    for must, off, name in ((rows, rows_off, "row"), (columns, columns_off, "column")):
        if must and off.max() > TOLERANCE:
            at = int(off.argmax())
            raise InputError(f"mixing matrix must have {name}s that sum to 1, got {name} {at} off by {off[at]:.3g}")
    difference = (w - w.T).tocoo().data
    done = Mixing(
        w=w,
        graph=graph,
        edges=edges,
        period=period,
        symmetric=not len(difference) or float(np.abs(difference).max()) <= TOLERANCE,
        row_stochastic=float(rows_off.max()) <= TOLERANCE,
        column_stochastic=float(columns_off.max()) <= TOLERANCE,
    )
    return done


def _refuse(bad: np.ndarray, w: sparse.csr_matrix, must: str) -> None:
    if bad.any():
        at = int(bad.argmax())
        row = int(np.searchsorted(w.indptr, at, side="right")) - 1
        raise InputError(f"mixing matrix must be {must}, got {w.data[at]} at row {row}, column {w.indices[at]}")
