"""How fast a mixing matrix, or a product of them over a period, brings the peers together."""

from __future__ import annotations

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import LinearOperator, eigsh

_DENSE = 500  # peers below which a dense decomposition is quicker than an iteration


def lam(*ws: sparse.csr_matrix) -> float:
    """The factor lambda by which gossip contracts the distance to the mean, in the worst case.

    It is the largest singular value of ``P W P`` with ``P = I - 11^T/n`` and ``W = ws[-1] ... ws[0]``; for one
    symmetric doubly stochastic W this is ``max(|lambda_2|, |lambda_n|)``. For a W that is only row- or
    column-stochastic it may exceed 1.

    Args:
        ws: matrices [n, n], in the order of their rounds; several: those of a period.

    Returns:
        lambda >= 0, to 1e-6 absolute (1e-12 below 500 peers, and where every peer does as its neighbour).
    """
    n = ws[0].shape[0]
    if n < _DENSE:
        product = np.eye(n)
        for w in ws:
            product = w @ product
        product = product - product.mean(axis=0, keepdims=True)
        product = product - product.mean(axis=1, keepdims=True)
        return float(np.linalg.norm(product, 2))
    if all(circulant(w) for w in ws):  # on a ring, an iteration would take as many steps as there are peers
        waves = [np.fft.fft(w[[0]].toarray()[0]) for w in ws]
        return float(np.abs(np.prod(waves, axis=0))[1:].max())

    def forward(x: np.ndarray) -> np.ndarray:
        x = x - x.mean()
        for w in ws:
            x = w @ x
        centred: np.ndarray = x - x.mean()
        return centred

    # W need not be symmetric: its largest singular value is the root of the largest eigenvalue of this operator.
    def gram(x: np.ndarray) -> np.ndarray:
        x = forward(x.ravel())
        for w in reversed(ws):
            x = w.T @ x
        centred: np.ndarray = x - x.mean()
        return centred

    start = np.sin(np.arange(1, n + 1) ** 2)  # fixed, without the symmetries of any graph
    start -= start.mean()
    start /= np.linalg.norm(start)
    if np.linalg.norm(gram(start)) < 1e-14:  # the exact average; an iteration cannot start from a zero
        return 0.0
    operator = LinearOperator((n, n), matvec=gram, dtype=np.float64)
    top = eigsh(
        operator, k=1, which="LA", v0=start, ncv=min(n, 60), tol=1e-8, maxiter=100 * n, return_eigenvectors=False
    )
    return float(np.sqrt(max(0.0, top[0])))


def circulant(w: sparse.csr_matrix) -> bool:
    """Whether every row is the one above it, moved on by a place, as of a ring: w[i, j] depends on j - i modulo n."""
    n = w.shape[0]
    moved = w[np.roll(np.arange(n), 1)][:, np.roll(np.arange(n), 1)]
    return bool((w != moved).nnz == 0)


def spectral_gap(*ws: sparse.csr_matrix) -> float:
    """``1 - lam(*ws)``.

    >>> from fedsim.topology import Complete, Ring
    >>> gaps = [spectral_gap(topology.mixing(16, 0, 0).w) for topology in (Ring(), Complete())]
    >>> [round(gap, 3) for gap in gaps]  # gossip on a ring is slow, and everybody with everybody is done at once
    [0.051, 1.0]
    """
    return 1.0 - lam(*ws)
