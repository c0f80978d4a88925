"""FedNova: normalised averaging, so that clients with more local steps do not weigh more.

Wang, Liu, Liang, Joshi, Poor, "Tackling the Objective Inconsistency Problem in Heterogeneous Federated Optimization",
NeurIPS 2020, arXiv 2007.07481, the algorithm box of FedNova; the counters are those of the authors' code (github
JYWa/FedNova, distoptim/FedNova.py).

Deviations: with both momentum and mu the authors' counters add 1 for a step twice; here one recursion counts what the
local steps really add up to, c <- m c + 1, a <- (1 - lr mu) a + c, which is theirs when either is zero. No server
momentum. Equal K_i with mu = 0 give the mean of the local models: FedAvg with the same local solver (``local_sgd``).
The proximal term is clipped with the gradient, as one vector, but stays out of the momentum buffer, as in their code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from fedsim.algorithms.kit.local_sgd import MomentumSGD
from fedsim.algorithms.kit.roles import GlobalModel, ModelServer
from fedsim.errors import require
from fedsim.objective import Objective
from fedsim.traits import Traits
from fedsim.types import Batch, Message, Round


class Carry(NamedTuple):
    """What goes from local step to local step."""

    y: Tensor  # [d] local model
    v: Tensor  # [d] momentum buffer
    c: Tensor  # scalar, weight of the newest gradient's step and all that momentum adds to it so far
    a: Tensor  # scalar, sum of the weights with which gradients entered y: ||a_i||_1


@dataclass(frozen=True)
class FedNova(ModelServer, MomentumSGD):
    """Federated normalised averaging. The weights p_i are the aggregator's.

    Attributes:
        mu: weight of the proximal term mu/2 ||y - x||^2, >= 0; lr mu must stay below 1.
    """

    traits: ClassVar[Traits] = Traits(public=("tau",), hooks=("public_of",))
    mu: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.mu < 1 / self.lr, "mu", f"be in [0, 1/lr = {1 / self.lr:g})", self.mu)

    def public_of(self, steps: int, rnd: Round) -> dict[str, float]:
        """What tau_eff averages, of a client with so many local steps: it follows from them and the options alone."""
        if self.mu:
            return {"tau": float(steps)}
        c = a = 0.0
        for _ in range(steps):
            c = self.momentum * c + 1
            a += c
        return {"tau": a}

    def local(self, obj: Objective, client: tuple[()], got: Message, rnd: Round) -> tuple[Message, tuple[()]]:
        """K local steps; sends (x - y) / a_i [d] and what tau_eff averages: a_i, or K_i if mu > 0."""
        x, lr = got["x"], self.rate(rnd)

        def step(now: Carry, batch: Batch) -> Carry:
            pull = self.mu * (now.y - x)
            along = self.momentum * now.v + self.bounded(now.y, obj.grad(now.y, batch) + pull)
            # the counters follow the weights: a new gradient enters with 1 and, by momentum, with m, m^2, ... later on
            c = self.momentum * now.c + 1
            a = (1 - lr * self.mu) * now.a + c  # the proximal term shrinks what has entered before
            return Carry(now.y - lr * along, along - pull, c, a)  # the buffer remembers no proximal term

        end = obj.run(step, Carry(x, torch.zeros_like(x), x.new_zeros(()), x.new_zeros(())))
        tau = obj.steps.to(x.dtype) if self.mu else end.a  # as the authors' code has it
        return {"direction": (x - end.y) / end.a, "tau": tau}, client

    def server(self, server: GlobalModel, received: Message, rnd: Round) -> GlobalModel:
        """x <- x - tau_eff sum_i p_i (x - y_i) / a_i, tau_eff the mean of what the clients sent."""
        return GlobalModel(server.x - received["tau"] * received["direction"])
