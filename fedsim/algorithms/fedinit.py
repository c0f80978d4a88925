"""FedInit: FedAvg whose clients start a little beyond the server's model, away from where they ended last.

Sun, Shen, Tao, "Understanding How Consistency Works in Federated Learning via Stage-wise Relaxed Initialization",
NeurIPS 2023, arXiv 2306.05706, the algorithm box of FedInit; FL-Simulator has it as its option use_RI, for every method
(``relaxed``).

Deviations: a client that never took part is taken to have ended at the initial model, as in FL-Simulator; the server
averages the last local models, as in the paper (FL-Simulator's FedAvg adds the mean of y - start). beta = 0 is FedAvg.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from torch import Tensor

from fedsim.algorithms.kit.local_sgd import LocalSGD
from fedsim.algorithms.kit.roles import GlobalModel, ModelServer
from fedsim.errors import require
from fedsim.objective import Objective
from fedsim.traits import Traits
from fedsim.types import Batch, Message, Round


class FedInitClient(NamedTuple):
    """What a client keeps between its rounds."""

    y: Tensor  # [d] last local model of the client's last round


@dataclass(frozen=True)
class FedInit(ModelServer, LocalSGD):
    """Federated averaging with relaxed initialization.

    Attributes:
        beta: how far beyond x a client starts, >= 0.
        server_lr: server learning rate, > 0; 1 is plain averaging.
    """

    traits: ClassVar[Traits] = Traits(moves=True)
    beta: float = 0.1
    server_lr: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.beta >= 0, "beta", "be >= 0", self.beta)
        require(self.server_lr > 0, "server_lr", "be > 0", self.server_lr)

    def init_client(self, x0: Tensor) -> FedInitClient:
        """The initial model."""
        return FedInitClient(x0)

    def local(self, obj: Objective, client: FedInitClient, got: Message, rnd: Round) -> tuple[Message, FedInitClient]:
        """K SGD steps from x + beta (x - y_last); sends y - x [d]."""
        x, lr = got["x"], self.rate(rnd)

        def step(y: Tensor, batch: Batch) -> Tensor:
            return self.descend(obj, y, batch, lr)

        # the relaxed initialization of the box: away from where this client ended last
        y = obj.run(step, x + self.beta * (x - client.y))
        return {"update": y - x}, FedInitClient(y)

    def server(self, server: GlobalModel, received: Message, rnd: Round) -> GlobalModel:
        """x <- x + server_lr * mean update."""
        return GlobalModel(server.x + self.server_lr * received["update"])
