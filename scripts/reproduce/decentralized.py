"""DFedSAM and DFedAvg by topology and number of exchanges: MNIST, paired seeds, Markdown tables on standard output.

The setting of DFedSAM's paper (Shi et al., ICML 2023, arXiv 2302.04083) made small: 16 peers who train five local
epochs a round, lr 0.1 with decay 0.998, then average models with Metropolis weights over a ring, a 4 x 4 grid, the
exponential graph or everybody; 2,000 training images split by Dirichlet 0.3 and an MLP with 50 hidden units in place of
CIFAR-10 and ResNet-18, batches of 32, 10 rounds in place of 1,000; 2,000 test images. rho is the paper's 0.01, and 0.1
as in ``orderings.py``; nothing is tuned. For one seed all runs share split, initial model and minibatches, so that
differences pair.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from fedsim import Engine, Evaluate, Local, Mean, simulate
from fedsim.algorithms.dfedavg import DFedAvg
from fedsim.algorithms.dfedsam import DFedSAM
from fedsim.data import MNIST, Dataset, Split
from fedsim.errors import InputError
from fedsim.ground.rng import numpy_stream
from fedsim.models import mlp
from fedsim.partition import DirichletPerClient
from fedsim.record.figures import PALETTE
from fedsim.topology import Complete, Exponential, Grid, Ring, Topology, spectral_gap

PEERS = 16
SGD: dict[str, Any] = {"lr": 0.1, "lr_decay": 0.998}
METHODS: dict[str, DFedAvg | DFedSAM] = {
    "DFedAvg": DFedAvg(**SGD),
    "DFedSAM, rho 0.01": DFedSAM(**SGD, rho=0.01),
    "DFedSAM, rho 0.1": DFedSAM(**SGD, rho=0.1),
}
GRAPHS: dict[str, Topology] = {"ring": Ring(), "grid": Grid(), "exponential": Exponential(), "complete": Complete()}
EXCHANGES = {1: "DFedSAM, rho 0.1", **{q: f"DFedSAM-MGS, Q {q}" for q in (2, 4, 8)}}  # on the ring

# Of a method on a graph, by seed: peers' mean accuracy and their mean model's in percent, consensus distance.
Scores = dict[tuple[str, str], list[tuple[float, float, float]]]


def subset(data: Dataset, train: int, test: int) -> Dataset:
    """The data set with so many of its samples, the same ones in every run."""
    draw = numpy_stream(0, "decentralized")
    whole = data.test
    assert whole is not None  # MNIST has one
    some, few = (np.sort(draw.choice(len(s), size, replace=False)) for s, size in ((data.train, train), (whole, test)))
    return replace(data, train=Split(data.train.x[some], data.train.y[some]), test=Split(whole.x[few], whole.y[few]))


def run(
    method: DFedAvg | DFedSAM, graph: Topology, data: Dataset, seed: int, rounds: int
) -> tuple[float, float, float]:
    """After the last exchange: mean accuracy of the peers, accuracy of their mean model, consensus distance."""
    result = simulate(
        method,
        data=data,
        partition=DirichletPerClient(clients=PEERS, alpha=0.3),
        model=partial(mlp, hidden=(50,)),
        rounds=rounds,
        topology=graph,
        local=Local(epochs=5, batch_size=32),
        aggregate=Mean(weights="uniform"),
        engine=Engine(backend="serial"),
        evaluate=Evaluate(every=rounds, clients=True),
        seed=seed,
    )
    end = result.metrics[-1]
    peers, mean = 100 * end["eval/peer_accuracy_mean"], 100 * end["eval/accuracy"]
    return peers, mean, end["gossip/consensus_distance"]


def by_topology(scores: Scores, graphs: Sequence[str]) -> str:
    """Accuracy of the peers' own models, and its difference to DFedAvg's; below, of the mean of their models."""
    gaps = {name: spectral_gap(GRAPHS[name].mixing(PEERS, 0, 0).w) for name in graphs}
    lines = [f"| method | {' | '.join(f'{name} (gap {gap:.3f}) | less DFedAvg' for name, gap in gaps.items())} |"]
    lines.append("|---" * (1 + 2 * len(graphs)) + "|")
    for at, what in enumerate(("", ", mean of the models")):
        for method in METHODS:
            cells = []
            for graph in graphs:
                mine, base = (np.array([s[at] for s in scores[name, graph]]) for name in (method, "DFedAvg"))
                cells += [_spread(mine), "-" if method == "DFedAvg" else _spread(mine - base, "+")]
            lines.append(f"| {method}{what} | {' | '.join(cells)} |")
    return "\n".join(lines)


def by_exchanges(scores: Scores) -> str:
    """Consensus distance and accuracy of DFedSAM-MGS by Q."""
    lines = ["| Q | consensus distance | accuracy of the peers | of the mean of their models |", "|---|---|---|---|"]
    for q in EXCHANGES:
        peers, mean, distance = (np.array(column) for column in zip(*scores[EXCHANGES[q], "ring"], strict=True))
        lines.append(
            f"| {q} | {distance.mean():.3f} ± {_deviation(distance):.3f} | {_spread(peers)} | {_spread(mean)} |"
        )
    return "\n".join(lines)


def picture(scores: Scores, graphs: Sequence[str]) -> Figure:
    """Accuracy by topology, consensus distance by Q."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for number, method in enumerate(METHODS):
        found = [np.array([s[0] for s in scores[method, graph]]) for graph in graphs]
        left.errorbar(
            np.arange(len(graphs)) + 0.06 * (number - 1),
            [values.mean() for values in found],
            [_deviation(values) for values in found],
            marker="o",
            capsize=3,
            color=PALETTE[number],
            label=method,
        )
    left.set_xticks(range(len(graphs)), graphs)
    left.set_ylabel("test accuracy of the peers, %")
    left.legend(frameon=False, loc="lower right")
    distances = [np.array([s[2] for s in scores[name, "ring"]]) for name in EXCHANGES.values()]
    means, deviations = [d.mean() for d in distances], [_deviation(d) for d in distances]
    right.errorbar(list(EXCHANGES), means, deviations, marker="o", capsize=3, color=PALETTE[2])
    right.set_xticks(list(EXCHANGES))
    right.set_xlabel("exchanges in a round, Q (ring)")
    right.set_ylabel("consensus distance")
    right.set_ylim(bottom=0)
    return figure


