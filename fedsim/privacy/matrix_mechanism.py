"""DP-FTRL by banded matrix factorisation: noise correlated over rounds so that it cancels in prefix sums.

C. A. Choquette-Choo et al., (Amplified) Banded Matrix Factorization, NeurIPS 2023, arXiv:2306.08153. Prefix sums
A = B C with C lower triangular, b diagonals and unit columns; round t releases its sum plus (C^{-1} Z)_t. Deviation:
the convex problem over the Gram matrix is solved in the entries of C before its columns are normalised, a one-to-one
change of variables that keeps every iterate feasible.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedsim.errors import require

# scipy.linalg and scipy.optimize are imported where a factor is computed: they take a tenth of the start of any run.


@dataclass(frozen=True, eq=False)
class BandedFactor:
    """The lower triangular factor C with b diagonals, kept by rows.

    Attributes:
        noise_coefficients: [T, b]; entry (t, j) is C[t, t - j], 0 where t < j.
    """

    noise_coefficients: np.ndarray

    def noise(self, index: int, white: np.ndarray, previous: list[np.ndarray]) -> np.ndarray:
        """Row ``index`` of C^{-1} Z: [d], from white noise [d] and up to b - 1 earlier results, latest first."""
        row = self.noise_coefficients[index]
        total = np.array(white, dtype=np.float64)
        # forward substitution in C x = z: row t needs the b - 1 results before it
        for weight, past in zip(row[1 : index + 1], previous, strict=False):
            total -= weight * past
        return np.asarray(total / row[0])


def banded_factor(rounds: int, bands: int, iterations: int = 500) -> BandedFactor:
    """The banded factor of least total squared error; 1 band is independent noise. Cost O(T^2 b) an iteration."""
    require(rounds >= 1, "rounds", "be >= 1", rounds)
    require(1 <= bands <= rounds, "bands", f"be in 1..{rounds}", bands)
    from scipy.optimize import minimize

    # the free entries: all of the band but the diagonal, which is 1 before the columns are normalised
    lag, at = np.nonzero(np.arange(rounds) >= np.arange(bands)[:, None])
    at, lag = at[lag > 0], lag[lag > 0]
    prefix = np.tri(rounds)

    def value(free: np.ndarray) -> tuple[float, np.ndarray]:
        raw = np.zeros((rounds, bands))
        raw[:, 0], raw[at, lag] = 1.0, free
        norms = _column_norms(raw)
        rows = _normalised(raw, norms)
        b = _right_solve(prefix, rows)
        e = _right_solve_transposed(b, rows)
        slope = np.zeros_like(rows)  # of ||A C^{-1}||^2 by C's entries: -2 B^T B C^{-T}
        for lag_ in range(bands):
            slope[lag_:, lag_] = -2 * (b[:, lag_:] * e[:, : rounds - lag_]).sum(axis=0)
        # through the normalisation of a column only the part of the slope that is orthogonal to the column passes
        along = np.zeros(rounds)
        for lag_ in range(bands):
            along[: rounds - lag_] += slope[lag_:, lag_] * rows[lag_:, lag_]
        gradient = (slope[at, lag] - rows[at, lag] * along[at - lag]) / norms[at - lag]
        return float((b**2).sum()), gradient  # ||A C^-1||^2: the variances of all prefix sums together

    free = 0.5**lag  # a start that decays with the lag
    if len(free):
        done = minimize(value, free, jac=True, method="L-BFGS-B", options={"maxiter": iterations, "ftol": 1e-12})
        free = done.x
    raw = np.zeros((rounds, bands))
    raw[:, 0], raw[at, lag] = 1.0, free
    return BandedFactor(_normalised(raw, _column_norms(raw)))


def _column_norms(rows: np.ndarray) -> np.ndarray:
    rounds, bands = rows.shape
    squares = np.zeros(rounds)
    for lag in range(bands):
        squares[: rounds - lag] += rows[lag:, lag] ** 2
    return np.asarray(np.sqrt(squares))


def _normalised(rows: np.ndarray, norms: np.ndarray) -> np.ndarray:
    done = rows.copy()
    for lag in range(rows.shape[1]):
        done[lag:, lag] /= norms[: len(norms) - lag]
    return np.asarray(done)


def _right_solve(a: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """A C^{-1}, from C^T Y = A^T."""
    from scipy.linalg import solve_banded

    bands = rows.shape[1]
    upper = np.zeros((bands, len(rows)))
    for lag in range(bands):  # (C^T)[t - lag, t] = C[t, t - lag]
        upper[bands - 1 - lag, lag:] = rows[lag:, lag]
    return np.asarray(solve_banded((0, bands - 1), upper, a.T).T)


def _right_solve_transposed(b: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """B C^{-T}, from C Y = B^T."""
    from scipy.linalg import solve_banded

    bands = rows.shape[1]
    lower = np.zeros((bands, len(rows)))
    for lag in range(bands):
        lower[lag, : len(rows) - lag] = rows[lag:, lag]
    return np.asarray(solve_banded((bands - 1, 0), lower, b.T).T)
