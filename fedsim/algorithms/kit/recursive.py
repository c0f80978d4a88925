"""What private methods share whose gradient estimate v goes on from the last one by released differences.

Fang, Li, Lin, Zhang, "SPIDER: Near-Optimal Non-Convex Optimization via Stochastic Path-Integrated Differential
Estimator", NeurIPS 2018, arXiv 1807.01695, the estimator of its algorithm box; what is clipped, sampled and made noisy
is each method's own.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fedsim.algorithms.kit.roles import ModelServer
from fedsim.types import Known, Message, Round


class RecursiveServer(NamedTuple):
    """What the server keeps, all of it released."""

    x: Tensor  # [d] model
    before: Tensor  # [d] model of the round before
    v: Tensor  # [d] estimate of the gradient


class Recursive(ModelServer):
    """The server keeps an estimate v of the gradient; clients need the model and the one before, and keep nothing."""

    def init_server(self, x0: Tensor) -> RecursiveServer:
        """The initial model, which is also the one before, and v = 0."""
        return RecursiveServer(x0, x0, torch.zeros_like(x0))

    def broadcast(self, server: RecursiveServer, rnd: Round) -> Message:
        """The model x [d]; the one before is known."""
        return {"x": server.x, "before": Known(server.before)}
