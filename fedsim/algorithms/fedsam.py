"""FedSAM: FedAvg with sharpness-aware minimisation as the local solver.

Qu, Li, Duan, Liu, Tang, Lu, "Generalized Federated Learning via Sharpness Aware Minimization", ICML 2022, arXiv
2206.02618, the algorithm box of FedSAM; the same method with adaptive variants: Caldarola, Caputo, Ciccone, "Improving
Generalization in Federated Learning by Seeking Flat Minima", ECCV 2022, arXiv 2203.11834.

Deviations: the norm of the ascent step is guarded by 1e-7, as in FL-Simulator. rho = 0 is FedAvg.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fedsim.algorithms.kit.local_sgd import LocalSGD, sam_grad
from fedsim.algorithms.kit.roles import GlobalModel, ModelServer
from fedsim.errors import require
from fedsim.objective import Objective
from fedsim.traits import Traits
from fedsim.types import Batch, Message, Round


@dataclass(frozen=True)
class FedSAM(ModelServer, LocalSGD):
    """Federated averaging of sharpness-aware local steps.

    Attributes:
        rho: length of the ascent step, >= 0.
        server_lr: server learning rate, > 0; 1 is plain averaging.
    """

    traits: ClassVar[Traits] = Traits(moves=True)
    rho: float = 0.1
    server_lr: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.rho >= 0, "rho", "be >= 0", self.rho)
        require(self.server_lr > 0, "server_lr", "be > 0", self.server_lr)

    def local(self, obj: Objective, client: tuple[()], got: Message, rnd: Round) -> tuple[Message, tuple[()]]:
        """K local steps y <- y - lr grad(y + rho g / ||g||) from x; sends the update y - x [d]."""
        x, lr = got["x"], self.rate(rnd)

        def step(y: Tensor, batch: Batch) -> Tensor:
            # both gradients on the same minibatch; the ascent is free of clipping and weight decay
            return self.step(y, sam_grad(obj, y, batch, self.rho), lr)

        return {"update": obj.run(step, x) - x}, client

    def server(self, server: GlobalModel, received: Message, rnd: Round) -> GlobalModel:
        """x <- x + server_lr * mean update."""
        return GlobalModel(server.x + self.server_lr * received["update"])
