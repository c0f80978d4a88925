"""What a step of a small problem costs: gossip over a ring, least squares, full gradients, on one core.

    python scripts/bench_small.py [--only D1 D2 D3] [--rounds 200] [--repeats 5] [--dtype float64] [--jobs auto]

Rows are D-PSGD with n peers and d unknowns, 20 rows of A at every peer (D3: 200); nothing is measured in the rounds
that count. Figures are CPU microseconds for a peer and an iteration: the least of some repetitions, since a busy
machine only ever adds to it.

    D1  n =  10, d =  10
    D2  n = 100, d =  10
    D3  n = 100, d = 200
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from fedsim import Engine, Evaluate, Local
from fedsim.algorithms.dpsgd import DPSGD
from fedsim.assembly.assemble import assemble
from fedsim.assembly.parts import Parts
from fedsim.data import Quadratic
from fedsim.models import linear_zero
from fedsim.partition import Natural
from fedsim.runs.run import Run
from fedsim.topology import Ring

ROWS = {"D1": (10, 20, 10), "D2": (100, 20, 10), "D3": (100, 200, 200)}
"""Peers, rows of each, unknowns."""


def microseconds(run: Run, peers: int, rounds: int, repeats: int) -> float:
    """CPU microseconds of a peer and an iteration."""
    for _ in range(3):
        run.step()
    found = []
    for _ in range(repeats):
        begun = time.process_time()
        for _ in range(rounds):
            run.step()
        found.append(time.process_time() - begun)
    return 1e6 * min(found) / rounds / peers


def main() -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--rounds", type=int, default=200, help="of one repetition (default 200)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float64")
    parser.add_argument("--jobs", default="auto", help="engine.jobs (default auto)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    jobs = options.jobs if options.jobs == "auto" else int(options.jobs)
    table = Table(title=f"D-PSGD on a ring, least squares, full gradients, {options.dtype}, one core")
    for name in ("row", "peers", "unknowns", "CPU us per peer and iteration"):
        table.add_column(name, justify="left" if name == "row" else "right")
    for name in options.only:
        n, m, d = ROWS[name]
        engine = Engine(backend="serial", dtype=options.dtype, jobs=jobs)
        how: dict[str, Any] = {"local": Local(batch_size="full"), "engine": engine, "topology": Ring()}
        data = Quadratic(clients=n, rows=m, dim=d)
        assembled = assemble(Parts(DPSGD(lr=0.01), data, Natural(), linear_zero, 10**9, **how))
        backend = assembled.start()
        run = assembled.begin(backend, Evaluate(every=10**9))
        found = microseconds(run, n, options.rounds, options.repeats)
        backend.close()
        table.add_row(name, str(n), str(d), f"{found:.0f}")
    Console().print(table)


if __name__ == "__main__":
    main()
