"""FedAdam, FedYogi and FedAdagrad: FedAvg's clients, an adaptive optimizer on the server.

Reddi, Charles, Zaheer, Garrett, Rush, Konecny, Kumar, McMahan, "Adaptive Federated Optimization", ICLR 2021, arXiv
2003.00295, the algorithm box of FedAdagrad, FedYogi and FedAdam: one box, whose three variants differ in one line.

Deviations: the accumulator starts at ``v0`` = 0, as in FL-Simulator (github woodenchild95/FL-Simulator,
server/FedAdam.py), whose values are the defaults (the paper tunes server_lr and tau for each task); no bias correction,
as in both; weights are the aggregator's; the clients may use local momentum (``local_sgd``).
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


class FedOptServer(NamedTuple):
    """What the server keeps."""

    x: Tensor  # [d] global model
    m: Tensor  # [d] momentum
    v: Tensor  # [d] accumulated squares


@dataclass(frozen=True)
class _FedOpt(ModelServer, MomentumSGD):
    """What the three share: everything but the accumulator v.

    Attributes:
        server_lr: server learning rate eta_g, > 0.
        beta1: momentum of the server, in [0, 1).
        tau: degree of adaptivity, added to sqrt(v), > 0.
        v0: the accumulator before the first round, >= 0; the paper asks for tau^2 or more.
    """

    traits: ClassVar[Traits] = Traits(moves=True)
    server_lr: float = 0.1
    beta1: float = 0.9
    tau: float = 0.01
    v0: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.server_lr > 0, "server_lr", "be > 0", self.server_lr)
        require(0 <= self.beta1 < 1, "beta1", "be in [0, 1)", self.beta1)
        require(self.tau > 0, "tau", "be > 0", self.tau)
        require(self.v0 >= 0, "v0", "be >= 0", self.v0)

    def init_server(self, x0: Tensor) -> FedOptServer:
        """The global model, m = 0 and v = v0."""
        return FedOptServer(x0, torch.zeros_like(x0), torch.full_like(x0, self.v0))

    def local(self, obj: Objective, client: tuple[()], got: Message, rnd: Round) -> tuple[Message, tuple[()]]:
        """K local steps y <- y - lr g from x; sends the update y - x [d]."""
        x = got["x"]
        return {"update": self.solve(obj, x, self.rate(rnd)) - x}, client

    def _step(self, server: FedOptServer, update: Tensor, v: Tensor) -> FedOptServer:
        """m <- beta1 m + (1 - beta1) D; x <- x + server_lr m / (sqrt(v) + tau), D the mean update [d]."""
        # the mean update D is taken for the server's negative gradient, which is why x moves by plus m
        m = self.beta1 * server.m + (1 - self.beta1) * update
        return FedOptServer(server.x + self.server_lr * m / (v.sqrt() + self.tau), m, v)


@dataclass(frozen=True)
class FedAdam(_FedOpt):
    """Adam on the server.

    Attributes:
        beta2: decay of the accumulator, in [0, 1).
    """

    beta2: float = 0.99

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.beta2 < 1, "beta2", "be in [0, 1)", self.beta2)

    def server(self, server: FedOptServer, received: Message, rnd: Round) -> FedOptServer:
        """v <- beta2 v + (1 - beta2) D^2; then m and x."""
        d2 = received["update"] ** 2
        return self._step(server, received["update"], self.beta2 * server.v + (1 - self.beta2) * d2)


@dataclass(frozen=True)
class FedYogi(_FedOpt):
    """Yogi on the server: v moves by no more than (1 - beta2) D^2.

    Attributes:
        beta2: decay of the accumulator, in [0, 1).
    """

    beta2: float = 0.99

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.beta2 < 1, "beta2", "be in [0, 1)", self.beta2)

    def server(self, server: FedOptServer, received: Message, rnd: Round) -> FedOptServer:
        """v <- v - (1 - beta2) D^2 sign(v - D^2); then m and x."""
        d2 = received["update"] ** 2
        # v sinks by at most (1 - beta2) D^2 a round, where Adam's sinks by a share of v itself
        return self._step(server, received["update"], server.v - (1 - self.beta2) * d2 * (server.v - d2).sign())


@dataclass(frozen=True)
class FedAdagrad(_FedOpt):
    """Adagrad on the server.

    Attributes:
        beta1: momentum of the server, in [0, 1); 0 in the paper.
    """

    beta1: float = 0.0

    def server(self, server: FedOptServer, received: Message, rnd: Round) -> FedOptServer:
        """v <- v + D^2; then m and x."""
        d2 = received["update"] ** 2
        return self._step(server, received["update"], server.v + d2)
