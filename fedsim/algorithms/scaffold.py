"""SCAFFOLD: control variates correct the drift of local SGD.

Karimireddy, Kale, Mohri, Reddi, Stich, Suresh, "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning", ICML
2020, arXiv 1910.06378, the algorithm box of SCAFFOLD.

Deviations: c_i+ of option 2 is divided by the current lr where the lr decays over the rounds; for option 1 the
gradient at x is the mean of those of the round's K minibatches (all of the client's data with full batches), which
costs a second pass; the weights must be uniform, because c is the plain mean of the c_i over all N clients.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from fedsim.algorithms.kit.local_sgd import LocalSGD
from fedsim.errors import require
from fedsim.objective import Objective
from fedsim.traits import Traits
from fedsim.types import Batch, Message, Round


class ScaffoldServer(NamedTuple):
    """What the server keeps."""

    x: Tensor  # [d] global model
    c: Tensor  # [d] server control variate: the mean of all clients' c_i


class ScaffoldClient(NamedTuple):
    """What a client keeps between its rounds."""

    c: Tensor  # [d] control variate c_i


@dataclass(frozen=True)
class Scaffold(LocalSGD):
    """Stochastic controlled averaging.

    Attributes:
        option: how c_i is renewed: 1 the gradient at the server's model, 2 the mean of the local steps' directions.
        server_lr: server learning rate eta_g, > 0.
    """

    traits: ClassVar[Traits] = Traits(uniform=True, moves=True)
    option: Literal[1, 2] = 2
    server_lr: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.server_lr > 0, "server_lr", "be > 0", self.server_lr)

    def init_server(self, x0: Tensor) -> ScaffoldServer:
        """The global model and c = 0."""
        return ScaffoldServer(x0, torch.zeros_like(x0))

    def init_client(self, x0: Tensor) -> ScaffoldClient:
        """c_i = 0."""
        return ScaffoldClient(torch.zeros_like(x0))

    def broadcast(self, server: ScaffoldServer, rnd: Round) -> Message:
        """The global model x and the control variate c, [d] each."""
        return {"x": server.x, "c": server.c}

    def local(self, obj: Objective, client: ScaffoldClient, got: Message, rnd: Round) -> tuple[Message, ScaffoldClient]:
        """K local steps y <- y - lr (g - c_i + c) from x; sends y - x and c_i+ - c_i, [d] each."""
        x, c, lr = got["x"], got["c"], self.rate(rnd)

        def step(y: Tensor, batch: Batch) -> Tensor:
            return self.step(y, obj.grad(y, batch) - client.c + c, lr)

        update = obj.run(step, x) - x
        # option 2: c_i+ = c_i - c + (x - y_K) / (K lr), the mean gradient along the client's path
        renewed = self._at(obj, x) if self.option == 1 else client.c - c - update / obj.steps / lr
        return {"update": update, "c": renewed - client.c}, ScaffoldClient(renewed)

    def _at(self, obj: Objective, x: Tensor) -> Tensor:
        """The mean over the round's minibatches of the gradient at x [d]."""
        add = lambda total, batch: total + obj.grad(x, batch)  # noqa: E731
        return obj.run(add, torch.zeros_like(x), counts=False) / obj.steps

    def server(self, server: ScaffoldServer, received: Message, rnd: Round) -> ScaffoldServer:
        """x <- x + server_lr * mean_S update; c <- c + (1/N) sum_S (c_i+ - c_i)."""
        x = server.x + self.server_lr * received["update"]
        # mean_S (c_i+ - c_i) |S| / N: c stays the mean over all N clients
        return ScaffoldServer(x, server.c + received["c"] * len(rnd.clients) / rnd.population)
