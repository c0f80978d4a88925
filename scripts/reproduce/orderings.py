"""Which federated methods end above FedAvg: MNIST, paired seeds, one Markdown table on standard output.

The setting is FL-Simulator's (github woodenchild95/FL-Simulator, README and train.py) made small: 100 clients of equal
size, 10 in each round, five local epochs, lr 0.1, decay 0.998, weight decay 1e-3, clip 10, its hyper-parameters for
every method; 4,000 training images and a small CNN in place of CIFAR-10 and ResNet-18, 20 rounds in place of 1,000.
Nothing is tuned. For one seed all methods share split, cohorts, initial model and minibatches, so differences pair.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from fedsim import Engine, Evaluate, Local, Mean, simulate
from fedsim.algorithms.fedavg import FedAvg
from fedsim.algorithms.fedcm import FedCM
from fedsim.algorithms.feddyn import FedDyn
from fedsim.algorithms.fedgamma import FedGAMMA
from fedsim.algorithms.fedopt import FedAdam
from fedsim.algorithms.fedprox import FedProx
from fedsim.algorithms.fedsam import FedSAM
from fedsim.algorithms.fedsmoo import FedSMOO
from fedsim.algorithms.fedspeed import FedSpeed
from fedsim.algorithms.mofedsam import MoFedSAM
from fedsim.algorithms.scaffold import Scaffold
from fedsim.data import MNIST, Dataset, Split
from fedsim.errors import InputError
from fedsim.ground.rng import numpy_stream
from fedsim.models import cnn
from fedsim.partition import DirichletPerClient
from fedsim.schedule import Uniform

SGD: dict[str, Any] = {"lr": 0.1, "lr_decay": 0.998, "weight_decay": 1e-3, "clip": 10.0}
METHODS = {
    "fedavg": FedAvg(**SGD),
    "fedprox": FedProx(**SGD, mu=0.1),
    "scaffold": Scaffold(**SGD),
    "feddyn": FedDyn(**SGD, alpha=0.1),
    "fedcm": FedCM(**SGD, alpha=0.1),
    "fedsam": FedSAM(**SGD, rho=0.1),
    "mofedsam": MoFedSAM(**SGD, rho=0.1, alpha=0.1),
    "fedgamma": FedGAMMA(**SGD, rho=0.01),
    "fedsmoo": FedSMOO(**SGD, rho=0.1, alpha=0.1),
    "fedspeed": FedSpeed(**SGD, lam=10.0, rho=0.1),
    "fedadam": FedAdam(**SGD, server_lr=0.1, beta1=0.9, beta2=0.99, tau=0.01),
}


def subset(data: Dataset, size: int) -> Dataset:
    """The data set with ``size`` of its training samples, the same ones in every run."""
    rows = np.sort(numpy_stream(0, "orderings").choice(len(data.train), size, replace=False))
    return replace(data, train=Split(data.train.x[rows], data.train.y[rows]))


def accuracy(method: str, data: Dataset, alpha: float, seed: int, rounds: int) -> float:
    """Test accuracy in percent after the last round; NaN when the run diverged."""
    result = simulate(
        METHODS[method],  # type: ignore[arg-type]
        data=data,
        partition=DirichletPerClient(clients=100, alpha=alpha),
        model=cnn,
        rounds=rounds,
        schedule=Uniform(cohort=10),
        local=Local(epochs=5, batch_size=10),
        aggregate=Mean(weights="uniform"),
        engine=Engine(backend="serial"),
        evaluate=Evaluate(every=rounds),
        seed=seed,
    )
    return 100 * result.metrics[-1]["eval/accuracy"] if result.status == "finished" else float("nan")


def table(scores: dict[tuple[str, float], list[float]], methods: Sequence[str], alphas: Sequence[float]) -> str:
    """Mean and sample standard deviation over seeds of the accuracy and of its difference to FedAvg's."""
    head = [f"Dirichlet {alpha:g} | less FedAvg" for alpha in alphas]
    lines = [f"| method | {' | '.join(head)} |", "|---" * (1 + 2 * len(alphas)) + "|"]
    for method in methods:
        cells = []
        for alpha in alphas:
            mine, base = np.array(scores[method, alpha]), np.array(scores["fedavg", alpha])
            cells += [_spread(mine), "-" if method == "fedavg" else _spread(mine - base, "+")]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _spread(values: np.ndarray, sign: str = "") -> str:
    spread = values.std(ddof=1) if len(values) > 1 else 0.0
    return f"{values.mean():{sign}.2f} ± {spread:.2f}"


def main() -> int:
    """Run everything and print the table; progress goes to standard error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS), metavar="NAME")
    parser.add_argument("--alphas", nargs="+", type=float, default=[0.1, 0.3], help="Dirichlet parameters")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--samples", type=int, default=4000, help="training images in all")
    args = parser.parse_args()
    methods = ["fedavg", *(name for name in args.methods if name != "fedavg")]
    try:
        data = subset(MNIST().load(0), args.samples)
        scores: dict[tuple[str, float], list[float]] = {(m, a): [] for m in methods for a in args.alphas}
        for seed in args.seeds:
            for alpha in args.alphas:
                for method in methods:
                    begin = time.perf_counter()
                    scores[method, alpha].append(accuracy(method, data, alpha, seed, args.rounds))
                    took = time.perf_counter() - begin
                    print(
                        f"seed {seed} alpha {alpha:g} {method}: {scores[method, alpha][-1]:.2f} % in {took:.1f} s",
                        file=sys.stderr,
                        flush=True,
                    )
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    print(table(scores, methods, args.alphas))
    return 0


if __name__ == "__main__":
    sys.exit(main())
