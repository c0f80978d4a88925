"""FedGAMMA: SCAFFOLD whose local gradients are SAM's, so that clients climb and descend towards a common flat region.

Dai, Yang, Sun, Shen, Tian, Wang, Zhang, "FedGAMMA: Federated Learning With Global Sharpness-Aware Minimization", IEEE
TNNLS 2023, the algorithm box of FedGAMMA; the update rules are those of the authors' colleagues' code (github
woodenchild95/FL-Simulator, server/FedGamma.py and client/fedgamma.py).

Deviations: K is the client's own number of steps (FL-Simulator takes client 0's, which may be fractional); the uplink
holds y - x and the change of c_i. rho = 0 is SCAFFOLD with option 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from fedsim.algorithms.kit.local_sgd import LocalSGD, sam_grad
from fedsim.errors import require
from fedsim.objective import Objective
from fedsim.traits import Traits
from fedsim.types import Batch, Message, Round


class FedGAMMAServer(NamedTuple):
    """What the server keeps."""

    x: Tensor  # [d] global model
    c: Tensor  # [d] server control variate: the mean of all clients' c_i


class FedGAMMAClient(NamedTuple):
    """What a client keeps between its rounds."""

    c: Tensor  # [d] control variate c_i


@dataclass(frozen=True)
class FedGAMMA(LocalSGD):
    """SCAFFOLD with sharpness-aware local gradients.

    Attributes:
        rho: length of the ascent step, >= 0.
        server_lr: server learning rate eta_g, > 0.
    """

    traits: ClassVar[Traits] = Traits(uniform=True, moves=True)
    rho: float = 0.01
    server_lr: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.rho >= 0, "rho", "be >= 0", self.rho)
        require(self.server_lr > 0, "server_lr", "be > 0", self.server_lr)

    def init_server(self, x0: Tensor) -> FedGAMMAServer:
        """The global model and c = 0."""
        return FedGAMMAServer(x0, torch.zeros_like(x0))

    def init_client(self, x0: Tensor) -> FedGAMMAClient:
        """c_i = 0."""
        return FedGAMMAClient(torch.zeros_like(x0))

    def broadcast(self, server: FedGAMMAServer, rnd: Round) -> Message:
        """The global model x and the control variate c, [d] each."""
        return {"x": server.x, "c": server.c}

    def local(self, obj: Objective, client: FedGAMMAClient, got: Message, rnd: Round) -> tuple[Message, FedGAMMAClient]:
        """K local steps y <- y - lr (g2 - c_i + c), g2 after the ascent; sends y - x and c_i+ - c_i, [d] each."""
        x, c, lr = got["x"], got["c"], self.rate(rnd)

        def step(y: Tensor, batch: Batch) -> Tensor:
            # SCAFFOLD's correction of the gradient after the ascent; the ascent itself is along the plain gradient
            return self.step(y, sam_grad(obj, y, batch, self.rho) - client.c + c, lr)

        update = obj.run(step, x) - x
        # SCAFFOLD's option 2: c_i+ = c_i - c + (x - y_K) / (K lr)
        renewed = client.c - c - update / obj.steps / lr
        return {"update": update, "c": renewed - client.c}, FedGAMMAClient(renewed)

    def server(self, server: FedGAMMAServer, received: Message, rnd: Round) -> FedGAMMAServer:
        """x <- x + server_lr * mean_S update; c <- c + (1/N) sum_S (c_i+ - c_i)."""
        x = server.x + self.server_lr * received["update"]
        # mean_S (c_i+ - c_i) |S| / N: c stays the mean over all N clients
        return FedGAMMAServer(x, server.c + received["c"] * len(rnd.clients) / rnd.population)
