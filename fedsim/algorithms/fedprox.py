"""FedProx: FedAvg with a proximal term that keeps local models near the server's.

Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith, "Federated Optimization in Heterogeneous Networks", MLSys 2020, arXiv
1812.06127, the algorithm box of FedProx.

Deviations: the local subproblem is solved by K steps of SGD, as in the paper's experiments, rather than to a given
gamma-inexactness; cohorts and weights are the schedule's and the aggregator's (the paper draws clients with
probability n_i / n and averages uniformly); a server learning rate; local momentum (``local_sgd``). mu = 0 is
FedAvg.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fedsim.algorithms.kit.local_sgd import MomentumSGD
from fedsim.algorithms.kit.roles import GlobalModel, ModelServer
from fedsim.errors import require
from fedsim.objective import Objective
from fedsim.traits import Traits
from fedsim.types import Batch, Message, Round


@dataclass(frozen=True)
class FedProx(ModelServer, MomentumSGD):
    """Federated averaging with a proximal term mu/2 ||y - x||^2 on the clients.

    Attributes:
        mu: weight of the proximal term, >= 0; a local step needs lr (L + mu) < 2.
        server_lr: server learning rate, > 0; 1 is plain averaging.
    """

    traits: ClassVar[Traits] = Traits(moves=True)
    mu: float = 0.1
    server_lr: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.mu >= 0, "mu", "be >= 0", self.mu)
        require(self.server_lr > 0, "server_lr", "be > 0", self.server_lr)

    def local(self, obj: Objective, client: tuple[()], got: Message, rnd: Round) -> tuple[Message, tuple[()]]:
        """K local steps y <- y - lr (g + mu (y - x)) from x; sends the update y - x [d]."""
        x: Tensor = got["x"]

        def direction(y: Tensor, batch: Batch) -> Tensor:
            # the gradient of the box's local objective f_i(y) + mu/2 ||y - x||^2
            return obj.grad(y, batch) + self.mu * (y - x)

        return {"update": self.solve(obj, x, self.rate(rnd), direction) - x}, client

    def server(self, server: GlobalModel, received: Message, rnd: Round) -> GlobalModel:
        """x <- x + server_lr * mean update."""
        return GlobalModel(server.x + self.server_lr * received["update"])
