"""FedAvg: local SGD, then the server averages the clients' models.

McMahan, Moore, Ramage, Hampson, Aguera y Arcas, "Communication-Efficient Learning of Deep Networks from Decentralized
Data", AISTATS 2017, arXiv 1602.05629, the algorithm box of FederatedAveraging; server momentum: Hsu, Qi, Brown,
"Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification", 2019, arXiv 1909.06335
(FedAvgM).

Deviations: the clients send updates y - x rather than models (the same average, and what compressors want); weights
n_i / n are the aggregator's (``aggregate.weights``); the lr may decay by a constant factor per round; weight decay,
clipping and local momentum as in ``local_sgd``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from fedsim.algorithms.kit.local_sgd import MomentumSGD
from fedsim.algorithms.kit.roles import ModelServer
from fedsim.errors import require
from fedsim.objective import Objective
from fedsim.traits import Traits
from fedsim.types import Message, Round


class FedAvgServer(NamedTuple):
    """What the server keeps."""

    x: Tensor  # [d] global model
    v: Tensor  # [d] server momentum


@dataclass(frozen=True)
class FedAvg(ModelServer, MomentumSGD):
    """Federated averaging.

    Attributes:
        server_lr: server learning rate, > 0; 1 is plain averaging.
        server_momentum: beta of the server's heavy ball v <- beta v + mean update, in [0, 1).
    """

    traits: ClassVar[Traits] = Traits(moves=True)
    server_lr: float = 1.0
    server_momentum: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.server_lr > 0, "server_lr", "be > 0", self.server_lr)
        require(0 <= self.server_momentum < 1, "server_momentum", "be in [0, 1)", self.server_momentum)

    def init_server(self, x0: Tensor) -> FedAvgServer:
        """The global model, at rest."""
        return FedAvgServer(x0, torch.zeros_like(x0))

    def local(self, obj: Objective, client: tuple[()], got: Message, rnd: Round) -> tuple[Message, tuple[()]]:
        """K local steps y <- y - lr g from x; sends the update y - x [d]."""
        x = got["x"]
        return {"update": self.solve(obj, x, self.rate(rnd)) - x}, client

    def server(self, server: FedAvgServer, received: Message, rnd: Round) -> FedAvgServer:
        """v <- beta v + mean update; x <- x + server_lr v."""
        v = self.server_momentum * server.v + received["update"]  # beta = 0: the mean of the local models
        return FedAvgServer(server.x + self.server_lr * v, v)
