"""DIFF2-GD against DP-GD and noiseless gradient descent on California housing, at equal (epsilon, delta).

The setting is Murata and Suzuki's (ICML 2023, arXiv 2302.03884 and its code): 10 clients, an 8-10-1 softplus network,
2,000 rounds, delta 1e-5; `fedsim experiment=diff2_california` is one such run. eta is the first of 1, 1/2, ..., 1/512
that does not diverge (fewer than five evaluations above 1.05 times the lowest training loss so far), for the private
methods from that of noiseless gradient descent on; the other hyper-parameters are those with the lowest training loss,
seed 0: a choice that is not itself private. To afford the grid, DIFF2 takes DP-GD's C1, and the points run for 400
rounds under the noise of 2,000, the best few of them then in full. Every run is a file in FOLDER; what is there already
is not run again, so that processes may share the work: one for each epsilon, say.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from fedsim import Engine, Evaluate, Local, Mean, simulate
from fedsim.algorithms.diff2 import Diff2
from fedsim.data import CaliforniaHousing, Dataset
from fedsim.errors import InputError
from fedsim.models import mlp
from fedsim.partition import Iid
from fedsim.privacy.config import Own, promised
from fedsim.record.figures import curves
from fedsim.schedule import All

CLIENTS, DELTA, EVERY = 10, 1e-5, 20
PROBE = 100  # rounds that show most divergence
ETAS = [2.0**-k for k in range(10)]
COLUMNS = ("round", "eval/train_loss", "eval/grad_norm2", "eval/loss")


@dataclass(frozen=True)
class Setting:
    """One method and its hyper-parameters; epsilon None: no noise and no clipping."""

    epsilon: float | None
    period: int = 1
    c1: float | None = None
    c2: float | None = None
    lr: float = 1.0

    @property
    def method(self) -> str:
        """The name of the method in the paper's table."""
        return "GD" if self.epsilon is None else "DP-GD" if self.period == 1 else "DIFF2-GD"

    def algorithm(self, rounds: int) -> Diff2:
        """With the noise that makes this many rounds cost epsilon."""
        rule = Diff2(lr=self.lr, period=self.period, c1=self.c1, c2=self.c2)
        if self.epsilon is None:
            return rule
        # the multiplier depends on the period only: sizes cancel between sensitivity and noise
        promise: Any = Own(DELTA, target_epsilon=self.epsilon)
        _, ledger = promised(promise, rule, All(), [1] * CLIENTS, rounds)
        return replace(rule, noise_multiplier=ledger.noise_multiplier)


@dataclass(frozen=True)
class Runs:
    """Runs on one data set, kept in a folder."""

    data: Dataset
    folder: Path
    rounds: int

    def points(self, setting: Setting, rounds: int, seed: int = 0) -> np.ndarray:
        """[evaluations, 4] of ``COLUMNS``; NaN from where the run diverged to numbers that are none."""
        parts = [f"{k}={v:g}" for k, v in asdict(setting).items() if v is not None]
        path = self.folder / f"{'-'.join(parts)}-rounds={rounds}of{self.rounds}-seed={seed}.json"
        if not path.exists():
            path.write_text(json.dumps(self._run(setting, rounds, seed)))
            print(f"{path.stem}: {json.loads(path.read_text())[-1]}", file=sys.stderr, flush=True)
        return np.array(json.loads(path.read_text()), dtype=float)

    def _run(self, setting: Setting, rounds: int, seed: int) -> list[list[float]]:
        result = simulate(
            setting.algorithm(self.rounds),
            data=self.data,
            partition=Iid(CLIENTS),
            model=partial(mlp, hidden=(10,), activation="softplus"),
            rounds=rounds,
            schedule=All(),
            local=Local(steps=1, batch_size="full"),
            aggregate=Mean(weights="uniform"),
            engine=Engine(backend="serial", block=CLIENTS, jobs=1),
            evaluate=Evaluate(every=EVERY, gradient=True),
            seed=seed,
        )
        points = [[r[name] for name in COLUMNS] for r in result.metrics if "eval/train_loss" in r]
        return points if result.status == "finished" else [*points, [rounds, *[float("nan")] * 3]]

    def stable(self, setting: Setting, rounds: int) -> tuple[Setting, np.ndarray] | None:
        """With the first eta, from its own on, that does not diverge, and that run; None when all do."""
        for lr in [eta for eta in ETAS if eta <= setting.lr]:
            tried = replace(setting, lr=lr)
            if any(diverged(self.points(tried, n)[:, 1]) for n in sorted({min(PROBE, rounds), rounds})):
                continue
            return tried, self.points(tried, rounds)
        return None

    def best(self, grid: Iterable[Setting], screen: int, finalists: int) -> Setting:
        """The setting with the lowest training loss.

        Raises:
            InputError: all of them diverge.
        """
        screened = [found for setting in grid if (found := self.stable(setting, screen))]
        screened.sort(key=_lowest)
        full = [found for setting, _ in screened[:finalists] if (found := self.stable(setting, self.rounds))]
        if not full:
            raise InputError(f"every eta from {ETAS[0]:g} to {ETAS[-1]:g} diverges for the whole grid; widen it")
        return min(full, key=_lowest)[0]


