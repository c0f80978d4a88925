"""DADAO's claims: meetings that its graphs need, one speed on every graph, divergence below the minimal rates.

Prints four tables and draws the error over gradients and over meetings. All runs are in this process, without a run
folder; three minutes of CPU time.
"""

from __future__ import annotations

import argparse
from math import ceil, log, sqrt
from pathlib import Path

import numpy as np

from fedsim import Engine, Local, simulate
from fedsim.aggregate import Mean
from fedsim.algorithms.a2cid2 import A2CiD2
from fedsim.algorithms.ad_psgd import ADPSGD
from fedsim.algorithms.continuized import Continuized
from fedsim.algorithms.dadao import DADAO
from fedsim.algorithms.msda import MSDA
from fedsim.data import Dataset, Split
from fedsim.evaluate import Evaluate
from fedsim.models import linear_zero
from fedsim.partition import Natural
from fedsim.record.figures import curves
from fedsim.schedule import All, Events
from fedsim.topology import Barbell, Complete, Grid, Ring, Star, edge_rates
from fedsim.topology import Path as Line
from fedsim.topology.graphs import FixedGraph

GRAPHS: dict[str, FixedGraph] = {
    "star": Star(),
    "complete": Complete(),
    "cycle": Ring(),
    "path": Line(),
    "grid": Grid(),
    "barbell": Barbell(),
}


def communications(graph: FixedGraph, n: int) -> tuple[float, int, int]:
    """Expected meetings in a unit of time of DADAO; edges used in a round by MSDA, by ADOM+ with multi-consensus.

    A round of MSDA is int(sqrt(chi)) exchanges over all edges and one of ADOM+ ceil(chi ln 2), chi being the condition
    number of the graph's Laplacian.
    """
    made = graph.graph(n)
    edges = graph.mixing(n, 0, 0).edges
    laplacian = np.zeros((n, n))
    laplacian[edges[:, 0], edges[:, 1]] = laplacian[edges[:, 1], edges[:, 0]] = -1
    np.fill_diagonal(laplacian, -laplacian.sum(1))
    values = np.linalg.eigvalsh(laplacian)
    chi = values[-1] / values[1]
    return float(edge_rates(made, "minimal").sum()), int(sqrt(chi) + 1e-9) * len(edges), ceil(chi * log(2)) * len(edges)


def problem(n: int, ratio: float) -> Dataset:
    """Least squares in four unknowns; every client has mu = 1 and L = ratio, in directions of its own."""
    random = np.random.default_rng(1)
    scales = np.sqrt(np.geomspace(1, ratio, 4))
    a = np.concatenate([scales[:, None] * np.linalg.qr(random.normal(size=(4, 4)))[0] for _ in range(n)])
    b = random.normal(size=4 * n) + np.repeat(3 * random.normal(size=n), 4)
    return Dataset("problem", Split(a, b, np.repeat(np.arange(n), 4)), None, "least_squares", 1)


def errors(
    algorithm: object, graph: FixedGraph, data: Dataset, schedule: Events | All, seed: int
) -> tuple[np.ndarray, ...]:
    """At each measured time: mean over peers of the squared distance to the optimum, the time, edges used before."""
    rounds = 60
    result = simulate(
        algorithm,  # type: ignore[arg-type]
        data=data,
        partition=Natural(),
        model=linear_zero,
        rounds=rounds,
        schedule=schedule,
        topology=graph,
        local=Local(steps=1, batch_size="full"),
        aggregate=Mean("uniform"),
        engine=Engine(backend="serial", dtype="float64"),
        evaluate=Evaluate(every=rounds),
        seed=seed,
        trajectory=True,
    )
    best = np.linalg.lstsq(data.train.x, data.train.y, rcond=None)[0]
    assert result.trajectory is not None
    done = result.metrics[1:]
    points = np.square(result.trajectory[1:] - best).sum(2).mean(1)
    time = "time/virtual_s" if isinstance(schedule, Events) else "round"
    return points, np.array([r[time] for r in done]), np.array([r["comm/edges_total"] for r in done])


def decay(t: np.ndarray, error: np.ndarray, ratio: float) -> float:
    """c of error ~ exp(-c sqrt(mu / L) t), from the last two thirds of the run."""
    late = t > t[-1] / 3
    return float(-np.polyfit(t[late], np.log(error[late]), 1)[0] * sqrt(ratio))


def main() -> int:
    """Print the tables, draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--picture", type=Path, default=Path("docs/dadao.png"))
    args = parser.parse_args()
    print("| graph | n = 16: DADAO / MSDA / ADOM+ | n = 300: DADAO / MSDA / ADOM+ |\n|---|---|---|")
    for name, graph in GRAPHS.items():
        cells = (communications(graph, n) for n in (16, 289 if name == "grid" else 300))
        print(f"| {name} | " + " | ".join(f"{a:.4g} / {b} / {c}" for a, b, c in cells) + " |")

    print("\n| graph | L/mu = 4 | L/mu = 25 |\n|---|---|---|")
    for name in ("cycle", "complete", "star", "path"):
        found = []
        for ratio in (4.0, 25.0):
            schedule = Events(60 * sqrt(ratio) / 2)
            slopes = []
            for seed in args.seeds:
                error, t, _ = errors(DADAO(), GRAPHS[name], problem(10, ratio), schedule, seed)
                slopes.append(decay(t, error, ratio))
            found.append(f"{np.mean(slopes):.3f}")
        print(f"| {name} | " + " | ".join(found) + " |")

    print("\n| rates | error at the end / error at a quarter |\n|---|---|")
    rate = float(edge_rates(Ring().graph(10), "minimal")[0])
    for factor in (0.5, 0.7, 1.0, 2.0, 4.0):
        error, *_ = errors(DADAO(), Ring(rates=factor * rate), problem(10, 4.0), Events(60.0), args.seeds[0])
        print(f"| {factor} x minimal | {error[-1] / error[len(error) // 4]:.2g} |")

    data, lines = problem(10, 25.0), {}
    print("\n| graph | DADAO | Continuized | MSDA |\n|---|---|---|---|")
    for name in ("cycle", "complete", "star"):
        used = []
        for rule, when in ((DADAO(), Events(300.0)), (Continuized(), Events(60.0)), (MSDA(), All())):
            error, _, edges = errors(rule, GRAPHS[name], data, when, args.seeds[0])
            start = np.square(np.linalg.lstsq(data.train.x, data.train.y, rcond=None)[0]).sum()
            used.append(f"{edges[np.flatnonzero(error < 1e-3 * start)[0]]:.0f}")
        print(f"| {name} | " + " | ".join(used) + " |")

    for label, algorithm in (("DADAO", DADAO()), ("A2CiD2", A2CiD2(lr=0.02)), ("AD-PSGD", ADPSGD(lr=0.02))):
        for name in ("cycle", "complete"):
            error, _, meetings = errors(algorithm, GRAPHS[name], data, Events(100.0), args.seeds[0])
            lines[f"{label}, {name}"] = (meetings, error)
    title = "least squares, 10 peers, L/mu = 25"
    figure = curves(lines, title, x="meetings", y="mean squared distance to x*", log=("y",))
    figure.savefig(args.picture, dpi=80)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
