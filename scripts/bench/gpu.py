"""First figures of fedsim on a GPU, in one command of less than eight minutes.

    python scripts/bench/gpu.py [--only PART ...] [--minutes 7.5] [--pretend] [--built FOLDER]

Each part is a process of its own that is ended when its time is over. What a part finds is printed at once, and after
each part the table of all that has been found so far. Without a GPU it ends with one line; ``--pretend`` tries the
program on the pretend GPU of the tests (``tests/pretend_device``), on small problems, whose times say nothing.

    bits       the same bits twice, and after a resume; numbers beside those of the CPU
    W1 ... W4  seconds a round, kernel, clients at once and peak memory of rows of ``python scripts/bench``
    fedspeed   FedSpeed as FL-Simulator runs it: ResNet-18 with GroupNorm on images of CIFAR-10's size, 10 of 100
               clients, batch 50, 5 epochs, flips and crops; in float32 and TF32. The bar is 1.5 s a round (29.5 s on
               a V100 there)
    W8         DP-SGD on W2, whose noise is drawn on the GPU
    actors     W2 by one and by two Ray actors that share the GPU, or have one each; the same bits
    catalogue  every method of the catalogue, three rounds of seven clients, until the time is over
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from threading import Timer
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from by_fedsim import parts_of  # noqa: E402
from workloads import WORKLOADS, Workload  # noqa: E402

from fedsim import Engine, Evaluate, Local, simulate  # noqa: E402
from fedsim.aggregate import Mean  # noqa: E402
from fedsim.algorithms.fedspeed import FedSpeed  # noqa: E402
from fedsim.assembly.assemble import assemble  # noqa: E402
from fedsim.assembly.parts import Parts  # noqa: E402
from fedsim.data import Dataset, Split  # noqa: E402
from fedsim.data.augment import Augment  # noqa: E402
from fedsim.models import resnet18_gn  # noqa: E402
from fedsim.partition import Natural  # noqa: E402
from fedsim.record.checkpoint import Checkpointing  # noqa: E402
from fedsim.schedule import Uniform  # noqa: E402

Row = tuple[str, str, str]
"""Part, what was measured, what came out."""

ROUNDS = 5
MARK = "ROW "


def synchronize() -> None:
    """Wait until the GPU is done."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()


def peak() -> str:
    """Most memory that was in use on the GPU at once."""
    there: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return f"{torch.cuda.max_memory_allocated() / 2**20:,.0f} MiB" if there else "-"


def timed(parts: Parts, what: str, seconds: float) -> Iterator[tuple[str, str, str]]:
    """(what, its figures, its digest) of a run: two rounds, and then as many as the time allows, at most ROUNDS."""
    end = time.monotonic() + seconds
    data = parts.data if isinstance(parts.data, Dataset) else None
    assembled = assemble(parts, data)
    backend = assembled.start()
    try:
        run = assembled.begin(backend, Evaluate(every=10**9))
        times: list[float] = []
        for r in range(2 + ROUNDS):
            synchronize()
            began = time.perf_counter()
            run.step()
            synchronize()
            if r >= 2:
                times.append(time.perf_counter() - began)
            if r == 1:  # so that two runs can be compared, however many rounds the clock allowed
                digest = run.digest()
            if times and time.monotonic() > end:
                break
        how = f"{run.jobs.kernels[0]}, {run.jobs.blocks[0]} clients at once"
        yield what, f"{1e3 * statistics.median(times):.1f} ms a round ({how}), peak {peak()}", digest
    finally:
        backend.close()


def small(load: Workload, pretend: bool) -> Workload:
    """A row of the benchmark, or what the pretend GPU does in a moment."""
    if not pretend:
        return load
    return replace(load, clients=8, samples=12, cohort=4, batch=load.batch if load.batch == "full" else 6)


def row(name: str, seconds: float, pretend: bool) -> Iterator[Row]:
    """A row of the benchmark."""
    parts = parts_of(small(WORKLOADS[name], pretend), Engine(backend="serial", device="cuda"))
    for what, found, _ in timed(parts, WORKLOADS[name].method, seconds / 2):
        yield name, what, found


