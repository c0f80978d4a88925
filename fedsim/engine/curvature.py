"""Step sizes of event algorithms from graph and losses: how curved the clients' losses are, where that is known."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np

from fedsim.engine.events import Graphs
from fedsim.engine.local_part import LocalPart
from fedsim.engine.worker import Setup
from fedsim.layout import Layout


def tuned(setup: Setup, graphs: Graphs) -> Setup:
    """The set-up of an event algorithm, tuned to its graphs and to what is known of the losses."""
    mu, smooth = curvature(setup) or (None, None)
    part = setup.algorithm
    assert isinstance(part, LocalPart)
    algorithm = part.base.tuned(graphs.constants._replace(mu=mu, smooth=smooth))
    return replace(setup, algorithm=LocalPart(algorithm))


def curvature(setup: Setup) -> tuple[float, float] | None:
    """The least and the largest eigenvalue of a client's Hessian, for least squares of a linear model without bias."""
    x, sizes = setup.train.x, setup.train.sizes()
    if setup.task != "least_squares" or x.ndim != 2 or Layout.of(setup.models[0]).d != x.shape[1]:
        return None
    ends = setup.train.start.tolist()
    m = int(sizes.max())  # the loss of a row is m/2 (a.x - b)^2, see ``losses.loss_of``
    values = []
    for a, b in pairwise(ends):
        rows = x[a:b].astype(np.float64)
        values.append(np.linalg.eigvalsh(rows.T @ rows) * (m / (b - a)))
    return float(np.min(values)), float(np.max(values))