def _lowest(found: tuple[Setting, np.ndarray]) -> float:
    return float(found[1][:, 1].min())


def diverged(losses: np.ndarray) -> bool:
    """Five strikes: evaluations above 1.05 times the lowest loss before, or no number."""
    lowest = np.minimum.accumulate(losses)
    return bool(np.isnan(losses).any() or np.sum(losses[1:] > 1.05 * lowest[:-1]) >= 5)


def row(setting: Setting, found: list[np.ndarray]) -> str:
    """Means of each run's last ten evaluations; mean and sample standard deviation over seeds."""
    last = np.array([points[-10:, 1:].mean(0) for points in found])
    shown = [f"{mean:.4g}" for mean in last.mean(0)]
    if len(last) > 1:
        shown = [f"{mean} ± {spread:.2g}" for mean, spread in zip(shown, last.std(0, ddof=1), strict=True)]
    chosen = [setting.period if setting.method == "DIFF2-GD" else "-", setting.c1 or "-", setting.c2 or "-", setting.lr]
    name = setting.method if setting.epsilon is None else f"{setting.method}, epsilon {setting.epsilon:g}"
    return (
        f"| {name} | {' | '.join(f'{v:g}' if isinstance(v, float) else str(v) for v in chosen)} | {' | '.join(shown)} |"
    )


def main() -> int:
    """Search, run the best with every seed, print the table, draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("outputs/diff2_california"))
    parser.add_argument("--epsilons", nargs="+", type=float, default=[3.0, 5.0])
    parser.add_argument("--c1", nargs="+", type=float, default=[1.0, 3.0], help="of DP-GD; DIFF2 takes the best")
    parser.add_argument("--c2", nargs="+", type=float, default=[10.0, 30.0])
    parser.add_argument("--periods", nargs="+", type=int, default=[6, 20, 60, 200])
    parser.add_argument("--eta", type=float, default=1.0, help="of the private methods, where to begin (default 1)")
    parser.add_argument("--rounds", type=int, default=2000)
    parser.add_argument("--screen", type=int, default=400, help="rounds of a point of the grid")
    parser.add_argument("--finalists", type=int, default=2, help="points that run in full")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    try:
        runs = Runs(CaliforniaHousing().load(0), args.folder, args.rounds)
        chosen = [runs.best([Setting(None)], args.rounds, 1)]
        first = min(chosen[0].lr, args.eta)
        for epsilon in args.epsilons:
            dpgd = runs.best([Setting(epsilon, 1, c1, lr=first) for c1 in args.c1], args.screen, 1)
            points = product(args.periods, [dpgd.c1], args.c2)
            diff2 = runs.best([Setting(epsilon, *p, lr=first) for p in points], args.screen, args.finalists)
            chosen += [dpgd, diff2]
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    found = {setting: [runs.points(setting, args.rounds, seed) for seed in args.seeds] for setting in chosen}
    print("| method | T | C1 | C2 | eta | train loss | squared gradient norm | test loss |")
    print("|---|---|---|---|---|---|---|---|")
    for setting, each in found.items():
        print(row(setting, each))
    lines = {
        s.method if s.epsilon is None else f"{s.method}, epsilon {s.epsilon:g}": (each[0][:, 0], each[0][:, 2])
        for s, each in found.items()
    }
    figure = curves(lines, f"seed {args.seeds[0]}", x="round", y="squared gradient norm", log=("y",))
    figure.savefig(args.folder / "curves.png", dpi=80)
    print(f"picture: {args.folder / 'curves.png'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
