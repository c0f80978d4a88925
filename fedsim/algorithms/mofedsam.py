"""MoFedSAM: FedSAM with the server's momentum in every local step (FedCM with sharpness-aware gradients).

Qu, Li, Duan, Liu, Tang, Lu, "Generalized Federated Learning via Sharpness Aware Minimization", ICML 2022, arXiv
2206.02618, the algorithm box of MoFedSAM; the update rules are those of FL-Simulator (github
woodenchild95/FL-Simulator, client/mofedsam.py and server/MoFedSAM.py).

Deviations: as in ``fedcm``. rho = 0 is FedCM, rho = 0 and alpha = 1 FedAvg.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from fedsim.algorithms.kit.local_sgd import LocalSGD, sam_grad
from fedsim.algorithms.kit.roles import ModelServer
from fedsim.errors import require
from fedsim.objective import Objective
from fedsim.traits import Traits
from fedsim.types import Batch, Message, Round


class MoFedSAMServer(NamedTuple):
    """What the server keeps."""

    x: Tensor  # [d] global model
    g: Tensor  # [d] mean direction G of the last round's local steps, 0 before the first


@dataclass(frozen=True)
class MoFedSAM(ModelServer, LocalSGD):
    """Momentum FedSAM.

    Attributes:
        rho: length of the ascent step, >= 0.
        alpha: weight of the client's own gradient, in (0, 1]; the rest is the server's direction.
        server_lr: server learning rate eta_g, > 0.
    """

    traits: ClassVar[Traits] = Traits(moves=True, public=("steps",), hooks=("public_of",))
    rho: float = 0.1
    alpha: float = 0.1
    server_lr: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.rho >= 0, "rho", "be >= 0", self.rho)
        require(0 < self.alpha <= 1, "alpha", "be in (0, 1]", self.alpha)
        require(self.server_lr > 0, "server_lr", "be > 0", self.server_lr)

    def public_of(self, steps: int, rnd: Round) -> dict[str, float]:
        """K, of a client with so many local steps."""
        return {"steps": float(steps)}

    def init_server(self, x0: Tensor) -> MoFedSAMServer:
        """The global model and no direction yet."""
        return MoFedSAMServer(x0, torch.zeros_like(x0))

    def broadcast(self, server: MoFedSAMServer, rnd: Round) -> Message:
        """The global model x and the server's direction G, [d] each."""
        return {"x": server.x, "g": server.g}

    def local(self, obj: Objective, client: tuple[()], got: Message, rnd: Round) -> tuple[Message, tuple[()]]:
        """K local steps y <- y - lr (alpha g2 + (1 - alpha) G) from x; sends y - x [d] and K."""
        x, lr = got["x"], self.rate(rnd)

        def step(y: Tensor, batch: Batch) -> Tensor:
            g2 = sam_grad(obj, y, batch, self.rho)  # in the place of FedCM's g; the ascent knows nothing of G
            return self.step(y, self.alpha * g2 + (1 - self.alpha) * got["g"], lr)

        return {"update": obj.run(step, x) - x, "steps": obj.steps.to(x.dtype)}, client

    def server(self, server: MoFedSAMServer, received: Message, rnd: Round) -> MoFedSAMServer:
        """G <- -mean update / (K lr); x <- x + server_lr * mean update."""
        update = received["update"]
        # as in FedCM: K local steps of length lr along -G would have made this update
        return MoFedSAMServer(server.x + self.server_lr * update, -update / (received["steps"] * self.rate(rnd)))