def bits(seconds: float, pretend: bool) -> Iterator[Row]:
    """The same bits twice and after a resume, and how far they are from the CPU's."""
    load = small(replace(WORKLOADS["W2"], clients=100, cohort=20), pretend)

    def result(device: Any, rounds: int, folder: Path | None = None, resume: bool = False) -> Any:
        parts = parts_of(load, Engine(backend="serial", device=device))
        given: dict[str, Any] = {
            name: getattr(parts, name) for name in ("data", "partition", "model", "schedule", "local", "engine")
        }
        saved: dict[str, Any] = (
            {"run_dir": folder, "checkpoint": Checkpointing(every=1), "resume": resume} if folder else {}
        )
        return simulate(parts.algorithm, rounds=rounds, evaluate=Evaluate(every=10**9), **given, **saved)

    whole, again, here = result("cuda", 4), result("cuda", 4), result("cpu", 4)
    same = whole.summary["digest"] == again.summary["digest"]
    yield "bits", "the same bits twice", "yes" if same else "NO"
    far = (whole.server.x - here.server.x).abs().max() / here.server.x.abs().max()
    yield "bits", "largest difference from the CPU after 4 rounds, of the largest parameter", f"{float(far):.1e}"
    with tempfile.TemporaryDirectory() as folder:
        result("cuda", 2, Path(folder) / "run")
        resumed = result("cuda", 4, Path(folder) / "run", resume=True)
    same = resumed.summary["digest"] == whole.summary["digest"]
    yield "bits", "the same bits after a resume", "yes" if same else "NO"


def fedspeed(seconds: float, pretend: bool) -> Iterator[Row]:
    """FedSpeed in FL-Simulator's setting, on random images."""
    clients, samples, cohort, batch = (4, 6, 2, 3) if pretend else (100, 500, 10, 50)
    random = np.random.default_rng(0)
    x = random.integers(256, size=(clients * samples, 3, 32, 32), dtype=np.uint8)
    owners = np.repeat(np.arange(clients), samples)
    train = Split(x, random.integers(10, size=len(x)), owners)
    scale: dict[str, Any] = {"mean": (0.491, 0.482, 0.447), "std": (0.247, 0.244, 0.262), "augment": Augment(crop=0.5)}
    data = Dataset("images", train, None, "classification", 10, **scale)
    rule = FedSpeed(lr=0.1, lr_decay=0.998, weight_decay=1e-3, clip=10.0)
    local, mean = Local(epochs=1 if pretend else 5, batch_size=batch), Mean(weights="uniform")
    for precision in ("float32", "tf32"):
        engine = Engine(backend="serial", device="cuda", precision=precision)
        parts = Parts(rule, data, Natural(), resnet18_gn, 10**9, Uniform(cohort=cohort), local, mean, engine=engine)
        for what, found, _ in timed(parts, f"{precision}: bar 1500 ms a round", seconds / 3):
            yield "fedspeed", what, found


def actors(seconds: float, pretend: bool) -> Iterator[Row]:
    """One and two actors."""
    if pretend:
        yield "actors", "Ray", "not tried: actors have no pretend GPU"
        return
    digests = []
    for number in (1, 2):
        engine = Engine(backend="ray", actors=number, jobs=2, device="cuda")
        for what, found, digest in timed(parts_of(WORKLOADS["W2"], engine), f"W2, {number} actors", seconds / 3):
            yield "actors", what, found
            digests.append(digest)
    yield "actors", "the same bits by one and two", "yes" if digests[0] == digests[1] else "NO"


