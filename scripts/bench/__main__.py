"""How fast fedsim is, against loops written by hand and against other simulators, side by side in one run.

    python scripts/bench [--only W1 W2] [--backends serial ray] [--against flower pfl] [--rounds 7]

Every contender runs in a process of its own (rivals in an environment of their own, which is made where it is not
there), and they take turns, round by round: a noisy machine disturbs all of them. Figures are medians; quote the
ratios, not the seconds. CPU seconds are those of all processes of a contender. Nothing is evaluated.

    noop  clients that do nothing: 0.4 MB model, 50 of 100 clients a round
    W1    CNN, two 5x5 convolutions, 18k parameters; 100 clients x 600 samples, 10 a round, batch 32
    W1L   LEAF's CNN, 1.7M parameters; the same data
    W2    MLP 784-200-10; 1,000 clients x 60 samples, 100 a round, batch 20
    W3    binary logistic regression, 300 inputs; 1,000 clients x 30 samples, all in every round, full batch
    WT    transformer, 2 layers of width 64 with 4 heads, 32 tokens of 1,000, the next one predicted at every place;
          200 clients x 50 samples, 20 a round, batch 10
    WG    two-layer GRU of 64 units, 40 characters of 80, likewise; 100 clients x 60 samples, 10 a round, batch 10
    W4    ImageNet's ResNet-18 with GroupNorm on 32x32 images, as in FL-Simulator; 10 of 100 clients a round, one
          step of batch 50
    W6    DFedSAM on W1's CNN: 100 peers of a ring x 60 samples, batch 20
    W7    EControl around Top-K 1 % on W1
    W8    DP-SGD on W2
    WU1   unequal clients: 30, of 50 to 9,050 samples as in FedProx's synthetic data, all in every round; FedProx,
          logistic regression on 60 inputs, 4 epochs, batch 10
    WU2   unequal clients: 32,561 samples of 123 inputs (a9a's size) over ten by Dirichlet 0.5; MLP 123-37-1, batch 32
    D1    D-PSGD on a ring, least squares with full gradients: 10 peers, 10 unknowns, 20 rows each, in float64
    D2    likewise: 100 peers, 10 unknowns
    D3    likewise: 100 peers, 200 unknowns, 200 rows each
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import torch
from contender import Contender, Cost
from environments import ENVIRONMENTS, python_of
from rich.console import Console
from rich.progress import track
from rich.table import Table
from workloads import WORKLOADS, Workload

HERE = Path(__file__).resolve().parent
RIVALS = {
    "flower": ("noop", "W1", "W1L", "W2", "W3", "WT", "WG"),
    "pfl": ("W1", "W1L", "W2", "W3"),
    "blazefl": ("W1", "W1L", "W2"),
    "opacus": ("W8",),
    "decent_bench": ("D1", "D2", "D3"),
}
"""Which rows each rival's program knows."""


def command(who: str, name: str, backend: str, options: argparse.Namespace) -> list[str]:
    """The program of a contender."""
    python = sys.executable if who in ("hand", "fedsim") else python_of(who)
    actors = 1 if backend == "serial" else options.actors
    if who == "fedsim":
        settings = {"backend": backend, "device": options.device, "block": options.block, "kernel": options.kernel}
        settings |= {"dtype": "float64"} if WORKLOADS[name].method == "dpsgd" else {}
        settings |= {"batching": options.batching} | ({"actors": actors} if backend == "ray" else {})
        return [python, str(HERE / "by_fedsim.py"), name, *(f"{key}={value}" for key, value in settings.items())]
    if who == "pfl" and actors > 1:
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={actors}"]
        return [python, *launcher, str(HERE / "by_pfl.py"), name]
    more = [options.device] if who == "hand" and options.device != "cpu" else []
    return [python, str(HERE / f"by_{who}.py"), name, str(actors), *more]


def race(name: str, backend: str, options: argparse.Namespace, logs: Path) -> dict[str, Cost]:
    """The median cost of a round of each contender."""
    load = WORKLOADS[name]
    names = [] if load.method == "nothing" else ["hand"]
    names += ["fedsim", *(rival for rival in options.against if name in RIVALS[rival])]
    costs: dict[str, list[Cost]] = {who: [] for who in names}
    with ExitStack() as stack:
        racing = []
        for who in names:
            log = logs / f"{name}-{backend}-{who}.log"
            racing.append(Contender(who, command(who, name, backend, options), log))
            stack.callback(racing[-1].close)
        for r in range(options.rounds + 2):
            for one in racing:
                cost = one.step()
                if r >= 2:  # the first two rounds do not count
                    costs[one.name].append(cost)
    medians = {who: map(statistics.median, zip(*mine, strict=True)) for who, mine in costs.items()}
    return {who: Cost(*(value / load.rounds for value in both)) for who, both in medians.items()}


def main() -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="counted rounds of each (default 7)")
    parser.add_argument("--only", nargs="+", choices=WORKLOADS, default=["noop", "W1", "W2", "W3"])
    parser.add_argument("--backends", nargs="+", choices=["serial", "ray"], default=["serial", "ray"])
    parser.add_argument("--against", nargs="+", choices=RIVALS, default=[], help="simulators that race as well")
    parser.add_argument("--actors", type=int, default=2, help="processes of each contender, for ray (default 2)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--block", default="auto", help="engine.block (default auto)")
    parser.add_argument("--batching", choices=["auto", "loop"], default="auto", help="engine.batching")
    parser.add_argument("--kernel", choices=["auto", "stacked", "vmap"], default="auto", help="engine.kernel")
    parser.add_argument("--logs", type=Path, help="folder for what the contenders print (default: a temporary one)")
    options = parser.parse_args()
    logs = options.logs or Path(tempfile.mkdtemp(prefix="fedsim-bench-"))
    logs.mkdir(parents=True, exist_ok=True)
    table = Table(title=machine(options.device))
    for column in ("workload", "backend", "contender", "s/round", "CPU s/round", "fedsim is", "CPU us per client"):
        table.add_column(column, justify="left" if column in ("workload", "backend", "contender") else "right")
    rows = [(name, backend) for name in options.only for backend in options.backends]
    for name, backend in track(rows, "rows", console=Console(stderr=True)):
        add(table, name, WORKLOADS[name], backend, race(name, backend, options, logs), options.actors)
    Console(width=110).print(table)


def add(table: Table, name: str, load: Workload, backend: str, costs: dict[str, Cost], actors: int) -> None:
    """The lines of one row."""
    where = "1 process" if backend == "serial" else f"{actors} processes"
    for who, cost in costs.items():
        times = "" if who == "fedsim" else f"{cost.seconds / costs['fedsim'].seconds:.2f} times"
        micro = f"{1e6 * cost.cpu / load.cohort:,.0f}"
        table.add_row(name, where, who, f"{cost.seconds:.4f}", f"{cost.cpu:.4f}", times, micro)
        name = where = ""
    table.add_section()


def machine(device: str) -> str:
    """What the figures were measured on."""
    cpu = torch.backends.cpu.get_cpu_capability()
    chip = torch.cuda.get_device_name() if device == "cuda" else f"{os.cpu_count()} cores, {platform.machine()} {cpu}"
    return f"{chip}, torch {torch.__version__}, Python {platform.python_version()}"


if __name__ == "__main__":
    assert set(RIVALS) <= set(ENVIRONMENTS)
    main()
