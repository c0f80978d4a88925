"""FedCM: every local step mixes the gradient with the direction in which the server moved last.

Xu, Wang, Wang, Yao, "FedCM: Federated Learning with Client-level Momentum", 2021, arXiv 2106.10874, the algorithm box
of FedCM; the update rules are those of FL-Simulator (github woodenchild95/FL-Simulator, client/fedcm.py and
server/FedCM.py).

Deviations: clients also send their number of steps K_i (one number), and the server's direction is the mean update
over (mean K_i) lr, which is the paper's for equal K_i; FL-Simulator takes client 0's K. alpha = 1 is FedAvg.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from fedsim.algorithms.kit.local_sgd import LocalSGD
from fedsim.algorithms.kit.roles import ModelServer
from fedsim.errors import require
from fedsim.objective import Objective
from fedsim.traits import Traits
from fedsim.types import Batch, Message, Round


class FedCMServer(NamedTuple):
    """What the server keeps."""

    x: Tensor  # [d] global model
    g: Tensor  # [d] mean direction G of the last round's local steps, 0 before the first


@dataclass(frozen=True)
class FedCM(ModelServer, LocalSGD):
    """Federated averaging with client-level momentum.

    Attributes:
        alpha: weight of the client's own gradient, in (0, 1]; the rest is the server's direction.
        server_lr: server learning rate eta_g, > 0.
    """

    traits: ClassVar[Traits] = Traits(moves=True, public=("steps",), hooks=("public_of",))
    alpha: float = 0.1
    server_lr: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.alpha <= 1, "alpha", "be in (0, 1]", self.alpha)
        require(self.server_lr > 0, "server_lr", "be > 0", self.server_lr)

    def public_of(self, steps: int, rnd: Round) -> dict[str, float]:
        """K, of a client with so many local steps."""
        return {"steps": float(steps)}

    def init_server(self, x0: Tensor) -> FedCMServer:
        """The global model and no direction yet."""
        return FedCMServer(x0, torch.zeros_like(x0))

    def broadcast(self, server: FedCMServer, rnd: Round) -> Message:
        """The global model x and the server's direction G, [d] each."""
        return {"x": server.x, "g": server.g}

    def local(self, obj: Objective, client: tuple[()], got: Message, rnd: Round) -> tuple[Message, tuple[()]]:
        """K local steps y <- y - lr (alpha g + (1 - alpha) G) from x; sends y - x [d] and K."""
        x, lr = got["x"], self.rate(rnd)

        def step(y: Tensor, batch: Batch) -> Tensor:
            g = obj.grad(y, batch)
            # client-level momentum: G is the same for all clients and all K steps of the round
            return self.step(y, self.alpha * g + (1 - self.alpha) * got["g"], lr)

        return {"update": obj.run(step, x) - x, "steps": obj.steps.to(x.dtype)}, client

    def server(self, server: FedCMServer, received: Message, rnd: Round) -> FedCMServer:
        """G <- -mean update / (K lr); x <- x + server_lr * mean update."""
        update = received["update"]
        # K local steps along -G, with the lr by which the clients just stepped, would have made this update
        return FedCMServer(server.x + self.server_lr * update, -update / (received["steps"] * self.rate(rnd)))
