"""EC, EF21, EF21-SGDM, EControl and no compression in one of EControl's set-ups: a table, a picture over megabytes.

Runs `fedsim experiment=econtrol_SETUP` once for each method and seed with the same step, split, cohorts and
minibatches, into FOLDER/METHOD/SEED; what is there already is not run again. Further arguments go to every run.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from fedsim.record.figures import curves

METHODS = {
    "no compression": ["channel=[]", "~channel.topk"],
    "EC": ["channel=[ef14,topk]"],
    "EF21": ["channel=[ef21,topk]"],
    "EF21-SGDM": ["channel=[ef21_sgdm,topk]"],
    "EControl": ["channel=[econtrol,topk]"],
}
METRICS = {
    "quadratic": "eval/grad_norm2",
    "libsvm": "eval/grad_norm2",
    "mnist": "eval/accuracy",
    "cifar10": "eval/accuracy",
}


def run(setup: str, method: str, seed: int, folder: Path, extra: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Megabytes up [k] and the metric [k] after each evaluation."""
    where = folder / method.replace(" ", "_") / str(seed)
    if not (where / "summary.json").exists():
        command = [sys.executable, "-m", "fedsim", f"experiment=econtrol_{setup}", *METHODS[method], f"seed={seed}"]
        subprocess.run([*command, f"hydra.run.dir={where}", *extra], check=True)
    records = [json.loads(line) for line in (where / "metrics.jsonl").read_text().splitlines()]
    points = [(r.get("comm/uplink_total_bytes", 0) / 1e6, r[METRICS[setup]]) for r in records if METRICS[setup] in r]
    return np.array(points).T[0], np.array(points).T[1]


def row(method: str, found: list[tuple[np.ndarray, np.ndarray]], targets: list[float], *, up: bool) -> str:
    """Final metric, megabytes in all, megabytes until the uncompressed run's final metric."""
    last = np.array([ys[-1] for _, ys in found])
    reached = [
        xs[np.argmax(ys >= t if up else ys <= t)] if (ys >= t if up else ys <= t).any() else np.nan
        for (xs, ys), t in zip(found, targets, strict=True)
    ]
    total = np.mean([xs[-1] for xs, _ in found])
    spread = last.std(ddof=1) if len(last) > 1 else 0.0
    to_target = "not reached" if np.isnan(reached).any() else f"{np.mean(reached):.3g}"
    return f"| {method} | {last.mean():.4g} ± {spread:.2g} | {total:.3g} | {to_target} |"


def main() -> int:
    """Run, print the table, draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("setup", choices=list(METRICS))
    parser.add_argument("--folder", type=Path, help="default: outputs/econtrol_SETUP")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument(
        "--slack", type=float, default=0.0, help="how far from the uncompressed final metric counts as reaching it"
    )
    args, extra = parser.parse_known_args()
    folder = args.folder or Path("outputs") / f"econtrol_{args.setup}"
    up = METRICS[args.setup] == "eval/accuracy"
    found = {name: [run(args.setup, name, seed, folder, extra) for seed in args.seeds] for name in METHODS}
    targets = [float(ys[-1]) + (-args.slack if up else args.slack) for _, ys in found["no compression"]]
    print(f"| method | final {METRICS[args.setup]} | MB up in all | MB up to the uncompressed final value |")
    print("|---|---|---|---|")
    for name, runs in found.items():
        print(row(name, runs, targets, up=up))
    figure = curves(
        {name: runs[0] for name, runs in found.items()},
        f"econtrol_{args.setup}, seed {args.seeds[0]}",
        x="megabytes sent by all clients",
        y=METRICS[args.setup],
        log=("x",) if up else ("x", "y"),
    )
    figure.savefig(folder / "curves.png", dpi=120)
    print(f"picture: {folder / 'curves.png'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
