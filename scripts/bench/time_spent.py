"""Where a round's CPU time goes, for each workload, on one core: the profile of docs/performance.md.

    python scripts/bench/time_spent.py [--only W1 W2] [--rounds 5] [--set kernel=vmap ...]

Each workload runs in a process of its own, by fedsim in one process. Three groups of rounds are run: some that are only
timed (their CPU time is the whole), some under torch's profiler (the operators' share: products of matrices and
convolutions, all others) and some under cProfile, which divides what is left, Python, among torch, fedsim's rooms and
other packages. Products are counted by their shapes, in one round more; their rate, and that of the whole round, are
set against this core's rate for large products in float32 (float64 where the workload computes in it), measured beside.

Profilers make small things look larger: torch's profiler makes rounds of small operators up to twice as long, of which
the shares are then; cProfile lengthens small functions, among which what is left is divided.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import os
import pstats
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from by_fedsim import parts_of
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from workloads import WORKLOADS

import fedsim
from fedsim import Engine, Evaluate
from fedsim.assembly.assemble import assemble
from fedsim.ground.process import claim

FIRST = 10
"""Rounds before any is looked at: recordings are made and compared in the first ones."""

PRODUCTS = ("mm", "bmm", "addmm", "baddbmm", "mv", "addmv", "dot", "conv", "linear", "scaled_dot_product", "_sparse")
PLACES = ("torch", "kernels", "pool", "ground", "algorithms", "channel", "schedule", "objective", "other")


def is_product(name: str) -> bool:
    """Whether an operator multiplies matrices or convolves; oneDNN's and MKL's names as well."""
    bare = name.removeprefix("aten::").removeprefix("mkldnn_").removeprefix("_")
    return bare.startswith(PRODUCTS) or "convolution" in bare


def place_of(path: str) -> str:
    """The part of fedsim, or the package, that a Python file belongs to."""
    own = str(Path(fedsim.__file__).parent)
    if path.startswith(own):
        room = Path(path).relative_to(own).parts[0].removesuffix(".py")
        return room if room in PLACES else "other"
    return "torch" if path.startswith(str(Path(torch.__file__).parent)) else "other"


def cpu(work: Callable[[], Any]) -> float:
    """CPU seconds of this process."""
    start = time.process_time()
    work()
    return time.process_time() - start


def peak(dtype: torch.dtype) -> float:
    """FLOP/s of one core for products of 1,024 x 1,024, the best of ten."""
    a, b = (torch.randn(1024, 1024, dtype=dtype) for _ in range(2))
    return 2 * 1024**3 / min(cpu(lambda: a @ b) for _ in range(10))


def measured(name: str, settings: list[str], rounds: int) -> dict[str, Any]:
    """What a round of a workload takes, in CPU seconds, by kind."""
    claim()
    torch.set_num_threads(1)
    load = WORKLOADS[name]
    options = {key: yaml.safe_load(value) for key, value in (one.split("=") for one in settings)}
    options |= {"dtype": "float64"} if load.method == "dpsgd" else {}
    parts = parts_of(load, Engine(backend="serial", **options))
    assembled = assemble(parts, parts.data)  # type: ignore[arg-type]
    backend = assembled.start()
    run = assembled.begin(backend, Evaluate(every=10**9))
    rounds *= load.rounds

    def some() -> None:
        done = run.done
        while run.done < done + rounds:
            run.go(done + rounds - run.done)

    for _ in range(max(1, FIRST // rounds)):
        some()  # what is done once is done, recordings too
    whole = cpu(some)
    counted = FlopCounterMode(display=False)
    with counted:
        run.step()
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as traced:
        start = time.perf_counter()  # the profiler measures by this clock
        some()
        seconds = time.perf_counter() - start
    operators = Counter[str]()
    for event in traced.key_averages():
        if event.key.startswith("aten::") or "convolution" in event.key or "fedsim::" in event.key:
            operators["products" if is_product(event.key) else "elementwise"] += event.self_cpu_time_total / 1e6
    watch = cProfile.Profile()
    watch.enable()
    some()
    watch.disable()
    python = Counter[str]()
    for (path, _, _), (_, _, own, _, _) in pstats.Stats(watch).stats.items():  # type: ignore[attr-defined]
        if not path.startswith(("~", "<")):  # the rest are operators and other built-in functions
            python[place_of(path)] += own
    backend.close()
    return {
        "whole": whole / rounds,
        "flop": counted.get_total_flops(),
        "peak": peak(torch.float64 if options.get("dtype") == "float64" else torch.float32),
        # Of the time that the same rounds took under the profiler, which makes all of them longer.
        "operators": {key: value / seconds * whole / rounds for key, value in operators.items()},
        "python": dict(python),
    }


def line(name: str, got: dict[str, Any]) -> list[str]:
    """A row of the table."""
    whole, python = got["whole"], got["python"]
    products, others = (got["operators"].get(kind, 0.0) for kind in ("products", "elementwise"))
    left, total = max(0.0, whole - products - others), sum(python.values()) or 1.0
    shares = [left * python.get(place, 0.0) / total / whole for place in PLACES]
    kinds = [products / whole, others / whole, *shares[:4], sum(shares[4:])]
    rate = got["flop"] / products if products else 0.0
    last = [f"{rate / 1e9:.0f}", f"{rate / got['peak']:.0%}", f"{got['flop'] / whole / got['peak']:.0%}"]
    return [name, f"{1e3 * whole:.2f}", *(f"{share:.0%}" for share in kinds), *last]


def main() -> None:
    """Print the table, or measure one workload for it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=WORKLOADS, default=list(WORKLOADS), help="default: all of them")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each group (default 5)")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="settings of fedsim.Engine")
    parser.add_argument("--one", choices=WORKLOADS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measured(options.one, options.set, options.rounds)))
        return
    first = ["workload", "ms a round", "products", "other ops"]
    columns = [*first, "torch's Python", "kernels", "pool", "ground", "rest", "GFLOP/s", "of peak", "round of peak"]
    capability = torch.backends.cpu.get_cpu_capability()
    table = Table(title=f"CPU time of a round, one core, {capability}, torch {torch.__version__}")
    for column in columns:
        table.add_column(column, justify="left" if column == "workload" else "right")
    for name in track(options.only, "workloads", console=Console(stderr=True)):
        command = [sys.executable, __file__, "--one", name, "--rounds", str(options.rounds)]
        command += ["--set", *options.set] if options.set else []
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        if done.returncode:
            raise SystemExit(f"{name} failed:\n{done.stderr[-2000:]}")
        table.add_row(*line(name, json.loads(done.stdout.splitlines()[-1])))
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
