"""Semidefinite programs over the weights of edges; needs the optional package cvxpy.

Fastest mixing: Boyd, Diaconis and Xiao, Fastest mixing Markov chain on a graph, SIAM Review 2004. Rates: Nabli and
Oyallon, DADAO: Decoupled accelerated decentralized asynchronous optimization, ICML 2023, arXiv 2208.00779.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np

from fedsim.errors import InputError


def fastest_mixing(n: int, edges: np.ndarray) -> np.ndarray:
    """Weights [m] >= 0 of the symmetric W with the smallest ``||W - 11^T/n||``; edges [m, 2]."""
    cp = _cvxpy("topology.weights=fastest_mixing")
    weights, norm = cp.Variable(len(edges), nonneg=True), cp.Variable()
    off = np.eye(n) - np.full((n, n), 1.0 / n) - _laplacian(cp, n, edges, weights)  # W - 11^T/n
    incident = np.zeros((n, len(edges)))
    incident[edges.T, np.arange(len(edges))] = 1.0
    bounds = [norm * np.eye(n) - off >> 0, norm * np.eye(n) + off >> 0, incident @ weights <= 1]
    _solve(cp, cp.Problem(cp.Minimize(norm), bounds), "topology.weights=fastest_mixing")
    done = np.maximum(weights.value, 0.0)  # the solver keeps its constraints to about 1e-8
    return np.asarray(done / max(1.0, float((incident @ done).max())))


def optimal_rates(n: int, edges: np.ndarray) -> np.ndarray:
    """Rates [m] of least sum with ``chi1 * chi2 <= 1/2``; edges [m, 2].

    The product is convex after all: with chi1 <= 1/u the other factor must keep each edge's effective resistance
    ``2 chi2 <= u``, and both constraints are convex in (rates, u) together.
    """
    cp = _cvxpy("topology.rates=optimal")
    rates, u = cp.Variable(len(edges), nonneg=True), cp.Variable(nonneg=True)
    mean = np.full((n, n), 1.0 / n)
    laplacian = _laplacian(cp, n, edges, rates)
    lifted = laplacian + mean
    bounds = [laplacian - u * (np.eye(n) - mean) >> 0]
    for i, j in edges.tolist():
        e = np.zeros(n)
        e[i], e[j] = 1.0, -1.0
        bounds.append(cp.matrix_frac(e, lifted) <= u)
    _solve(cp, cp.Problem(cp.Minimize(cp.sum(rates)), bounds), "topology.rates=optimal")
    return np.asarray(np.maximum(rates.value, 0.0))


def _laplacian(cp: Any, n: int, edges: np.ndarray, weights: Any) -> Any:
    ends = np.zeros((n, len(edges)))
    ends[edges[:, 0], np.arange(len(edges))] = 1.0
    ends[edges[:, 1], np.arange(len(edges))] = -1.0
    return ends @ cp.diag(weights) @ ends.T


def _solve(cp: Any, problem: Any, what: str) -> None:
    problem.solve(solver=cp.CLARABEL)
    if problem.status not in ("optimal", "optimal_inaccurate"):
        raise InputError(f"{what}: the solver ended with status {problem.status!r}; use another choice")


def _cvxpy(what: str) -> Any:
    try:
        return import_module("cvxpy")
    except ImportError as error:
        raise InputError(f"{what} needs the package cvxpy, which is not installed; pip install cvxpy") from error
