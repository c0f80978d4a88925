"""Launches, waits and copies of one round on the pretend GPU of the tests (``tests/pretend_device``), without a GPU.

    python scripts/bench/launches.py [W1 W2 W3 W8 ...] [--detail] KEY=VALUE ...    settings of fedsim.Engine

A *wait* is whatever stops the program until the device is done: numbers that are looked at, copies back, copies there
that are not from pinned memory. Host memory of the pretend GPU is no measure of a real one's, but its peak is one of
what would be on it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from by_fedsim import parts_of
from workloads import WORKLOADS

from fedsim import Engine, Evaluate
from fedsim.assembly.assemble import assemble
from fedsim.data import Dataset, Split
from tests.pretend_device import Counts, build, install


def counted(name: str, engine: Engine, counts: Counts) -> tuple[Counts, ...]:
    """The counts of a round and of an evaluation on 10,000 samples, one after the other."""
    parts = parts_of(WORKLOADS[name], engine)
    assert isinstance(parts.data, Dataset)
    random, train = np.random.default_rng(1), parts.data.train
    some = random.integers(len(train.x), size=10_000)
    data = replace(parts.data, test=Split(train.x[some], train.y[some]))
    assembled = assemble(replace(parts, data=data), data)
    backend = assembled.start()
    run = assembled.begin(backend, Evaluate(every=10**9))
    run.step()
    for what, do in (("round", run.step), ("evaluation", run.evaluate)):
        counts.reset()
        do()
        kinds = {kind: counts.times(kind) for kind in ("sync", "d2h", "h2d-wait", "h2d", "cpu-index")}
        size = {kind: sum(n for (k, _), n in counts.bytes.items() if k == kind) / 1e6 for kind in kinds}
        print(
            f"{name} {what}: blocks {run.jobs.blocks} {run.jobs.kernels}, launches {counts.launches}, waits "
            f"{counts.waits}, "
            + ", ".join(f"{kind} {n} ({size[kind]:.2f} MB)" for kind, n in kinds.items())
            + f", peak {counts.device.peak() / 1e6:.0f} MB",
            flush=True,
        )
        if DETAIL:
            for operation, n in sorted(counts.device.launches().items(), key=lambda one: -one[1])[:20]:
                print("   ", n, operation)
            for (kind, operation, where), n in counts.events.most_common(20):
                print("   ", kind, n, f"{counts.bytes[kind, where] / 1e6:.2f} MB", operation[:60], "|", where)
    backend.close()
    return ()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--detail", action="store_true", help="which operations, and which lines wait or copy")
    parser.add_argument("--built", type=Path, help="folder of a device that is compiled already, or will be")
    parser.add_argument("words", nargs="*", default=["W1", "W2", "W3", "W8"], metavar="ROW or KEY=VALUE")
    options = parser.parse_args()
    DETAIL = options.detail
    settings = dict(word.split("=") for word in options.words if "=" in word)
    with tempfile.TemporaryDirectory() as folder:
        heard = install(build(options.built or Path(folder)))
        chosen = Engine(backend="serial", device="cuda", **{k: yaml.safe_load(v) for k, v in settings.items()})
        for row in (word for word in options.words if "=" not in word):
            counted(row, chosen, heard)
