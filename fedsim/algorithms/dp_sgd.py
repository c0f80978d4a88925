"""DP-SGD on the clients: local steps on clipped gradients of Poisson minibatches, with noise, averaged by the server.

Abadi, Chu, Goodfellow, McMahan, Mironov, Talwar, Zhang, "Deep Learning with Differential Privacy", CCS 2016,
arXiv 1607.00133, algorithm 1 (DP-SGD), as each client's local solver in the algorithm box of FederatedAveraging
(``fedavg``). What is hidden is one sample of one client, from the server and from everybody: a client's message is
private before it leaves.

A client's epsilon is that of its own minibatches in the rounds it really took part in; that cohorts are drawn at random
earns nothing, since the server sees who sent. The run's epsilon is the largest of all clients. Sizes of clients, and so
their numbers of steps, count as known.

Deviations: the noisy sum is divided by the expected size of a minibatch, not by what it really holds, which would let
the size out; clients weigh the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import count
from typing import ClassVar

from torch import Tensor

from fedsim.algorithms.kit.roles import GlobalModel, ModelServer
from fedsim.errors import require
from fedsim.fields import check_fields
from fedsim.objective import Objective
from fedsim.traits import Traits
from fedsim.traits.releases import Drawn, Release
from fedsim.types import Batch, Message, Round


@dataclass(frozen=True)
class PrivateSGD(ModelServer):
    """Federated averaging of local DP-SGD.

    Attributes:
        lr: client learning rate eta, > 0.
        lr_decay: factor on lr per round, in (0, 1].
        clip: C, largest norm of a sample's gradient, > 0; None does not clip (and is not private).
        noise_multiplier: z, noise over sensitivity, >= 0: the noise on a minibatch's sum has standard deviation z C.
        server_lr: step of the server along the mean update, > 0.
    """

    traits: ClassVar[Traits] = Traits(
        uniform=True, moves=True, noise="clients", hooks=("releases", "client_releases", "kind", "noise_multiplier")
    )
    lr: float
    lr_decay: float = 1.0
    clip: float | None = 1.0
    noise_multiplier: float = 0.0
    server_lr: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self)
        require(self.lr > 0, "lr", "be > 0", self.lr)
        require(0 < self.lr_decay <= 1, "lr_decay", "be in (0, 1]", self.lr_decay)
        require(self.clip is None or self.clip > 0, "clip", "be > 0, or null for no clipping", self.clip)
        require(self.noise_multiplier >= 0, "noise_multiplier", "be >= 0", self.noise_multiplier)
        bounded = self.clip is not None or not self.noise_multiplier
        require(bounded, "clip", "be given where there is noise: without clipping nothing is private", None)
        require(self.server_lr > 0, "server_lr", "be > 0", self.server_lr)

    def kind(self, rnd: Round) -> int:
        """0 for every round: what a round lets out of a client that takes part never differs."""
        return 0

    def releases(self, rnd: Round) -> tuple[Release, ...]:
        """``()``: nothing is let out of all clients together, each message is private by itself."""
        return ()

    def client_releases(self, rnd: Round, drawn: Drawn) -> tuple[Release, ...]:
        """The noisy sum of each of the client's minibatches, which one sample more or less moves by at most C."""
        return (drawn.release(self.noise_multiplier, drawn.steps),) if self.noise_multiplier else ()

    def local(self, obj: Objective, client: tuple[()], got: Message, rnd: Round) -> tuple[Message, tuple[()]]:
        """K steps y <- y - lr (sum of clipped gradients + N(0, (z C)^2)) / B from x; sends y - x [d]."""
        x, lr = got["x"], self.lr * self.lr_decay**rnd.index
        bound = math.inf if self.clip is None else self.clip
        steps = count()

        def step(y: Tensor, batch: Batch) -> Tensor:
            g = obj.clipped_sum(y, batch, bound)
            if self.noise_multiplier:
                g = g + self.noise_multiplier * bound * obj.noise.at(next(steps)).normal(g)
            return y - lr * (g / obj.batch_size)  # the expected size: the drawn one would be let out

        return {"update": obj.run(step, x) - x}, client

    def server(self, server: GlobalModel, received: Message, rnd: Round) -> GlobalModel:
        """x <- x + server_lr * mean update."""
        return GlobalModel(server.x + self.server_lr * received["update"])
