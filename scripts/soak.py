"""A long run, watched from outside: does it take more memory, files, threads or shared memory the longer it goes on?

    python scripts/soak.py                                      2,000 rounds x 200 stateful clients, both backends
    python scripts/soak.py --backend serial --rounds 400 --clients 50

SCAFFOLD on handwritten digits, all clients in every round, a state for each, and a checkpoint when one is due.
Everything that the run started counts: driver, actors, Ray's own processes. The first quarter of the rounds is warm-up;
after it the figures are fitted by a line (least squares), whose slope is printed for 100 rounds.
RSS counts a page that processes share once for each of them; memory once in all, and without pages of files: those of
libraries are shared with whatever else runs on the machine, so their part of a run changes when other programs end.

Exit code 0: on every backend RSS, memory and its shared part grow by less than 1 MB in 100 rounds, files and threads by
less than 1. 1: something grows faster. 2: a run failed.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

UNITS = {"rss": "MB", "memory": "MB", "shm": "MB", "files": "", "threads": ""}
BAR = 1.0
"""Of each figure, in its unit, in 100 rounds."""
SAMPLES = 200
"""About so many in a run."""
Figures = dict[str, float]


def main() -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2000, help="at least 40 (default 2000)")
    parser.add_argument("--clients", type=int, default=200, help="all of them in every round (default 200)")
    parser.add_argument("--backend", nargs="+", choices=["serial", "ray"], default=["serial", "ray"])
    parser.add_argument("--actors", type=int, default=2, help="of Ray (default 2)")
    options = parser.parse_args()
    if options.rounds < 40 or options.clients < 1 or options.actors < 1:
        parser.error("--rounds must be >= 40, --clients and --actors >= 1")
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))  # so that the run does not outlive it
    good = True
    for backend in options.backend:
        engine = ["engine=serial"] if backend == "serial" else ["engine=ray", f"engine.actors={options.actors}"]
        with tempfile.TemporaryDirectory(prefix="fedsim-soak-") as folder:
            rounds, samples = watched(Path(folder), options.rounds, options.clients, engine)
        if rounds is None:
            print(f"{backend}: the run failed", file=sys.stderr)
            return 2
        good &= report(backend, rounds, samples, options.rounds)
    return 0 if good else 1


def watched(folder: Path, rounds: int, clients: int, engine: list[str]) -> tuple[list[int] | None, list[Figures]]:
    """Run once; rounds done and figures of each sample, or None and its figures where the run failed."""
    command = [sys.executable, "-m", "fedsim", *engine, f"rounds={rounds}", f"partition.clients={clients}"]
    command += ["algorithm=scaffold", "schedule=all", "local.steps=1", "model.hidden=[16]"]
    command += ["evaluate.every=100", f"hydra.run.dir={folder}/run"]
    metrics = folder / "run" / "metrics.jsonl"
    at: list[int] = []
    found: list[Figures] = []
    begun, step, said = time.monotonic(), max(1, rounds // SAMPLES), 0
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        while process.poll() is None:
            time.sleep(0.02)
            done = metrics.read_bytes().count(b"\n") - 1 if metrics.exists() else 0
            if done >= (at[-1] + step if at else step) and done < rounds:
                at.append(done)
                found.append(figures(process.pid))
            if done >= said + max(1, rounds // 20):
                said = done
                values = ", ".join(f"{name} {value:,.1f} {UNITS[name]}".rstrip() for name, value in found[-1].items())
                print(
                    f"{engine[0]}: round {done:,} of {rounds:,}, {time.monotonic() - begun:.0f} s: {values}", flush=True
                )
    except BaseException:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()
        raise
    return (at if process.returncode == 0 else None), found


def figures(session: int) -> Figures:
    """What all processes of a session take together; one that ends while it is looked at counts as gone."""
    total = dict.fromkeys(UNITS, 0.0)
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            if int((entry / "stat").read_text().rpartition(")")[2].split()[3]) != session:
                continue
            status = dict(line.split(":", 1) for line in (entry / "status").read_text().splitlines())
            memory = dict(line.split(":", 1) for line in (entry / "smaps_rollup").read_text().splitlines()[1:])
            files = len(list((entry / "fd").iterdir()))
        except OSError:
            continue
        total["rss"] += _kilobytes(status, "VmRSS") / 1000
        total["memory"] += (_kilobytes(memory, "Pss_Anon") + _kilobytes(memory, "Pss_Shmem")) / 1000
        total["shm"] += _kilobytes(memory, "Pss_Shmem") / 1000
        total["threads"] += int(status.get("Threads", 0))
        total["files"] += files
    return total


def _kilobytes(lines: Mapping[str, str], name: str) -> float:
    """A line of a file in /proc, 1,000 bytes each; 0 of a process that has ended."""
    return int(lines.get(name, "0 kB").split()[0]) * 1.024


def slopes(rounds: list[int], samples: list[Figures], total: int) -> Figures:
    """Growth of each figure in 100 rounds after the first quarter of them, by least squares."""
    later = [(done, sample) for done, sample in zip(rounds, samples, strict=True) if done >= total / 4]
    x = np.array([done for done, _ in later]) / 100
    return {name: float(np.polyfit(x, [sample[name] for _, sample in later], 1)[0]) for name in UNITS}


def report(backend: str, rounds: list[int], samples: list[Figures], total: int) -> bool:
    """Print a line for each figure; returns whether all are below the bar."""
    good = True
    for name, slope in slopes(rounds, samples, total).items():
        below = slope < BAR
        good &= below
        values = f"{samples[0][name]:,.1f} at first, {samples[-1][name]:,.1f} at last"
        unit = f" {UNITS[name]}".rstrip()
        print(f"{backend:7} {name:8} {slope:+.3f}{unit} in 100 rounds ({values})  {'flat' if below else 'GROWS'}")
    return good


if __name__ == "__main__":
    sys.exit(main())
