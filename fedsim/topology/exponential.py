"""Directed exponential graphs: peer i sends to i + 2^k, to all of them at once or to one a round; without options.

Assran et al., Stochastic Gradient Push, ICML 2019, arXiv 1811.10792; Ying et al., Exponential graph is provably
efficient for decentralized deep training, NeurIPS 2021, arXiv 2110.13363.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from fedsim.ground.later import networkx as nx
from fedsim.topology.graphs import circle, placed, require_peers
from fedsim.topology.mixing import Mixing, checked, matrix


@dataclass(frozen=True)
class ExponentialDirected:
    """Peer i sends to i + 2^k modulo n for all k < tau = ceil(log2 n), the same in every round.

    All weights are 1 / (1 + tau); lambda = 1 - 2 / (1 + tau) for even n.
    """

    def mixing(self, n: int, index: int, seed: int) -> Mixing:
        """The sum of tau permutations and the identity, divided by 1 + tau."""
        require_peers(n, 2, "exponential_directed")
        return _shifts(n, [1 << k for k in range((n - 1).bit_length())], period=1)


@dataclass(frozen=True)
class OnePeerExponential:
    """In round t, peer i sends half of its model to i + 2^(t mod tau) modulo n, with tau = ceil(log2 n).

    The product of a period is the exact average if and only if n is a power of two.
    """

    def mixing(self, n: int, index: int, seed: int) -> Mixing:
        """(I + permutation) / 2."""
        require_peers(n, 2, "one_peer_exponential")
        period = (n - 1).bit_length()
        return _shifts(n, [1 << index % period], period)


def _shifts(n: int, offsets: list[int], period: int) -> Mixing:
    """Peer i sends to i + each offset modulo n, all with the weight of what it keeps."""
    senders = np.repeat(np.arange(n), len(offsets))
    arcs = np.stack([senders, (senders + np.tile(offsets, n)) % n], axis=1)
    graph = nx.empty_graph(n, create_using=nx.DiGraph)
    graph.add_edges_from(arcs.tolist())
    w = matrix(n, arcs, np.ones(len(arcs)), directed=True) + sparse.identity(n, format="csr")
    return checked(placed(graph, circle(n)), (w / (1 + len(offsets))).tocsr(), period)