def catalogue(seconds: float, pretend: bool) -> Iterator[Row]:
    """Every method, as the tests run it."""
    from tests.laws.test_catalogue import ALGORITHMS, FEW, run

    end, done, bad = time.monotonic() + seconds - 15, 0, 0
    for name in ALGORITHMS:
        if time.monotonic() > end:
            break
        try:
            result = run(name, FEW, device="cuda")
            losses = [record["eval/loss"] for record in result.metrics]
            fine = result.status == "finished" and np.isfinite(losses).all() and losses[-1] != losses[0]
            problem = "" if fine else f"{result.status}, losses {losses}"
        except Exception as error:
            problem = " ".join(f"{type(error).__name__}: {error}".split())[:400]
        done += 1
        if problem:
            bad += 1
            yield "catalogue", name, problem
    yield "catalogue", f"{done} of {len(ALGORITHMS)} methods ran", f"{bad} failed"


def of_row(name: str) -> Callable[[float, bool], Iterator[Row]]:
    """A row of the benchmark as a part."""
    return lambda seconds, pretend: row(name, seconds, pretend)


PARTS: dict[str, tuple[float, Callable[[float, bool], Iterator[Row]]]] = {
    "bits": (50, bits),
    "W1": (25, of_row("W1")),
    "W2": (25, of_row("W2")),
    "W3": (25, of_row("W3")),
    "W4": (35, of_row("W4")),
    "fedspeed": (70, fedspeed),
    "W8": (25, of_row("W8")),
    "actors": (60, actors),
    "catalogue": (200, catalogue),
}
"""{part: most seconds that it gets, with the start of its process; what it does}."""


def work(part: str, seconds: float, built: Path | None) -> None:
    """A part, in this process: a line for each row that it finds."""
    if built is not None:
        from tests.pretend_device import build, install

        install(build(built))
    for found in PARTS[part][1](seconds, built is not None):
        print(MARK + json.dumps(found), flush=True)


def rows_of(part: str, seconds: float, built: Path | None) -> Iterator[Row]:
    """What a process of its own finds, until its time is over."""
    command = [sys.executable, str(Path(__file__).resolve()), "--part", part, "--seconds", str(seconds)]
    command += ["--built", str(built), "--pretend"] if built else []
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True, cwd=ROOT
        )
        timer = Timer(seconds, os.killpg, (process.pid, signal.SIGKILL))
        timer.start()
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith(MARK):
                    yield tuple(json.loads(line.removeprefix(MARK)))
            code = process.wait()
        finally:
            timer.cancel()
        if code == -signal.SIGKILL:
            yield part, "ended", f"after {seconds:.0f} s, its time"
        elif code:
            errors.seek(0)
            last = [line.strip() for line in errors.read().splitlines() if line.strip()][-1:]
            yield part, "failed", (last or [f"exit code {code}"])[0][:400]


def table(rows: list[Row], title: str) -> Table:
    """All that was found."""
    shown = Table("part", "what", "found", title=title)
    for found in rows:
        shown.add_row(*found)
    return shown


def main() -> None:
    """Run the parts, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="these parts (default: all)")
    parser.add_argument("--minutes", type=float, default=7.5, help="most minutes for all parts (default 7.5)")
    parser.add_argument("--pretend", action="store_true", help="on the pretend GPU of the tests (needs a C++ compiler)")
    parser.add_argument("--built", type=Path, help="folder where the pretend GPU is compiled, or lies already")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        work(options.part, options.seconds, options.built if options.pretend else None)
        return
    if not options.pretend and not torch.cuda.is_available():
        sys.exit("error: torch finds no GPU here; --pretend tries this program without one")
    console, found = Console(), list[Row]()
    with tempfile.TemporaryDirectory() as folder:
        built = None
        if options.pretend:
            from tests.pretend_device import build

            built = options.built or Path(folder)
            built.mkdir(parents=True, exist_ok=True)
            build(built)
        chip = "the pretend GPU, whose times say nothing" if built else torch.cuda.get_device_name()
        end = time.monotonic() + 60 * options.minutes
        for part in options.only:
            left = end - time.monotonic()
            mine = [(part, "left out", "the time was over")] if left < 15 else None
            for one in mine or rows_of(part, min(PARTS[part][0], left), built):
                print(*one, sep=" | ", flush=True)
                found.append(one)
            console.print(table(found, f"{chip}, torch {torch.__version__}"))


if __name__ == "__main__":
    main()
