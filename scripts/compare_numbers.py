"""Compare every number of two checkouts: the same toy runs in both, bit by bit.

    python scripts/compare_numbers.py OTHER_CHECKOUT [--only SUBSTRING ...] [--json FILE] [--other-json FILE]
    python scripts/compare_numbers.py --against FILE [--only SUBSTRING ...]

For a change that must change no number: OTHER_CHECKOUT is a folder with the commit before it (``git worktree add``),
this checkout is the commit after it. The runs are those of ``toy_runs.py``: every preset made small, every algorithm,
channel layer, partition, schedule, topology, data set, model and privacy mechanism of either checkout's ``configs/``.
Compared are status, digest, every metric of every round, bytes, epsilon and the clients' final states, without
tolerance; times are left out. Each checkout runs in a process of its own, so the other one may have its modules
elsewhere.

Data sets that are not on this machine are named and left out; so are combinations that both checkouts refuse. Exit code
1 when anything differs. About ten minutes for each checkout on one core that is otherwise idle.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parents[1]
RUNS = Path(__file__).resolve().with_name("toy_runs.py")
MOST = 5
"""Differences that are shown of one run."""

Numbers = dict[str, dict[str, Any]]
"""What each run came to, by its name."""


def collected(checkout: Path, only: Sequence[str]) -> Numbers:
    """The numbers of a checkout, computed in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "numbers.json"
        env = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
        sys.stderr.write(f"{checkout}\n")
        subprocess.run([sys.executable, str(RUNS), str(checkout), str(out), *only], env=env, check=True)
        found: Numbers = json.loads(out.read_text())
    return found


def differences(one: Any, other: Any, where: str = "") -> list[str]:
    """Where two trees of numbers differ: one line each, ``WHERE: THIS, was THAT``; equal means to the last bit."""
    if isinstance(one, dict) and isinstance(other, dict):
        names = sorted({*one, *other})
        return [d for n in names for d in differences(one.get(n), other.get(n), f"{where}/{n}" if where else n)]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return [d for i, (a, b) in enumerate(zip(one, other, strict=True)) for d in differences(a, b, f"{where}[{i}]")]
    return [] if repr(one) == repr(other) else [f"{where}: {one!r}, was {other!r}"]  # repr: NaN equals NaN, 1 not 1.0


def comparison(these: Numbers, others: Numbers) -> dict[str, list[str]]:
    """The differences of each run that has any. A refusal may be worded anew; a run that only one side has differs."""
    found = {}
    for name in sorted({*these, *others}):
        if name not in these or name not in others:
            found[name] = ["only in this checkout" if name in these else "only in the other"]
        elif not ("refused" in these[name] and "refused" in others[name]):
            found[name] = differences(these[name], others[name])
    return {name: lines for name, lines in found.items() if lines}


def left_out(numbers: Numbers, why: str) -> list[str]:
    """The runs that have no numbers for a reason."""
    return sorted(name for name, found in numbers.items() if why in found)


def main() -> int:
    """Compare, and say how it went; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", nargs="?", type=Path, help="the folder of the other checkout")
    parser.add_argument("--against", type=Path, metavar="FILE", help="numbers of an earlier --json instead")
    parser.add_argument("--only", nargs="+", default=[], metavar="SUBSTRING", help="runs whose name holds one of these")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write this checkout's numbers")
    parser.add_argument("--other-json", type=Path, metavar="FILE", help="write the other checkout's numbers")
    args = parser.parse_args()
    if (args.other is None) == (args.against is None):
        parser.error("give the folder of the other checkout, or --against FILE")
    others = json.loads(args.against.read_text()) if args.against else collected(args.other.resolve(), args.only)
    others = {n: v for n, v in others.items() if not args.only or any(text in n for text in args.only)}
    if args.other_json:
        args.other_json.write_text(json.dumps(others, indent=1, sort_keys=True))
    these = collected(HERE, args.only)
    if args.json:
        args.json.write_text(json.dumps(these, indent=1, sort_keys=True))
    found = comparison(these, others)
    console = Console()
    for why in ("absent", "refused", "failed"):
        names = left_out(these, why)
        if names:
            console.print(f"{len(names)} {why}: {', '.join(names)}", markup=False, highlight=False)
    if found:
        table = Table("run", "this checkout, was the other")
        for name, lines in found.items():
            more = [f"and {len(lines) - MOST} more"] if len(lines) > MOST else []
            table.add_row(name, "\n".join([*lines[:MOST], *more]))
        console.print(table, markup=False)
    ran = sum("status" in numbers for numbers in these.values())
    console.print(f"{ran} runs compared, {len(found)} differ", highlight=False)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
