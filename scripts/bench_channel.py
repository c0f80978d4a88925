"""Speed of the channel's layers on one vector, one thread: a table, with torch.topk measured in the same run.

A layer's time is what a client spends on compressing, decompressing and counting; `encode` is the time to make the real
bytes, which normal runs only count.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from fedsim.channel import wire
from fedsim.channel.half import Half
from fedsim.channel.natural import Natural
from fedsim.channel.noise import Addressed
from fedsim.channel.qsgd import QSGD
from fedsim.channel.randk import RandK
from fedsim.channel.sign import Sign
from fedsim.channel.terngrad import TernGrad
from fedsim.channel.topk import TopK
from fedsim.channel.uniform import Uniform

LAYERS: dict[str, Any] = {
    "topk 1 %": TopK(ratio=0.01),
    "topk 10 %": TopK(ratio=0.1),
    "randk 1 %": RandK(ratio=0.01),
    "sign": Sign(),
    "qsgd": QSGD(),
    "natural": Natural(),
    "terngrad": TernGrad(),
    "int8": Uniform(8),
    "fp16": Half("fp16"),
}


class Line:
    """The end of the channel: counts, and keeps what it was sent."""

    content: dict[str, Any]

    def __call__(self, v: Tensor, *sides: wire.Side) -> tuple[Tensor, tuple[wire.Side, ...], int]:
        self.content = {"update": (v, sides)}
        return v, sides, wire.encoded_size(self.content)


def _topk(v: Tensor, k: int) -> Any:
    return v.abs().topk(k)


def milliseconds(work: Callable[[], Any], repeats: int) -> float:
    """The best of several runs."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return 1e3 * min(times)


def main() -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=10_000_000, help="entries of the vector (default 10 million)")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each, of which the best counts (default 5)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    v = torch.randn(options.size, generator=torch.Generator().manual_seed(0))
    table = Table(
        title=f"{options.size:,} floats; {os.cpu_count()} cores {platform.machine()}, torch {torch.__version__}"
    )
    for name in ("layer", "layer ms", "times torch.topk", "count us", "encode ms", "MB/s of input", "bits per entry"):
        table.add_column(name, justify="left" if name == "layer" else "right")
    line, client = Line(), torch.zeros((), dtype=torch.int64)
    noise = Addressed(0, "bench", 0, client)
    for name, layer in LAYERS.items():
        k = options.size // (100 if "1 %" in name else 10)
        reference = milliseconds(partial(_topk, v, k), options.repeats) if "topk" in name else None
        took = milliseconds(partial(layer, v, (), noise, line), options.repeats)
        content = line.content
        count = 1e3 * milliseconds(partial(wire.encoded_size, content), options.repeats)
        encode = milliseconds(partial(wire.encode, content), options.repeats)
        table.add_row(
            name,
            f"{took:.0f}",
            "-" if reference is None else f"{took / reference:.2f}",
            f"{count:.0f}",
            f"{encode:.0f}",
            f"{4e-3 * options.size / encode:,.0f}",
            f"{8 * wire.encoded_size(content) / options.size:.3f}",
        )
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
