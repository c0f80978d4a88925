"""Least-squares problems with a known answer: client i holds f_i(x) = 1/2 ||A_i x - b_i||^2.

Read from an ``.npz`` file, or generated. One sample is one row a of A_i with its entry of b_i; its loss is
m/2 (a.x - b)^2, so that the mean over a client's m rows is f_i.
"""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from fedsim.data.arrays import check_memory, with_digest
from fedsim.data.dataset import Dataset, Split
from fedsim.errors import InputError, first_line, require
from fedsim.fields import check_fields
from fedsim.ground import addresses
from fedsim.ground.rng import numpy_stream

_NAMES = ("A", "b", "x0")
_DO = "save it with numpy.savez(FILE, A=A, b=b) or numpy.savez(FILE, A=A, b=b, x0=x0)"


@dataclass(frozen=True)
class Quadratic:
    """Least squares with m rows per client; the client of each row is its group. There is no test split.

    Two families are generated: ``gaussian``, and the ``scaled`` identities of Koloskova, Loizou, Boreiri, Jaggi, Stich,
    "A Unified Theory of Decentralized SGD with Changing Topology and Local Updates", ICML 2020, arXiv 2003.10422, where
    A_i = i / sqrt(n) I and b_i ~ N(0, (heterogeneity / i)^2 I), i = 1..n (rows = dim).

    Attributes:
        path: ``.npz`` file with A [n, m, d], b [n, m] and optionally x0 [d], float64 or float32, used as stored; None:
            generate a problem in float64 from the keys below and the run's seed, with x0 = 0.
        clients: generated: number of clients n >= 1.
        rows: generated: rows m >= 1 per client.
        dim: generated: unknowns d >= 1.
        heterogeneity: generated: standard deviation of the clients' own solutions around a common one, >= 0; with 0 all
            clients share a minimiser, where every f_i is 0. Scaled identities: zeta.
        family: generated: ``gaussian`` or ``scaled``.
    """

    path: str | None = None
    clients: int = 10
    rows: int = 20
    dim: int = 10
    heterogeneity: float = 1.0
    family: Literal["gaussian", "scaled"] = "gaussian"

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("clients", "rows", "dim"):
            require(getattr(self, name) >= 1, name, "be >= 1", getattr(self, name))
        require(0 <= self.heterogeneity < float("inf"), "heterogeneity", "be >= 0 and finite", self.heterogeneity)
        must = f"be dim = {self.dim} for family=scaled"
        require(self.family == "gaussian" or self.rows == self.dim, "rows", must, self.rows)
        if self.path is None:
            check_memory("clients", (self.clients, self.rows, self.dim), 8, "lower clients, rows or dim")

    def load(self, seed: int) -> Dataset:
        """Read the file (the seed plays no part), or generate the problem from the seed."""
        A, b, x0 = self._generate(seed) if self.path is None else read_problem(self.path)
        n, m, d = A.shape
        train = Split(A.reshape(n * m, d), b.reshape(n * m), np.repeat(np.arange(n), m))
        return with_digest(Dataset("quadratic", train, None, "least_squares", outputs=1, x0=x0))

    def _generate(self, seed: int) -> tuple[np.ndarray, np.ndarray, None]:
        """Rows of A are N(0, 1/m), so that A_i' A_i is about the identity; A_i x_i = b_i with x_i near a common x."""
        rng = numpy_stream(seed, addresses.DATA_QUADRATIC)
        if self.family == "scaled":
            i = np.arange(1, self.clients + 1)
            identities = (i / np.sqrt(self.clients))[:, None, None] * np.eye(self.dim)
            return identities, rng.standard_normal((self.clients, self.dim)) * (self.heterogeneity / i)[:, None], None
        A = rng.standard_normal((self.clients, self.rows, self.dim)) / np.sqrt(self.rows)
        common = rng.standard_normal(self.dim)
        own = common + self.heterogeneity * rng.standard_normal((self.clients, self.dim))
        return A, np.einsum("nmd,nd->nm", A, own), None


def read_problem(path: str) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """A [n, m, d], b [n, m] and x0 [d] or None from an ``.npz`` file; other arrays in the file are not looked at.

    Raises:
        InputError: the file is missing or no ``.npz``, or an array has another name, shape, type, or a NaN.
    """
    names, arrays = _stored(Path(path).expanduser())
    misspelt = [name for name in arrays if name not in _NAMES]
    if misspelt or not {"A", "b"} <= arrays.keys():
        raise InputError(
            f"{path}: must hold arrays named A, b and optionally x0, got {', '.join(names) or 'none'}; {_DO}"
        )
    A, b, x0 = arrays["A"], arrays["b"], arrays.get("x0")
    _check(path, "A", A, "[n, m, d]", A.ndim == 3 and A.size > 0, A.dtype)
    _check(path, "b", b, f"[n, m] = {list(A.shape[:2])}", b.shape == A.shape[:2], A.dtype)
    if x0 is not None:
        _check(path, "x0", x0, f"[d] = {list(A.shape[2:])}", x0.shape == A.shape[2:], A.dtype)
    return A, b, x0


def _stored(path: Path) -> tuple[list[str], dict[str, np.ndarray]]:
    """All names in the file, and the arrays whose names are ours but for upper and lower case."""
    try:
        stored = np.load(path, allow_pickle=False)
        if isinstance(stored, np.lib.npyio.NpzFile):
            with stored:
                return stored.files, {n: stored[n] for n in stored.files if n.lower() in ("a", "b", "x0")}
    except FileNotFoundError as error:
        raise InputError(f"data.path must be an existing .npz file, got {str(path)!r}") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(
            f"{path}: cannot be read as an .npz archive of numbers ({first_line(error)}); {_DO}"
        ) from error
    raise InputError(f"{path}: must be an .npz archive, got a single .npy array; {_DO}")


def _check(path: str, name: str, array: np.ndarray, shape: str, right: bool, dtype: np.dtype) -> None:
    if not right:
        raise InputError(f"{path}: {name} must have shape {shape}, got {list(array.shape)}")
    if array.dtype not in (np.dtype(np.float64), np.dtype(np.float32)) or array.dtype != dtype:
        raise InputError(f"{path}: A, b and x0 must all be float64 or all float32, got {name} of {array.dtype}")
    if not np.isfinite(array).all():
        raise InputError(
            f"{path}: {name} must be finite, got {int((~np.isfinite(array)).sum())} NaN or infinite entries"
        )
