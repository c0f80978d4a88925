"""How a run grows with the number of its clients: time to start, seconds a round, peak memory, and their exponents.

    python scripts/scale.py                                        10^3 to 10^6 clients, with and without client state;
                                                                   10^3 and 10^4 clients in a round; 10^3 and 10^4 peers
    python scripts/scale.py --kinds clients --clients 1000 100000  only FedAvg, populations of these sizes

Kinds of run, logistic regression on eight features, a sample for each client, one local step, one process, one thread:

    clients   FedAvg, --cohort clients in a round
    state     SCAFFOLD, likewise: a state for every client that ever took part
    wide      FedAvg, all clients in every round
    peers     D-PSGD on a ring, all peers in every round

Every run has a process of its own, so that peak memory is the run's. "start" is what the final table of a run calls
so: from the data in memory to the first round; imports are not in it. A round and its evaluation are medians over all
rounds but the first. CPU seconds (user and system), of the start and of a round with its evaluation, are what counts
where other programs keep the machine busy. An exponent is the slope of the logarithms (least squares): 0 is flat, 1
grows like the number of clients.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from itertools import pairwise
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

SIZES = {
    "clients": (10**3, 10**4, 10**5, 10**6),
    "state": (10**3, 10**4, 10**5, 10**6),
    "wide": (10**3, 10**4),
    "peers": (10**3, 10**4),
}
"""Numbers of clients of each kind of run, unless others are given."""
COLUMNS = {
    "start_s": "start s",
    "start_cpu_s": "start CPU s",
    "round_s": "round s",
    "evaluate_s": "eval. s",
    "round_cpu_s": "both CPU s",
    "memory_mb": "peak MB",
}
FEATURES, TESTED = 8, 1000


def main() -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=SIZES, default=list(SIZES), help="default: all")
    parser.add_argument(
        "--clients", nargs="+", type=int, metavar="N", help="populations of every kind that is measured"
    )
    parser.add_argument("--cohort", type=int, default=100, help="clients in a round of clients and state (default 100)")
    parser.add_argument("--rounds", type=int, default=6, help="of each run, at least 2 (default 6)")
    parser.add_argument("--folder", action="store_true", help="keep runs in a folder: its pictures and files count too")
    parser.add_argument("--json", action="store_true", help="also print every figure, one run a line")
    parser.add_argument("--one", nargs=2, metavar=("KIND", "N"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rounds < 2 or options.cohort < 1 or min(options.clients or [1]) < 1:
        parser.error("--rounds must be >= 2, --cohort and --clients >= 1")
    if options.one:
        json.dump(measured(options.one[0], int(options.one[1]), options), sys.stdout)
        return 0
    todo = [(kind, n) for kind in options.kinds for n in options.clients or SIZES[kind]]
    found: list[dict[str, Any]] = []
    console = Console()
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("", total=len(todo))
        for kind, n in todo:
            bar.update(task, description=f"{kind}, {n:,} clients")
            again = [sys.executable, __file__, *sys.argv[1:], "--one", kind, str(n)]
            done = subprocess.run(again, stdout=subprocess.PIPE, text=True, check=False)
            if done.returncode:
                console.print(f"{kind} with {n:,} clients failed; what it said is above")
                return 1
            found.append({"kind": kind, "clients": n, **json.loads(done.stdout)})
            bar.advance(task)
    console.print(table_of(found))
    if options.json:
        for one in found:
            print(json.dumps(one))
    return 0


def table_of(found: Sequence[dict[str, Any]]) -> Table:
    """A row for each run, and below those of a kind their exponents."""
    table = Table(title="fedsim, by the number of clients")
    for name in ("run", "clients", *COLUMNS.values()):
        table.add_column(name, justify="left" if name == "run" else "right", no_wrap=name in ("run", "clients"))
    for kind in dict.fromkeys(one["kind"] for one in found):
        runs = [one for one in found if one["kind"] == kind]
        for one in runs:
            table.add_row(kind, f"{one['clients']:,}", *(f"{one[name]:,.3g}" for name in COLUMNS))
        if len({one["clients"] for one in runs}) > 1:
            ns = [one["clients"] for one in runs]
            slopes = [f"{exponent(ns, [one[name] for one in runs]):.2f}" for name in COLUMNS]
            table.add_row("exponent", "", *slopes, style="bold", end_section=True)
    return table


def exponent(ns: Sequence[int], values: Sequence[float]) -> float:
    """The slope of log(value) against log(n), by least squares; values must be above 0."""
    x, y = np.log(np.asarray(ns, dtype=float)), np.log(np.asarray(values, dtype=float))
    return float(((x - x.mean()) * (y - y.mean())).sum() / np.square(x - x.mean()).sum())


def measured(kind: str, n: int, options: argparse.Namespace) -> dict[str, float]:
    """What a run of ``n`` clients takes, in this process."""
    from torch import nn

    from fedsim import Local, simulate
    from fedsim.aggregate import Mean
    from fedsim.algorithms.dpsgd import DPSGD
    from fedsim.algorithms.fedavg import FedAvg
    from fedsim.algorithms.scaffold import Scaffold
    from fedsim.callbacks import Callback
    from fedsim.data import Dataset, Split
    from fedsim.partition import Iid
    from fedsim.schedule import All, Uniform
    from fedsim.topology import Ring

    class Logistic(nn.Linear):
        def __init__(self, input_shape: Sequence[int], outputs: int):
            super().__init__(math.prod(input_shape), outputs)

    spent: list[float] = []  # CPU seconds when a record came

    class Clock(Callback):
        def record(self, record: Mapping[str, float]) -> None:
            spent.append(time.process_time())

    rng = np.random.default_rng(0)
    x = rng.normal(size=(n + TESTED, FEATURES)).astype(np.float32)
    y = (x[:, 0] > 0).astype(np.int64)
    algorithms = {"clients": FedAvg, "state": Scaffold, "wide": FedAvg, "peers": DPSGD}
    cohort = min(options.cohort, n)
    begun = time.process_time()
    with tempfile.TemporaryDirectory(prefix="fedsim-scale-") if options.folder else nullcontext() as folder:
        result = simulate(
            algorithms[kind](lr=0.1),
            data=Dataset("scale", Split(x[:n], y[:n]), Split(x[n:], y[n:]), "classification", 2),
            partition=Iid(clients=n),
            model=Logistic,
            rounds=options.rounds,
            aggregate=Mean(weights="uniform" if kind == "state" else "examples"),
            schedule=Uniform(cohort=cohort) if kind in ("clients", "state") else All(),
            local=Local(steps=1, batch_size=32),
            topology=Ring() if kind == "peers" else None,
            run_dir=None if folder is None else f"{folder}/run",
            callbacks=[Clock()],  # type: ignore[abstract]
        )
    records = result.metrics[2:]
    found = {name: statistics.median(one[f"time/{name}"] for one in records) for name in ("round_s", "evaluate_s")}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)
    cpu = {
        "start_cpu_s": spent[0] - begun,
        "round_cpu_s": statistics.median(after - before for before, after in pairwise(spent[1:])),
    }
    return {"start_s": result.summary["time/start_s"], **found, **cpu, "memory_mb": peak}


if __name__ == "__main__":
    sys.exit(main())
