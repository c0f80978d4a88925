"""What personalised methods reach on clients of two classes each: three seeds, one Markdown table on standard output.

FedGH's setting (Yi et al., ACM MM 2023, arXiv 2303.13137; github LipingYi/FedGH) made small: every client owns two
classes, in training and in test, and is tested with its own model on its own test samples; SGD with lr 0.01, momentum
0.9, weight decay 1e-3 and clipping at 50 for every method. The methods that allow it run on five networks, client i
with number i mod 5: FedGH's with half of the channels and a tenth of the width. The others run on the first of them.
FML has no momentum and gets lr 0.1 = 0.01 / (1 - 0.9). Nothing is tuned. For one seed all methods share split,
cohorts, initial models and minibatches, so differences to Standalone pair.

Settings on MNIST: 10c, 2,000 training images over 10 clients, all in each of 12 rounds of two epochs; 50c, 1,000 images
over 50 clients, 10 in each of 30 rounds of five epochs.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from fedsim import Engine, Evaluate, Local, Mean, simulate
from fedsim.aggregate import Stack
from fedsim.algorithms.fd import FD
from fedsim.algorithms.fedavg import FedAvg
from fedsim.algorithms.fedavg_ft import FedAvgFT
from fedsim.algorithms.fedgh import FedGH
from fedsim.algorithms.fedper import FedPer
from fedsim.algorithms.fedproto import FedProto
from fedsim.algorithms.fedrep import FedRep
from fedsim.algorithms.fml import FML
from fedsim.algorithms.lg_fedavg import LGFedAvg
from fedsim.algorithms.standalone import Standalone
from fedsim.data import MNIST, Dataset, Split
from fedsim.errors import InputError
from fedsim.ground.rng import numpy_stream
from fedsim.models import cnn
from fedsim.partition import Classes
from fedsim.schedule import All, Schedule, Uniform

SGD: dict[str, Any] = {"lr": 0.01, "momentum": 0.9, "weight_decay": 1e-3, "clip": 50.0}
NETWORKS = [
    partial(cnn, channels=(8, second), hidden=(width, 50))
    for second, width in ((16, 200), (8, 200), (16, 100), (16, 80), (16, 50))
]
HETEROGENEOUS = {
    "standalone": Standalone(**SGD),
    "lg_fedavg": LGFedAvg(**SGD),
    "fedgh": FedGH(**SGD),
    "fedproto": FedProto(**SGD),
    "fd": FD(**SGD),
    "fml": FML(**SGD | {"lr": 0.1, "momentum": 0.0}),
}
HOMOGENEOUS = {
    "fedavg": FedAvg(**SGD),
    "fedavg_ft": FedAvgFT(**SGD),
    "fedper": FedPer(**SGD),
    "fedrep": FedRep(**SGD),
}
METHODS = {**HETEROGENEOUS, **HOMOGENEOUS}


@dataclass(frozen=True)
class Setting:
    """One population."""

    images: int  # training images in all
    clients: int
    schedule: Schedule
    cohort: int  # clients in a round
    rounds: int
    epochs: int
    batch_size: int


SETTINGS = {
    "10c": Setting(2000, 10, All(), 10, 12, 2, 32),
    "50c": Setting(1000, 50, Uniform(cohort=10), 10, 30, 5, 10),
}


def subset(data: Dataset, size: int) -> Dataset:
    """The data set with ``size`` of its training samples, the same ones in every run."""
    rows = np.sort(numpy_stream(0, "personalised").choice(len(data.train), size, replace=False))
    return replace(data, train=Split(data.train.x[rows], data.train.y[rows]), augment=None)


def scores(method: str, data: Dataset, setting: Setting, seed: int) -> list[float]:
    """Percent: mean, standard deviation and worst tenth of the clients; kilobytes up and down by client and round."""
    algorithm: Any = METHODS[method]
    result = simulate(
        algorithm,
        data=data,
        partition=Classes(clients=setting.clients, per_client=2),
        model=NETWORKS if method in HETEROGENEOUS else NETWORKS[0],
        rounds=setting.rounds,
        schedule=setting.schedule,
        local=Local(epochs=setting.epochs, batch_size=setting.batch_size),
        aggregate=Stack() if getattr(algorithm, "stacked", False) else Mean(weights="uniform"),
        engine=Engine(backend="serial"),
        evaluate=Evaluate(every=setting.rounds, clients=True),
        seed=seed,
    )
    last = result.metrics[-1]
    traffic = [
        last[f"comm/{way}_total_bytes"] / setting.cohort / setting.rounds / 1e3 for way in ("uplink", "downlink")
    ]
    return [100 * last[f"eval/client_accuracy_{what}"] for what in ("mean", "std", "worst10")] + traffic


def table(found: dict[str, list[list[float]]]) -> str:
    """Means over seeds; of the clients' mean accuracy and of its difference to Standalone's the spread too."""
    lines = ["| method | networks | mean | less standalone | std of clients | worst tenth | kB up | kB down |"]
    lines += ["|---" * 8 + "|"]
    for method, runs in found.items():
        values = np.array(runs)
        _, std, worst, up, down = values.mean(axis=0)
        less = "-" if method == "standalone" else _spread(values[:, 0] - np.array(found["standalone"])[:, 0], "+")
        networks = "five" if method in HETEROGENEOUS else "one"
        start = f"| {method} | {networks} | {_spread(values[:, 0])} | {less} "
        lines.append(f"{start}| {std:.1f} | {worst:.1f} | {up:,.1f} | {down:,.1f} |")
    return "\n".join(lines)


def _spread(values: np.ndarray, sign: str = "") -> str:
    spread = values.std(ddof=1) if len(values) > 1 else 0.0
    return f"{values.mean():{sign}.2f} ± {spread:.2f}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run everything and print the table; progress goes to standard error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("setting", choices=list(SETTINGS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS), metavar="NAME")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, help="instead of the setting's")
    args = parser.parse_args(arguments)
    setting = SETTINGS[args.setting]
    setting = replace(setting, rounds=args.rounds or setting.rounds)
    methods = ["standalone", *(name for name in args.methods if name != "standalone")]
    try:
        data = subset(MNIST().load(0), setting.images)
        found: dict[str, list[list[float]]] = {method: [] for method in methods}
        for seed in args.seeds:
            for method in methods:
                begin = time.process_time()
                found[method].append(scores(method, data, setting, seed))
                took = time.process_time() - begin
                mean, _, worst, *_ = found[method][-1]
                print(
                    f"seed {seed} {method}: mean {mean:.2f} %, worst tenth {worst:.2f} %, {took:.1f} s of CPU time",
                    file=sys.stderr,
                    flush=True,
                )
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    print(table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
