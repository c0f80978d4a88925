"""Rates of the edges' Poisson clocks, and the constants chi1, chi2 of a rate-weighted Laplacian.

Nabli and Oyallon, DADAO: Decoupled accelerated decentralized asynchronous optimization, ICML 2023, arXiv 2208.00779.
The Laplacian is ``Lam = sum_ij rate_ij (e_i - e_j)(e_i - e_j)^T``. Dense linear algebra: O(n^3) time, 8 n^2 bytes a
matrix (200 MB at 5,000 nodes).
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from fedsim.errors import InputError
from fedsim.ground.later import networkx as nx
from fedsim.topology.mixing import edge_array

Rates = Literal["minimal", "optimal"] | float


def chi1(graph: nx.Graph, rates: np.ndarray) -> float:
    """1 / (smallest positive eigenvalue of the Laplacian), in units of time.

    Args:
        graph: connected, undirected, nodes 0..n-1.
        rates: [m] in the order of ``edge_array(graph)``, >= 0.
    """
    return float(1.0 / np.linalg.eigvalsh(_laplacian(graph, rates))[1])


def chi2(graph: nx.Graph, rates: np.ndarray) -> float:
    """Half the largest effective resistance ``(e_i - e_j)^T Lam^+ (e_i - e_j)`` of an edge, in units of time."""
    n, (i, j) = len(graph), edge_array(graph).T
    # A Laplacian has no inverse. With 11^T/n added it has one, and in the differences below what was added cancels.
    inverse = np.linalg.inv(_laplacian(graph, rates) + 1.0 / n)  # Lam^+ + 11^T/n
    diagonal = inverse.diagonal()
    return float(0.5 * (diagonal[i] + diagonal[j] - 2.0 * inverse[i, j]).max())


def minimal_rates(graph: nx.Graph) -> np.ndarray:
    """The smallest equal rates [m] at which ``chi1 * chi2 = 1/2``: sqrt(2 chi1 chi2) of the unit-weight Laplacian."""
    # Both constants go with 1 / rate, so their product goes with 1 / rate^2.
    ones = np.ones(graph.number_of_edges())
    return ones * float(np.sqrt(2.0 * chi1(graph, ones) * chi2(graph, ones)))


def edge_rates(graph: nx.Graph, rates: Rates) -> np.ndarray:
    """Events per unit of virtual time on each edge.

    Args:
        graph: connected, undirected, nodes 0..n-1.
        rates: ``minimal``; ``optimal``: the rates of least sum with chi1 * chi2 = 1/2 (needs cvxpy); or a number > 0.

    Returns:
        [m] in the order of ``edge_array(graph)``.
    """
    if graph.is_directed():
        raise InputError(
            f"topology.rates must be of an undirected graph, got {rates!r} for arcs; choose another topology"
        )
    if rates == "minimal":
        return minimal_rates(graph)
    if rates == "optimal":
        from fedsim.topology.sdp import optimal_rates

        best = optimal_rates(len(graph), edge_array(graph))
        return best * float(np.sqrt(2.0 * chi1(graph, best) * chi2(graph, best)))  # the solver's 1e-8, exactly
    return np.full(graph.number_of_edges(), float(rates))


def _laplacian(graph: nx.Graph, rates: np.ndarray) -> np.ndarray:
    i, j = edge_array(graph).T
    laplacian = np.zeros((len(graph), len(graph)))
    laplacian[i, j] = laplacian[j, i] = -rates
    np.fill_diagonal(laplacian, -laplacian.sum(axis=1))
    return laplacian
