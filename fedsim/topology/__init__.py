"""Topologies: rules for the gossip matrix of every round, frozen dataclasses with ``mixing(n, index, seed)``.

A topology knows the number of peers, the round and the seed. It knows no model and no algorithm: what peers send along
its edges is not its business.
"""

from fedsim.topology.base_k import BaseKPlus1
from fedsim.topology.drawn import (
    BarabasiAlbert,
    Bipartite,
    ErdosRenyi,
    RandomGeometric,
    RandomRegular,
    SmallWorld,
)
from fedsim.topology.exponential import ExponentialDirected, OnePeerExponential
from fedsim.topology.fixed import (
    Barbell,
    Complete,
    Exponential,
    Grid,
    Hypercube,
    Path,
    Ring,
    Star,
    Torus,
)
from fedsim.topology.given import File, Networkx
from fedsim.topology.graphs import FixedGraph, RandomGraph
from fedsim.topology.mixing import Mixing, Topology, edge_array
from fedsim.topology.rates import Rates, chi1, chi2, edge_rates, minimal_rates
from fedsim.topology.spectrum import lam, spectral_gap
from fedsim.topology.weights import Weights, weigh

__all__ = [
    "BarabasiAlbert",
    "Barbell",
    "BaseKPlus1",
    "Bipartite",
    "Complete",
    "ErdosRenyi",
    "Exponential",
    "ExponentialDirected",
    "File",
    "FixedGraph",
    "Grid",
    "Hypercube",
    "Mixing",
    "Networkx",
    "OnePeerExponential",
    "Path",
    "RandomGeometric",
    "RandomGraph",
    "RandomRegular",
    "Rates",
    "Ring",
    "SmallWorld",
    "Star",
    "Topology",
    "Torus",
    "Weights",
    "chi1",
    "chi2",
    "edge_array",
    "edge_rates",
    "lam",
    "minimal_rates",
    "spectral_gap",
    "weigh",
]
