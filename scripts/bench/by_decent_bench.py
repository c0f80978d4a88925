"""decent-bench's D-PSGD (its DGD) on a workload, with its NumPy backend.

python by_decent_bench.py WORKLOAD PROCESSES    one process, whatever is asked for
"""

from __future__ import annotations

import sys

import networkx as nx
from contender import serve
from decent_array import interoperability as iop
from decent_bench.agents import Agent
from decent_bench.algorithms.p2p import DGD
from decent_bench.costs import LinearRegressionCost
from decent_bench.networks import P2PNetwork
from workloads import SLOW, WORKLOADS, samples


def main(name: str) -> None:
    """Race."""
    iop.set_backend("numpy")
    load = WORKLOADS[name]
    x, y = samples(load)
    m = load.size
    rows = [(iop.from_numpy(a), iop.from_numpy(b)) for a, b in zip(x, y.reshape(-1, 1), strict=True)]
    costs = (LinearRegressionCost(rows[i * m : (i + 1) * m]) for i in range(load.clients))
    agents = [Agent(cost, state_snapshot_period=10**9) for cost in costs]
    network = P2PNetwork(nx.cycle_graph(load.clients), agents)
    algorithm = DGD(step_size=SLOW * m)  # its loss is the mean over the rows
    algorithm.initialize(network)
    done = 0

    def step() -> None:
        nonlocal done
        for _ in range(load.rounds):
            network._step(done)  # what algorithm.run does, without the snapshots
            algorithm.step(network, done)
            done += 1

    serve(step)


if __name__ == "__main__":
    main(sys.argv[1])
