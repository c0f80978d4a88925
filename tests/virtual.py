"""Runs in virtual time from their parts, and the events of a run one by one in numpy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import networkx as nx
import numpy as np

from fedsim import Engine, Evaluate, Local, Mean
from fedsim.assembly.assemble import assemble
from fedsim.assembly.parts import Parts
from fedsim.models import linear_zero
from fedsim.partition import Natural
from fedsim.runs.virtual_time import VirtualTime
from fedsim.schedule import Events
from fedsim.topology import Topology
from fedsim.topology.graphs import FixedGraph
from tests.conftest import Quadratics

EDGES = [(0, 1), (0, 2), (1, 2), (2, 3), (3, 4), (4, 5), (5, 6), (4, 6), (6, 7), (7, 8), (7, 9), (0, 9), (0, 5)]
FULL = Local(steps=1, batch_size="full")


@dataclass(frozen=True)
class Irregular(FixedGraph):
    """Ten peers with one to four neighbours."""

    def graph(self, n: int) -> nx.Graph:
        return nx.Graph(EDGES)


def virtual(
    algorithm: Any,
    topology: Topology,
    data: Quadratics,
    schedule: Events,
    *,
    local: Local = FULL,
    rounds: int = 1,
    seed: int = 0,
    engine: Engine = Engine(backend="serial", dtype="float64"),  # noqa: B008
) -> VirtualTime:
    """A run before its first event; the caller closes ``run.backend``."""
    dataset = data.dataset()
    how: dict[str, Any] = {"topology": topology, "local": local, "aggregate": Mean("uniform"), "engine": engine}
    parts = Parts(algorithm, dataset, Natural(), linear_zero, rounds, schedule, seed=seed, **how)
    assembled = assemble(parts, dataset)
    run = assembled.begin(assembled.start(), Evaluate(every=1000))
    assert isinstance(run, VirtualTime)
    return run


def finish(run: VirtualTime) -> list[np.ndarray]:
    """The peers' models [n, d] at each recorded time."""
    models = []
    while run.done < run.rounds:
        run.step()
        models.append(run.point().numpy())
    run.backend.close()
    return models


def one_by_one(
    run: VirtualTime,
    states: np.ndarray,
    flow: Callable[[np.ndarray, float], np.ndarray],
    compute: Callable[[int, np.ndarray], np.ndarray],
    meet: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]],
) -> list[np.ndarray]:
    """All states [n, k, d] at each recorded time, from an event loop over the run's own events."""
    s, last, recorded = states.copy(), np.zeros(len(states)), []
    times = list(run.times)

    def bring(i: int, t: float) -> None:
        s[i], last[i] = flow(s[i], t - last[i]), t

    for t, i, j in zip(*run.events, strict=True):
        while times and times[0] < t:
            end = times.pop(0)
            recorded.append(np.stack([flow(s[p], end - last[p]) for p in range(len(s))]))
        bring(i, t)
        if j < 0:
            s[i] = compute(i, s[i])
        else:
            bring(j, t)
            s[i], s[j] = meet(s[i], s[j])
    return recorded + [np.stack([flow(s[p], end - last[p]) for p in range(len(s))]) for end in times]
