"""The W of every round of a run, checked against what the peers' algorithm can gossip with."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from fedsim.algorithms.kit.around import name_of
from fedsim.errors import InputError
from fedsim.runs.traffic import Record
from fedsim.topology import Mixing, Topology, spectral_gap
from fedsim.traits.declared import traits_of


class Links(NamedTuple):
    """Who gossips with whom in a round."""

    mixing: Mixing
    w: sparse.csr_matrix  # its W in the dtype of the peers' vectors
    receivers: Tensor  # [n] to how many neighbours each peer sends
    messages: int  # of all peers together


class Mixings:
    """The W of every round, computed once for each round of a period.

    Args:
        algorithm: which must be able to gossip with each.
        topology: who gossips with whom, when.
        n: peers.
        seed: of the run.
        dtype: of the peers' vectors.

    Attributes:
        first: that of the first round.
    """

    def __init__(self, algorithm: Any, topology: Topology, n: int, seed: int, dtype: np.dtype[Any]):
        self.algorithm, self.topology, self.n, self.seed, self.dtype = algorithm, topology, n, seed, dtype
        self.first = topology.mixing(n, 0, seed)
        self.period = self.first.period
        self._known: dict[int, Links] = {}
        self._gaps: dict[int, float] = {}

    def at(self, index: int) -> Mixing:
        """The W of a round."""
        return self.links(index).mixing

    def links(self, index: int) -> Links:
        """The W of a round and what follows from it."""
        at = index % self.period if self.period else index
        if at not in self._known:
            if self.period is None:
                self._known.clear()
                self._gaps.clear()
            found = self.first if at == 0 else self.topology.mixing(self.n, at, self.seed)
            require_mixing(self.algorithm, found)
            to = receivers(found).astype(np.int64)
            self._known[at] = Links(found, found.w.astype(self.dtype), torch.from_numpy(to), int(to.sum()))
        return self._known[at]

    def gaps(self, index: int) -> Record:
        """1 - lambda of a round's W, and of the product over a period where W changes."""
        at = index % self.period if self.period else index
        if at not in self._gaps:
            self._gaps[at] = spectral_gap(self.at(index).w)
        found = {"gossip/spectral_gap": self._gaps[at]}
        if self.period is not None and self.period > 1:
            if -1 not in self._gaps:
                self._gaps[-1] = spectral_gap(*(self.at(t).w for t in range(self.period)))
            found["gossip/period_gap"] = self._gaps[-1]
        return found


def receivers(mixing: Mixing) -> np.ndarray:
    """[n] to how many neighbours each peer sends."""
    w = mixing.w.tocsc()
    return np.diff(w.indptr) - (mixing.w.diagonal() != 0)  # type: ignore[no-any-return]


def require_mixing(algorithm: Any, mixing: Mixing) -> None:
    """Raise InputError unless the algorithm can gossip with this W."""
    name = name_of(algorithm)
    rows = traits_of(algorithm).mixes == "rows"
    if not (mixing.row_stochastic if rows else mixing.column_stochastic):
        other = "topology.weights=metropolis" if rows else "topology.weights=push_sum"
        more = ", or algorithm=sgp, which needs no such rows" if rows else ""
        must = f"give {'rows' if rows else 'columns'} that sum to 1 for {name}"
        raise InputError(f"topology.weights must {must}, got others; use {other}{more}")
    if traits_of(algorithm).static and not mixing.static:
        raise InputError(
            f"topology must not change with the round for {name}, which is made for one graph; "
            "choose another topology, or topology.fresh=false"
        )
