"""MESA: any method, its local loss with a pull towards the outputs of a moving average of the global model.

Du, Zhou, Feng, Tan, Zhou, "Sharpness-Aware Training for Free", NeurIPS 2022, arXiv 2205.14083 (the algorithm box, MESA;
the authors' code: github AngusDujw/SAF): cross-entropy + lam tau^2 KL(softmax(z_old / tau) || softmax(z / tau)).

Deviations: the teacher averages the server's models, once a round, and is sent to the clients beside what the method
sends (d more floats down); it starts after ``start`` rounds (theirs: 5 epochs) and counts for all later ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fedsim.algorithms.kit.around import Around, name_of, within
from fedsim.algorithms.kit.protocols import ServerAlgorithm
from fedsim.errors import require
from fedsim.objective import Objective
from fedsim.traits import Traits
from fedsim.traits.declared import traits_of
from fedsim.types import Message, Round


class MesaServer(NamedTuple):
    """What the server keeps."""

    base: Any  # of the method
    teacher: Tensor  # [d] moving average of the global model

    @property
    def x(self) -> Tensor:
        """The method's global model [d]."""
        x: Tensor = self.base.x
        return x


def pull(outputs: Tensor, features: Tensor, y: Tensor, teacher: Tensor, *, lam: float, tau: float) -> Tensor:
    """lam tau^2 KL(softmax(teacher / tau) || softmax(outputs / tau)), [..., m], of outputs and teachers [..., m, C]."""
    # the gradient of the divergence shrinks like 1 / tau^2, which the factor makes up for
    log_p, log_q = torch.log_softmax(teacher / tau, -1), torch.log_softmax(outputs / tau, -1)
    return lam * tau**2 * (log_p.exp() * (log_p - log_q)).sum(-1)


@dataclass(frozen=True)
class Mesa(Around):
    """A method with MESA's term in its clients' loss; lam = 0 is the method itself.

    Attributes:
        base: the method; it must share whole models, and train on the gradients of minibatches.
        lam: weight of the term, >= 0.
        tau: temperature, > 0.
        decay: of the moving average per round, in [0, 1).
        start: rounds without the term, >= 0.
    """

    base: ServerAlgorithm[Any, Any]
    lam: float = 0.8
    tau: float = 5.0
    decay: float = 0.9
    start: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.lam >= 0, "lam", "be >= 0", self.lam)
        require(self.tau > 0, "tau", "be > 0", self.tau)
        require(0 <= self.decay < 1, "decay", "be in [0, 1)", self.decay)
        require(self.start >= 0, "start", "be >= 0", self.start)
        said = traits_of(self.base)
        ok = said.role == "server" and said.shares == "model" and not said.stacked and "own" not in said.hooks
        must = "be a method whose server averages whole models, which clients predict with, and not MESA"
        require(ok and not within(Mesa, self.base), "base", must, name_of(self.base))
        must = "be a method that trains on gradients of minibatches: MESA's term is in no sum of clipped gradients"
        require(said.noise == "none", "base", must, name_of(self.base))

    @property
    def traits(self) -> Traits:
        """The method's; the term is one of class outputs."""
        said = traits_of(self.base)
        return said.but(classes=said.classes or self.lam > 0)

    def init_server(self, x0: Tensor) -> MesaServer:
        """The method's state; the teacher is the initial model."""
        return MesaServer(self.base.init_server(x0), x0)

    def broadcast(self, server: MesaServer, rnd: Round) -> Message:
        """What the method sends, and the teacher [d] once it counts."""
        teacher = {"teacher": server.teacher} if self.lam and rnd.index >= self.start else {}
        return {**self.base.broadcast(server.base, rnd), **teacher}

    def local(self, obj: Objective, client: Any, got: Message, rnd: Round) -> tuple[Message, Any]:
        """The method's work on the loss with the term."""
        if "teacher" in got:
            term = partial(pull, lam=self.lam, tau=self.tau)  # its gradient flows through the client's outputs only
            obj = obj.plus(term, lambda batch, plain=obj: (plain.outputs(got["teacher"], batch),))  # type: ignore[misc]
        return self.base.local(obj, client, got, rnd)

    def server(self, server: MesaServer, received: Message, rnd: Round) -> MesaServer:
        """The method's step; teacher <- decay teacher + (1 - decay) x."""
        base = self.base.server(server.base, received, rnd)
        return MesaServer(base, self.decay * server.teacher + (1 - self.decay) * base.x)