def _deviation(values: np.ndarray) -> float:
    return float(values.std(ddof=1)) if len(values) > 1 else 0.0


def _spread(values: np.ndarray, sign: str = "") -> str:
    return f"{values.mean():{sign}.2f} ± {_deviation(values):.2f}"


def main() -> int:
    """Run everything and print the tables; progress goes to standard error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--graphs", nargs="+", default=list(GRAPHS), choices=list(GRAPHS), metavar="NAME")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--samples", type=int, default=2000, help="training images in all")
    parser.add_argument("--tests", type=int, default=2000, help="test images")
    parser.add_argument("--picture", type=Path, default=None, help="PNG file to write")
    args = parser.parse_args()
    runs = [(name, graph) for graph in args.graphs for name in METHODS]
    runs += [(name, "ring") for name in EXCHANGES.values() if (name, "ring") not in runs]
    rules = METHODS | {name: DFedSAM(**SGD, rho=0.1, gossip_steps=q) for q, name in EXCHANGES.items() if q > 1}
    scores: Scores = {key: [] for key in runs}
    try:
        data = subset(MNIST().load(0), args.samples, args.tests)
        for seed in args.seeds:
            for name, graph in runs:
                begin = time.perf_counter()
                scores[name, graph].append(run(rules[name], GRAPHS[graph], data, seed, args.rounds))
                took = time.perf_counter() - begin
                print(
                    f"seed {seed} {graph} {name}: {scores[name, graph][-1][0]:.2f} % in {took:.1f} s",
                    file=sys.stderr,
                    flush=True,
                )
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    print(by_topology(scores, args.graphs))
    print()
    print(by_exchanges(scores))
    if args.picture:
        picture(scores, args.graphs).savefig(args.picture, dpi=110)
    return 0


if __name__ == "__main__":
    sys.exit(main())
