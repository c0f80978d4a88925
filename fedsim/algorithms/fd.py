"""Federated distillation: clients of any architecture exchange their mean outputs by class.

Jeong, Oh, Kim, Park, Bennis, Kim, "Communication-Efficient On-Device Machine Learning: Federated Distillation and
Augmentation under Non-IID Private Data", NeurIPS 2018 workshop, arXiv 1811.11479, the algorithm box (FD without the
augmentation FAug).

Deviations: a client's mean outputs are those of its model after training, over its own examples (the paper's are
gathered while training); the distillation term is the cross-entropy to softmax of the teacher's outputs; a class that
nobody in the last cohort owns has no teacher.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from fedsim.algorithms.kit.local_sgd import MomentumSGD
from fedsim.algorithms.kit.prototypes import at_class, class_means, of_class
from fedsim.algorithms.kit.roles import ModelOwners
from fedsim.errors import require
from fedsim.objective import Objective
from fedsim.traits import Traits
from fedsim.types import Message, Round


class FDServer(NamedTuple):
    """What the server keeps: of the last cohort."""

    sums: Tensor  # [C, C] sum over the owners of a class (row) of their mean outputs
    owners: Tensor  # [C] how many own it


class FDClient(NamedTuple):
    """What a client keeps between its rounds."""

    x: Tensor  # [d] own model
    rounds: Tensor  # scalar: the round after which it sent its outputs last, counted from 1; 0: never


def teach(outputs: Tensor, features: Tensor, y: Tensor, teacher: Tensor, known: Tensor, *, gamma: float) -> Tensor:
    """gamma times the cross-entropy [..., m] of outputs [..., m, C] to their classes' teachers [..., C, C]."""
    target = torch.softmax(at_class(teacher, y), -1)
    return -gamma * of_class(known, y) * (target * torch.log_softmax(outputs, -1)).sum(-1)


@dataclass(frozen=True)
class FD(ModelOwners, MomentumSGD):
    """Federated distillation.

    Attributes:
        gamma: weight of the distillation term, >= 0.
    """

    traits: ClassVar[Traits] = Traits(shares="head", stacked=True, classes=True, hooks=("own",))
    gamma: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.gamma >= 0, "gamma", "be >= 0", self.gamma)

    def init_server(self, x0: Tensor) -> FDServer:
        """No outputs yet; the head [C, f + 1] gives their number."""
        return FDServer(x0.new_zeros(len(x0), len(x0)), x0.new_zeros(len(x0)))

    def init_client(self, x0: Tensor) -> FDClient:
        """The initial model of the client's architecture."""
        return FDClient(x0, x0.new_zeros(()))

    def broadcast(self, server: FDServer, rnd: Round) -> Message:
        """The sums [C, C] of the last cohort's mean outputs and the owners [C] of each class."""
        return {"sums": server.sums, "owners": server.owners}

    def local(self, obj: Objective, client: FDClient, got: Message, rnd: Round) -> tuple[Message, FDClient]:
        """K steps on cross-entropy + distillation from the other clients' mean; sends its own mean outputs [C, C]."""
        classes, x = len(got["owners"]), client.x
        sent = class_means(obj.sweep, lambda batch: obj.outputs(client.x, batch), classes, classes, x)
        # the teacher is the mean of the others: this client's own part is taken out of the sums, if it sent last round;
        # what it sent is not kept, but follows from its model, which has not moved since
        mine = (sent.mask & (client.rounds == rnd.index)).to(x.dtype) * min(rnd.index, 1)  # [C] its part of the sums
        others = got["owners"] - mine
        teacher = (got["sums"] - sent.values * mine[:, None]) / others.clamp(min=1)[:, None]
        known = (others > 0).to(x.dtype)
        x = self.solve(obj.plus(partial(teach, gamma=self.gamma), lambda batch: (teacher, known)), x, self.rate(rnd))
        means = class_means(obj.sweep, lambda batch: obj.outputs(x, batch), classes, classes, x)
        return {"outputs": means}, FDClient(x, torch.full_like(client.rounds, rnd.index + 1))

    def server(self, server: FDServer, received: Message, rnd: Round) -> FDServer:
        """Sums over the clients, and counts, by class."""
        values, mask = received["outputs"]  # [c, C, C], [c, C]
        return FDServer(values.sum(0), mask.sum(0).to(values.dtype))
