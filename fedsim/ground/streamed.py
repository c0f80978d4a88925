"""Arrays that are read in parts, so that what is larger than memory allows twice need not be there twice."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

PART_BYTES = 2**24


class Streamed:
    """An array of rows that lies somewhere else; ``np.asarray`` makes a whole one of it.

    Args:
        dtype: of its entries.
        shape: [r, ...].
        rows: copies or views of rows ``start`` to ``stop``, without the latter; as they are when they are asked for.
    """

    def __init__(self, dtype: np.dtype[Any], shape: tuple[int, ...], rows: Callable[[int, int], np.ndarray]) -> None:
        self.dtype, self.shape, self.rows = dtype, shape, rows

    def parts(self) -> Iterator[np.ndarray]:
        """All rows in order, some megabytes at a time."""
        step = max(1, PART_BYTES // max(1, self.dtype.itemsize * math.prod(self.shape[1:])))
        for start in range(0, self.shape[0], step):
            yield self.rows(start, min(start + step, self.shape[0]))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        whole = self.rows(0, self.shape[0]) if self.shape[0] else np.empty(self.shape, self.dtype)
        return np.asarray(whole, dtype)
