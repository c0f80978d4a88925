"""Distributed SGD: clients send gradients at the server's model, the server steps on their mean.

The classical synchronous parallel method, for example Chen, Pan, Monga, Bengio, Jozefowicz, "Revisiting Distributed
Synchronous SGD", 2016, arXiv 1604.00981, its algorithm boxes. The host of compressed methods: what goes through the
channel is a gradient.

Deviation: with K local steps the client sends the mean of its K minibatch gradients, all taken at the same x (one
large minibatch); weights are the aggregator's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fedsim.algorithms.kit.gradients import mean_gradient
from fedsim.algorithms.kit.roles import GlobalModel, ModelServer
from fedsim.errors import require
from fedsim.fields import check_fields
from fedsim.objective import Objective
from fedsim.types import Message, Round


@dataclass(frozen=True)
class SGD(ModelServer):
    """Synchronous distributed SGD.

    Attributes:
        lr: learning rate gamma, > 0.
        lr_decay: factor on lr per round, in (0, 1].
        step: who multiplies by the learning rate: the ``server``, what arrives; or the ``client``, what it sends, which
            a channel with memory remembers with the learning rate of its round.
        sigma: standard deviation of Gaussian noise that each client adds to every entry of its gradient, >= 0.
    """

    lr: float
    lr_decay: float = 1.0
    step: Literal["server", "client"] = "server"
    sigma: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self)
        require(self.lr > 0, "lr", "be > 0", self.lr)
        require(0 < self.lr_decay <= 1, "lr_decay", "be in (0, 1]", self.lr_decay)
        require(self.sigma >= 0, "sigma", "be >= 0", self.sigma)

    def local(self, obj: Objective, client: tuple[()], got: Message, rnd: Round) -> tuple[Message, tuple[()]]:
        """Sends the mean over the K minibatches of the gradient at x [d], times the learning rate for step=client."""
        g = mean_gradient(obj, got["x"])
        if self.sigma:
            g = g + self.sigma * obj.noise.normal(g)
        return {"gradient": g * self.rate(rnd) if self.step == "client" else g}, client

    def server(self, server: GlobalModel, received: Message, rnd: Round) -> GlobalModel:
        """x <- x - lr * mean gradient."""
        g = received["gradient"]  # for step=client already times the learning rate
        return GlobalModel(server.x - (g if self.step == "client" else self.rate(rnd) * g))

    def rate(self, rnd: Round) -> float:
        """gamma of this round, lr * lr_decay^t."""
        return self.lr * self.lr_decay**rnd.index
