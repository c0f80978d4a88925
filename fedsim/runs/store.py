"""The one place for client state: rows on demand, written by a round and visible after its commit.

Memory grows with the clients that ever took part, not with the population. What jobs receive and return is numpy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from fedsim.ground.streamed import Streamed
from fedsim.ground.tree import leaves, tree_map
from fedsim.types import SavedRows, State

CHUNK_BYTES = 2**24
"""Rows are kept in chunks of about this size, which never move: no copy when the store grows, and little to spare."""


class Store:
    """Client states of one algorithm, owned by the driver.

    Args:
        initial: the state of a client that has not taken part yet, ``algorithm.init_client(x0)``: tensors.
    """

    def __init__(self, initial: State):
        self.initial: Any = tree_map(lambda t: t.detach().cpu().numpy(), initial)
        self.empty = not leaves(self.initial)
        self._slot: dict[int, int] = {}
        self._chunk_rows = max(16, CHUNK_BYTES // max(1, sum(a.nbytes for a in leaves(self.initial))))
        self._chunks: list[Any] = []  # trees of [chunk_rows, ...] arrays
        self._staged: list[tuple[tuple[int, ...], State]] = []

    def __len__(self) -> int:
        """Clients that have a row of their own."""
        return len(self._slot)

    @property
    def nbytes(self) -> int:
        """Bytes set aside for rows."""
        return sum(a.nbytes for chunk in self._chunks for a in leaves(chunk))

    def read(self, clients: Sequence[int]) -> State:
        """Committed rows of these clients, stacked: a tree of [b, ...] arrays (copies)."""
        out = tree_map(lambda a: np.repeat(a[None], len(clients), axis=0), self.initial)
        for chunk, at, rows in self._places(clients):
            tree_map(lambda o, c, at=at, rows=rows: o.__setitem__(at, c[rows]), out, chunk)
        return out

    def write(self, clients: Sequence[int], rows: State) -> None:
        """Stage new rows (a tree of [b, ...] arrays); nothing is visible before ``commit``."""
        if not self.empty:
            self._staged.append((tuple(clients), rows))

    def drop(self) -> None:
        """Forget what was staged since the last commit."""
        self._staged.clear()

    def commit(self) -> None:
        """Make everything staged visible."""
        for clients, new in self._staged:
            for c in clients:
                self._slot.setdefault(c, len(self._slot))
            while len(self._chunks) * self._chunk_rows < len(self._slot):
                self._chunks.append(tree_map(lambda a: np.empty((self._chunk_rows, *a.shape), a.dtype), self.initial))
            for chunk, at, rows in self._places(clients):
                tree_map(lambda c, n, at=at, rows=rows: c.__setitem__(rows, n[at]), chunk, new)
        self._staged.clear()

    def snapshot(self) -> SavedRows:
        """The committed rows that there are, in the order in which their clients first took part.

        They are not copied: whoever reads them later than the next commit finds those of that commit.
        """
        ids = np.fromiter(self._slot, np.int64, len(self._slot))

        def streamed(blank: np.ndarray, *chunks: np.ndarray) -> Streamed:
            return Streamed(blank.dtype, (len(ids), *blank.shape), partial(_rows, chunks, self._chunk_rows))

        return SavedRows(ids, tree_map(streamed, self.initial, *self._chunks))

    def restore(self, rows: SavedRows) -> None:
        """Fill a store that is still empty with a snapshot, chunk by chunk."""
        for start in range(0, len(rows.ids), self._chunk_rows):
            stop = min(start + self._chunk_rows, len(rows.ids))
            values = tree_map(lambda v, a=start, b=stop: v.rows(a, b), rows.values)
            self.write(rows.ids[start:stop].tolist(), values)
            self.commit()

    def _places(self, clients: Sequence[int]) -> Iterator[tuple[Any, np.ndarray, np.ndarray]]:
        """Where these clients' rows are: (chunk, positions in ``clients``, rows of the chunk)."""
        slots = np.array([self._slot.get(c, -1) for c in clients], dtype=np.int64)
        which, row = np.divmod(slots, self._chunk_rows)
        for number in np.unique(which[slots >= 0]).tolist():
            at = np.flatnonzero(which == number)
            yield self._chunks[number], at, row[at]


def _rows(chunks: Sequence[np.ndarray], each: int, start: int, stop: int) -> np.ndarray:
    """Rows of an array that is kept in chunks of so many: a view where they lie in one chunk."""
    found = [chunks[n][max(0, start - n * each) : stop - n * each] for n in range(start // each, -(-stop // each))]
    return found[0] if len(found) == 1 else np.concatenate(found)
