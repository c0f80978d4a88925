"""Last stage of assembly: step sizes of peers from graph and losses, and how curved these are, where that is known."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np

from fedsim.algorithms.kit.protocols import RoundConstants
from fedsim.errors import require
from fedsim.ground.layout import Layout
from fedsim.pool.local_part import LocalPart
from fedsim.pool.worker import Setup
from fedsim.runs.events import Graphs
from fedsim.topology import Mixing, spectral_gap
from fedsim.traits.declared import traits_of


def tuned(setup: Setup, network: Graphs | Mixing | None) -> Setup:
    """The set-up with an algorithm whose step sizes follow from the network and the losses, where it asks for that.

    Args:
        setup: as made.
        network: the graphs of virtual time, or the first W of rounds; None for clients of a server.

    Raises:
        InputError: the algorithm needs a constant of the losses that is not known, or another W.
    """
    part = setup.algorithm
    if network is None or not isinstance(part, LocalPart):
        return setup
    said = traits_of(part.base)
    if said.role != "events" and "tuned" not in said.hooks:
        return setup
    mu, smooth = curvature(setup) or (None, None)
    if isinstance(network, Graphs):
        algorithm = part.base.tuned(network.constants._replace(mu=mu, smooth=smooth))
    else:
        algorithm = part.base.tuned(RoundConstants(_gap(network, type(part.base).__name__), mu, smooth))
    return replace(setup, algorithm=LocalPart(algorithm))


def _gap(mixing: Mixing, name: str) -> float:
    """The spectral gap of W, in (0, 1]; raises InputError unless W is symmetric and mixes all peers."""
    do = "add topology.weights=metropolis"
    require(mixing.symmetric, "topology.weights", f"give a symmetric W for {name}", "another", do)
    gap = spectral_gap(mixing.w)
    require(gap > 1e-12, "topology", f"mix all peers for {name}", f"a W of spectral gap {gap:.3g}")
    return gap


def curvature(setup: Setup) -> tuple[float, float] | None:
    """The least and the largest eigenvalue of a client's Hessian, for least squares of a linear model without bias."""
    x, sizes = setup.train.x, setup.train.sizes()
    if not setup.task.least_squares or x.ndim != 2 or Layout.of(setup.models[0]).d != x.shape[1]:
        return None
    ends = setup.train.start.tolist()
    m = int(sizes.max())  # the loss of a row is m/2 (a.x - b)^2, see ``losses.loss_of``
    values = []
    for a, b in pairwise(ends):
        rows = x[a:b].astype(np.float64)
        values.append(np.linalg.eigvalsh(rows.T @ rows) * (m / (b - a)))
    return float(np.min(values)), float(np.max(values))
