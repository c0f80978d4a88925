"""1-bit Adam: Adam until its variance has settled, then momentum SGD with a fixed preconditioner on one-bit messages.

Tang, Gan, Awan, Rajbhandari, Li, Lian, Liu, Zhang, He, "1-bit Adam: Communication Efficient Large-Scale Training with
Adam's Convergence Speed", ICML 2021, arXiv 2102.02888, the algorithm box; the authors' code: DeepSpeed,
runtime/fp16/onebit/adam.py. As there: no bias correction, decoupled weight decay, m the last decoded global momentum.

Both directions use the channel's pieces, which its yaml chooses:
``channel=[of/onebit_adam] downlink=[of/onebit_adam_downlink]`` are error feedback and signs with scale l2, limited to
the field ``momentum``; the server's own error feedback lies in its state. With ``warmup=null`` it is Adam. Every client
takes part in every round: all follow the same x, which is therefore not sent once momenta are.

Deviations: the workers' chunks of the server's vector are buckets of ``chunk`` entries; entries whose gradients were
(almost) always zero stay where they are after the warm-up (``floor``), for one-bit momenta over their tiny variance
would throw them far off (DeepSpeed's users give a mask).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fedsim.algorithms.kit.gradients import mean_gradient
from fedsim.algorithms.kit.roles import ModelServer
from fedsim.channel.ef14 import EF14
from fedsim.channel.onion import Layer, Onion
from fedsim.channel.sign import Sign
from fedsim.errors import require
from fedsim.fields import check_fields
from fedsim.objective import Objective
from fedsim.traits import Traits
from fedsim.types import Known, Message, Round


class OneBitAdamServer(NamedTuple):
    """What the server keeps."""

    x: Tensor  # [d] model
    m: Tensor  # [d] momentum, as all clients decoded it
    v: Tensor  # [d] variance, frozen after the warm-up
    memory: Any  # the server's error feedback


@dataclass(frozen=True)
class OneBitAdam(ModelServer):
    """Adam with one-bit messages after a warm-up.

    Attributes:
        lr: learning rate, > 0.
        lr_decay: factor on lr per round, in (0, 1].
        beta1: of the momentum, in [0, 1).
        beta2: of the variance, in [0, 1).
        eps: added to the root of the variance, > 0.
        weight_decay: decoupled, >= 0.
        warmup: rounds of plain Adam, >= 1; None: all.
        chunk: entries that share a scale on the way down, >= 1; None: the whole vector.
        floor: after the warm-up, entries stay where they are if sqrt(v) is at most this part of its root mean square.
    """

    lr: float
    lr_decay: float = 1.0
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    warmup: int | None = None
    chunk: int | None = None
    floor: float = 0.01

    def __post_init__(self) -> None:
        check_fields(self)
        require(self.lr > 0, "lr", "be > 0", self.lr)
        require(0 < self.lr_decay <= 1, "lr_decay", "be in (0, 1]", self.lr_decay)
        for name in ("beta1", "beta2"):
            require(0 <= getattr(self, name) < 1, name, "be in [0, 1)", getattr(self, name))
        require(self.eps > 0, "eps", "be > 0", self.eps)
        require(self.weight_decay >= 0, "weight_decay", "be >= 0", self.weight_decay)
        require(self.warmup is None or self.warmup >= 1, "warmup", "be >= 1, or null for Adam", self.warmup)
        require(self.floor >= 0, "floor", "be >= 0", self.floor)
        require(self.chunk is None or self.chunk >= 1, "chunk", "be >= 1, or null for one scale", self.chunk)

    @property
    def traits(self) -> Traits:
        """The words; without a warm-up that ends it is Adam, which compresses nothing."""
        said = Traits(uniform=True, everyone=True)
        if self.warmup is None:
            return said
        return said.but(compresses=("momentum",), in_full=("gradient", "x"), compresses_from=self.warmup)

    @property
    def onion(self) -> Onion:
        """The server's own error feedback and one-bit compression."""
        return Onion("momentum", (Layer("ef14", EF14()), Layer("sign", Sign("l2", self.chunk))))

    def warm(self, rnd: Round) -> bool:
        """Whether this round is plain Adam."""
        return self.warmup is None or rnd.index < self.warmup

    def init_server(self, x0: Tensor) -> OneBitAdamServer:
        """The model at rest."""
        zeros = torch.zeros_like(x0)
        return OneBitAdamServer(x0, zeros, zeros, self.onion.init(zeros, "init"))

    def broadcast(self, server: OneBitAdamServer, rnd: Round) -> Message:
        """The model [d]; after the warm-up the momentum [d], from which clients know the model."""
        if self.warm(rnd):
            return {"x": server.x}
        if rnd.index == self.warmup:
            return {"x": server.x, "momentum": Known(server.m)}
        return {"x": Known(server.x), "momentum": server.m}

    def local(self, obj: Objective, client: tuple[()], got: Message, rnd: Round) -> tuple[Message, tuple[()]]:
        """g: the mean gradient at x over the K minibatches; sends g, or beta1 m + (1 - beta1) g, [d]."""
        g = mean_gradient(obj, got["x"])
        if self.warm(rnd):
            return {"gradient": g}, client
        # m is the last decoded global momentum, the same at every client; the channel compresses what comes out
        return {"momentum": self.beta1 * got["momentum"] + (1 - self.beta1) * g}, client

    def server(self, server: OneBitAdamServer, received: Message, rnd: Round) -> OneBitAdamServer:
        """x <- x - lr (m / (sqrt(v) + eps) + weight_decay x) with the new m, S(mean + error) after the warm-up."""
        x, m, v, memory = server
        if self.warm(rnd):
            g = received["gradient"]
            m, v = self.beta1 * m + (1 - self.beta1) * g, self.beta2 * v + (1 - self.beta2) * g.square()
        else:
            # the server compresses once more, with an error of its own, so that one bit an entry goes down too
            m, memory, _ = self.onion.send(received["momentum"], memory, _no_noise)
        step = m / (v.sqrt() + self.eps)  # no bias correction, as in the authors' code
        if not self.warm(rnd):
            step = torch.where(v > self.floor**2 * v.mean(), step, 0.0)
        lr = self.lr * self.lr_decay**rnd.index
        return OneBitAdamServer(x - lr * (step + self.weight_decay * x), m, v, memory)


def _no_noise(address: str) -> Any:
    return None
