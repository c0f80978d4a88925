"""A gossip round among all peers against a bare sparse matrix product, measured side by side in one run.

    python scripts/bench_gossip.py [--peers 1000] [--parameters 100000] [--rounds 7] [--topologies ring torus]

A round of the engine is: every peer's offer, the product with W, every peer's step on its row. Medians over rounds that
take turns; one thread, float32; memory is the growth of the process above the peers' models.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
import warnings
from collections.abc import Callable
from functools import partial
from operator import matmul
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from fedsim.algorithms.dfedavg import DFedAvg
from fedsim.channel.channel import Channel
from fedsim.runs.gossip import Gossip
from fedsim.topology import Complete, Exponential, Grid, Ring, Torus
from fedsim.types import Round

TOPOLOGIES: dict[str, Any] = {
    "ring": Ring(),
    "grid": Grid(),
    "torus": Torus(),
    "exponential": Exponential(),
    "complete": Complete(),
}


def main() -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=int, default=1000)
    parser.add_argument("--parameters", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=7, help="counted rounds of each (default 7)")
    parser.add_argument("--topologies", nargs="+", choices=TOPOLOGIES, default=["ring", "torus", "exponential"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "Sparse")  # torch says that its CSR support is in beta
    n, d = options.peers, options.parameters
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(0))
    table = Table(title=f"one gossip round, {n:,} peers, {d:,} parameters: {x.nbytes / 1e6:,.0f} MB of models")
    for name in ("topology", "scipy product s", "torch product s", "fedsim s", "against the faster", "memory MB"):
        table.add_column(name, justify="left" if name == "topology" else "right")
    algorithm = DFedAvg(lr=0.1)
    gossip = Gossip(algorithm, Channel(), (d,), 0)
    peers, rnd = type(algorithm.init_client(x[0]))(x), Round(0, tuple(range(n)), n)
    for name in options.topologies:
        w = TOPOLOGIES[name].mixing(n, 0, 0).w.astype(np.float32)
        indptr, indices, data = (torch.from_numpy(array) for array in (w.indptr, w.indices, w.data))
        sparse = torch.sparse_csr_tensor(indptr, indices, data, size=(n, n))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        gossip.exchange(peers, ({}, {}), w, rnd, 0)
        memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3
        bare, other, ours = alternate(
            options.rounds,
            partial(matmul, w, x.numpy()),
            partial(matmul, sparse, x),
            partial(gossip.exchange, peers, ({}, {}), w, rnd, 0),
        )
        times = f"{ours / min(bare, other):.2f} times"
        table.add_row(name, f"{bare:.3f}", f"{other:.3f}", f"{ours:.3f}", times, f"{memory:,.0f}")
    Console().print(table)


def alternate(rounds: int, *steps: Callable[[], Any]) -> list[float]:
    """Median seconds of each step over rounds that take turns; the first does not count."""
    times: list[list[float]] = [[] for _ in steps]
    for r in range(rounds + 1):
        for step, mine in zip(steps, times, strict=True):
            start = time.perf_counter()
            step()
            if r:
                mine.append(time.perf_counter() - start)
    return [statistics.median(mine) for mine in times]


if __name__ == "__main__":
    main()
