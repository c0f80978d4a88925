"""EC-SGD-DIANA (D-EC): error feedback on steps from which learned shifts take the heterogeneity out.

Gorbunov, Kovalev, Makarenko, Richtarik, "Linearly Converging Error Compensated SGD", NeurIPS 2020, arXiv 2010.12292,
the algorithm box of EC-SGD-DIANA; the authors' code: github eduardgorbunov/ef_sigma_k.

A client sends two messages: the step e + gamma (g - h_i + h), through any compressor, and g - h_i, through an unbiased
one, of whose result both sides know. The compressors come from the channel, by field:
``channel=[topk,qsgd] channel.topk.fields=[step] channel.qsgd.fields=[shift]``, or what its yaml chooses,
``channel=[of/ec_sgd_diana]``.

Deviations: under partial participation h stays the mean over ALL clients, of which the absent ones' do not change; the
step of the round may decay.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from fedsim.algorithms.kit.gradients import mean_gradient
from fedsim.errors import require
from fedsim.fields import check_fields
from fedsim.objective import Objective
from fedsim.traits import Traits
from fedsim.types import Message, Round


class ECSGDDianaServer(NamedTuple):
    """What the server keeps."""

    x: Tensor  # [d] global model
    h: Tensor  # [d] mean over all clients of their shifts


class ECSGDDianaClient(NamedTuple):
    """What a client keeps between its rounds."""

    e: Tensor  # [d] error: of the steps, what was not sent yet
    h: Tensor  # [d] shift: what its gradient will be at the optimum


@dataclass(frozen=True)
class ECSGDDiana:
    """Error-compensated SGD with DIANA's shifts.

    Attributes:
        lr: learning rate gamma, > 0.
        alpha: step of the shifts, in (0, 1]; at most 1 / (1 + omega) of the shifts' compressor.
        lr_decay: factor on lr per round, in (0, 1].
    """

    traits: ClassVar[Traits] = Traits(uniform=True, compresses=("step", "shift"), hooks=("settle",))
    lr: float
    alpha: float = 0.1
    lr_decay: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self)
        require(self.lr > 0, "lr", "be > 0", self.lr)
        require(0 < self.alpha <= 1, "alpha", "be in (0, 1]", self.alpha)
        require(0 < self.lr_decay <= 1, "lr_decay", "be in (0, 1]", self.lr_decay)

    def init_server(self, x0: Tensor) -> ECSGDDianaServer:
        """The global model, no shift."""
        return ECSGDDianaServer(x0, torch.zeros_like(x0))

    def init_client(self, x0: Tensor) -> ECSGDDianaClient:
        """No error, no shift."""
        return ECSGDDianaClient(torch.zeros_like(x0), torch.zeros_like(x0))

    def broadcast(self, server: ECSGDDianaServer, rnd: Round) -> Message:
        """The global model and the mean shift, [d] each."""
        return {"x": server.x, "h": server.h}

    def local(
        self, obj: Objective, client: ECSGDDianaClient, got: Message, rnd: Round
    ) -> tuple[Message, ECSGDDianaClient]:
        """g: the mean gradient at x over the K minibatches; sends e + gamma (g - h_i + h) and g - h_i, [d] each."""
        x, gamma = got["x"], self.lr * self.lr_decay**rnd.index
        shift = mean_gradient(obj, x) - client.h
        # the step is error-compensated, and h_i and h of before this round take the heterogeneity out of it
        return {"step": client.e + gamma * (shift + got["h"]), "shift": shift}, client

    def settle(self, client: ECSGDDianaClient, sent: Message, arrived: Message, rnd: Round) -> ECSGDDianaClient:
        """e <- what of the step was lost; h_i <- h_i + alpha (what arrived of g - h_i)."""
        return ECSGDDianaClient(sent["step"] - arrived["step"], client.h + self.alpha * arrived["shift"])

    def server(self, server: ECSGDDianaServer, received: Message, rnd: Round) -> ECSGDDianaServer:
        """x <- x - mean step; h <- mean over all clients of the new shifts."""
        # h is the mean over all N of h_i, of which the absent ones' do not change
        share = len(rnd.clients) / rnd.population
        return ECSGDDianaServer(server.x - received["step"], server.h + self.alpha * share * received["shift"])
