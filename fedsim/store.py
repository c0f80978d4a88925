"""The one place for client state: rows on demand, written by a round and visible after its commit.

Memory grows with the clients that ever took part, not with the population. What jobs receive and return is numpy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from fedsim.tree import leaves, tree_map
from fedsim.types import State


class Store:
    """Client states of one algorithm, owned by the driver.

    Args:
        initial: the state of a client that has not taken part yet, ``algorithm.init_client(x0)``.
    """

    def __init__(self, initial: State):
        self.initial: Any = tree_map(lambda t: t.detach().cpu().numpy() if isinstance(t, Tensor) else t, initial)
        self.empty = not leaves(self.initial)
        self._slot: dict[int, int] = {}
        self._arenas: Any = tree_map(lambda a: np.empty((0, *a.shape), a.dtype), self.initial)
        self._staged: list[tuple[tuple[int, ...], State]] = []

    def __len__(self) -> int:
        """Clients that have a row of their own."""
        return len(self._slot)

    def read(self, clients: Sequence[int]) -> State:
        """Committed rows of these clients, stacked: a tree of [b, ...] arrays (copies)."""
        slots = np.array([self._slot.get(c, -1) for c in clients], dtype=np.int64)

        def rows(arena: np.ndarray, initial: np.ndarray) -> np.ndarray:
            out = np.empty((len(slots), *initial.shape), initial.dtype)
            known = slots >= 0
            out[known] = arena[slots[known]]
            out[~known] = initial
            return out

        return tree_map(rows, self._arenas, self.initial)

    def write(self, clients: Sequence[int], rows: State) -> None:
        """Stage new rows (a tree of [b, ...] arrays); nothing is visible before ``commit``."""
        if not self.empty:
            self._staged.append((tuple(clients), rows))

    def drop(self) -> None:
        """Forget what was staged since the last commit."""
        self._staged.clear()

    def commit(self) -> None:
        """Make everything staged visible."""
        for clients, rows in self._staged:
            for c in clients:
                self._slot.setdefault(c, len(self._slot))
            slots = np.array([self._slot[c] for c in clients], dtype=np.int64)
            self._arenas = tree_map(lambda arena: _grown(arena, len(self._slot)), self._arenas)
            tree_map(lambda arena, row, s=slots: arena.__setitem__(s, row), self._arenas, rows)
        self._staged.clear()


def _grown(arena: np.ndarray, rows: int) -> np.ndarray:
    """The arena itself, or one of at least twice its rows that begins with them."""
    if rows <= len(arena):
        return arena
    bigger = np.empty((max(rows, 2 * len(arena), 16), *arena.shape[1:]), arena.dtype)
    bigger[: len(arena)] = arena
    return bigger
