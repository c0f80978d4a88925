"""FedSpeed: a prox-correction removes the bias of the local proximal term, an extra ascent step flattens the minima.

Sun, Shen, Huang, Ding, Tao, "FedSpeed: Larger Local Interval, Less Communication Round, and Higher Generalization
Accuracy", ICLR 2023, arXiv 2302.10429, the algorithm box of FedSpeed; the authors' code: github
woodenchild95/FL-Simulator, server/FedSpeed.py and client/fedspeed.py.

Deviations: the server's correction is by default the mean over all N clients, as in the authors' code
(``server=all``): with partial participation on quadratics it settles at the optimum for rho = 0, the mean over the
cohort of the box (``server=active``) does not settle. For ``all`` clients upload y - x, from which the server knows
the mean of all corrections; for ``active`` y - lambda g_hat - x, the paper's upload less x. The ascent step has the
fixed length rho by default, as in the experiments (``normalize``; the norm is guarded by 1e-12 where the authors' code
adds 1e-7); the box has rho g. The weights must be uniform. rho = 0 is FedDyn with alpha = 1 / lambda.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from fedsim.algorithms.kit.local_sgd import LocalSGD, ascent
from fedsim.algorithms.kit.roles import ModelServer
from fedsim.errors import require
from fedsim.objective import Objective
from fedsim.traits import Traits
from fedsim.types import Batch, Message, Round


class FedSpeedServer(NamedTuple):
    """What the server keeps."""

    x: Tensor  # [d] global model
    h: Tensor  # [d] mean over all clients of -lambda g_hat_i; unused when only active clients correct


class FedSpeedClient(NamedTuple):
    """What a client keeps between its rounds."""

    g_hat: Tensor  # [d] prox-correction


@dataclass(frozen=True)
class FedSpeed(ModelServer, LocalSGD):
    """FedSpeed with the correction of all clients or of the active ones.

    What it inherits: ``ModelServer`` broadcasts x; ``LocalSGD`` has lr, lr_decay, weight_decay and clip, and its
    ``step(y, direction, lr)`` is y - lr direction, the direction clipped, then with weight decay.

    Attributes:
        lam: lambda, the proximal term is 1/(2 lambda) ||y - x||^2, > 0; a local step needs lr (L + 1/lambda) < 2.
        rho: ascent step, >= 0: its length if ``normalize``, else the factor on the gradient.
        alpha: weight of the gradient after the ascent, in [0, 1]; the rest is the gradient before it.
        normalize: divide the ascent direction by its norm over all parameters.
        correction: whose corrections the server averages, ``all`` or ``active``; the key ``server`` in configurations.
    """

    lam: float = 10.0
    rho: float = 0.1
    alpha: float = 1.0
    normalize: bool = True
    correction: Literal["all", "active"] = "all"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.lam > 0, "lam", "be > 0", self.lam)
        require(self.rho >= 0, "rho", "be >= 0", self.rho)
        require(0 <= self.alpha <= 1, "alpha", "be in [0, 1]", self.alpha)

    @property
    def traits(self) -> Traits:
        """The words; the paper's upload is not the way that a client went."""
        return Traits(uniform=True, moves=self.correction == "all")

    def init_server(self, x0: Tensor) -> FedSpeedServer:
        """The global model and no correction."""
        return FedSpeedServer(x0, torch.zeros_like(x0))

    def init_client(self, x0: Tensor) -> FedSpeedClient:
        """g_hat = 0."""
        return FedSpeedClient(torch.zeros_like(x0))

    def local(self, obj: Objective, client: FedSpeedClient, got: Message, rnd: Round) -> tuple[Message, FedSpeedClient]:
        """K steps y <- y - lr (g - g_hat + (y - x) / lambda), g between both gradients; then g_hat; sends [d]."""
        x, lr = got["x"], self.rate(rnd)

        def step(y: Tensor, batch: Batch) -> Tensor:
            g1 = obj.grad(y, batch)
            # the extra ascent step goes along the plain gradient: neither correction nor proximal term enter it
            e = ascent(g1, self.rho, eps=1e-12) if self.normalize else self.rho * g1
            g2 = obj.grad(y + e, batch)  # on the same minibatch
            g = (1 - self.alpha) * g1 + self.alpha * g2
            # the proximal term pulls y back to x, which alone would bias where clients end; g_hat takes that out
            return self.step(y, g - client.g_hat + (y - x) / self.lam, lr)

        update = obj.run(step, x) - x
        g_hat = client.g_hat - update / self.lam  # once a round, by where the K steps ended
        # the box uploads y - lambda g_hat with the new g_hat; less x, which the server knows
        sent = update if self.correction == "all" else update - self.lam * g_hat
        return {"update": sent}, FedSpeedClient(g_hat)

    def server(self, server: FedSpeedServer, received: Message, rnd: Round) -> FedSpeedServer:
        """x <- mean_S y_i - lambda g_hat averaged over all N, or over S, where the upload holds it."""
        update = received["update"]
        if self.correction == "active":
            return FedSpeedServer(server.x + update, server.h)
        # -lambda g_hat_i is the sum of client i's updates, so the mean over all N grows by 1/N sum_S (y_i - x)
        h = server.h + update * len(rnd.clients) / rnd.population
        return FedSpeedServer(server.x + update + h, h)


def fedspeed(
    lr: float,
    lr_decay: float = FedSpeed.lr_decay,
    weight_decay: float = FedSpeed.weight_decay,
    clip: float | None = FedSpeed.clip,
    lam: float = FedSpeed.lam,
    rho: float = FedSpeed.rho,
    alpha: float = FedSpeed.alpha,
    normalize: bool = FedSpeed.normalize,
    server: Literal["all", "active"] = FedSpeed.correction,
) -> FedSpeed:
    """FedSpeed: prox-correction and an extra ascent step. The key ``server`` is ``correction`` of the class.

    A field of that name would hide the method ``server``.
    """
    return FedSpeed(lr, lr_decay, weight_decay, clip, lam, rho, alpha, normalize, correction=server)
