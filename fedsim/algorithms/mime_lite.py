"""MimeLite: local steps follow the server's optimizer, whose momentum stays fixed during a round.

Karimireddy, Jaggi, Kale, Mohri, Reddi, Stich, Suresh, "Breaking the centralized barrier for cross-device federated
learning" (Mime), NeurIPS 2021, arXiv 2008.03606, the algorithm box of MimeLite with SGD with momentum as base.

Deviation: clients send updates y - x rather than models. beta = 0 is FedAvg.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from fedsim.algorithms.kit.gradients import full_gradient
from fedsim.algorithms.kit.local_sgd import LocalSGD
from fedsim.algorithms.kit.roles import ModelServer
from fedsim.errors import require
from fedsim.objective import Objective
from fedsim.traits import Traits
from fedsim.types import Batch, Message, Round


class MimeLiteServer(NamedTuple):
    """What the server keeps."""

    x: Tensor  # [d] global model
    m: Tensor  # [d] momentum of full gradients


@dataclass(frozen=True)
class MimeLite(ModelServer, LocalSGD):
    """Federated averaging with the server's momentum in every local step.

    Attributes:
        beta: weight of the momentum, in [0, 1).
    """

    traits: ClassVar[Traits] = Traits(moves=True)
    beta: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.beta < 1, "beta", "be in [0, 1)", self.beta)

    def init_server(self, x0: Tensor) -> MimeLiteServer:
        """The global model at rest."""
        return MimeLiteServer(x0, torch.zeros_like(x0))

    def broadcast(self, server: MimeLiteServer, rnd: Round) -> Message:
        """The global model x and the momentum m, [d] each."""
        return {"x": server.x, "m": server.m}

    def local(self, obj: Objective, client: tuple[()], got: Message, rnd: Round) -> tuple[Message, tuple[()]]:
        """K steps y <- y - lr ((1 - beta) g + beta m); sends y - x and the full gradient at x, [d] each."""
        x, m, lr = got["x"], got["m"], self.rate(rnd)

        def step(y: Tensor, batch: Batch) -> Tensor:
            # m is the server's: the same in every local step of every client of the round
            return self.step(y, (1 - self.beta) * obj.grad(y, batch) + self.beta * m, lr)

        update = obj.run(step, x) - x
        return {"update": update, "gradient": full_gradient(obj, x)}, client

    def server(self, server: MimeLiteServer, received: Message, rnd: Round) -> MimeLiteServer:
        """x <- mean y; m <- (1 - beta) mean full gradient at the old x + beta m."""
        # the statistics of the base optimizer are renewed by full gradients at the model that was sent, in one step
        m = (1 - self.beta) * received["gradient"] + self.beta * server.m
        return MimeLiteServer(server.x + received["update"], m)
