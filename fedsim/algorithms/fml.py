"""FML: a client's own model and a shared one teach each other; only the shared one travels.

Shen, Zhang, Jia, Zhang, Huang, Zhou, Kuang, Wu, Wu, "Federated Mutual Learning", 2020, arXiv 2006.16765, the algorithm
box (the shared model is the paper's meme model).

Deviation: clients send the shared model's update.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from fedsim.algorithms.kit.local_sgd import MomentumSGD
from fedsim.algorithms.kit.roles import GlobalModel, ModelOwners, ModelServer, OwnModel
from fedsim.data.losses import cross_entropy
from fedsim.errors import require
from fedsim.objective import Objective
from fedsim.traits import Traits
from fedsim.types import Batch, Message, Round


class _Pair(NamedTuple):
    own: Tensor
    shared: Tensor


def mutual(outputs: Tensor, features: Tensor, y: Tensor, teacher: Tensor, *, weight: float) -> Tensor:
    """What turns cross-entropy into weight * cross-entropy + (1 - weight) * KL(teacher || outputs), [..., m]."""
    log_p, log_q = torch.log_softmax(teacher, -1), torch.log_softmax(outputs, -1)
    kl = (log_p.exp() * (log_p - log_q)).sum(-1)
    # the objective has the cross-entropy with weight 1 already
    return (1 - weight) * (kl - cross_entropy(outputs, y))


@dataclass(frozen=True)
class FML(ModelOwners, ModelServer, MomentumSGD):
    """Mutual learning with a shared model.

    Attributes:
        common: number of the shared model's architecture among the run's models, >= 0.
        alpha: weight of the data in the own model's loss, in [0, 1]; the rest is the shared model's opinion.
        beta: the same for the shared model.
    """

    traits: ClassVar[Traits] = Traits(shares="common", classes=True, hooks=("own", "common"))
    common: int = 0
    alpha: float = 0.5
    beta: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("alpha", "beta"):
            require(0 <= getattr(self, name) <= 1, name, "be in [0, 1]", getattr(self, name))
        require(self.common >= 0, "common", "be >= 0", self.common)
        require(self.momentum == 0, "momentum", "be 0: the two models have no common step", self.momentum)

    def local(self, obj: Objective, client: OwnModel, got: Message, rnd: Round) -> tuple[Message, OwnModel]:
        """K steps of both models, each taught by the other's outputs before the step; sends the shared one's update."""
        lr, shared = self.rate(rnd), obj.of(self.common)

        def step(now: _Pair, batch: Batch) -> _Pair:
            # both opinions are of before the step: neither model teaches with what it learns in it
            mine, theirs = obj.outputs(now.own, batch), shared.outputs(now.shared, batch)
            own = obj.plus(partial(mutual, weight=self.alpha), lambda batch: (theirs,))
            common = shared.plus(partial(mutual, weight=self.beta), lambda batch: (mine,))
            return _Pair(
                self.step(now.own, own.grad(now.own, batch), lr),
                self.step(now.shared, common.grad(now.shared, batch), lr),
            )

        after = obj.run(step, _Pair(client.x, got["x"]))
        return {"update": after.shared - got["x"]}, OwnModel(after.own)

    def server(self, server: GlobalModel, received: Message, rnd: Round) -> GlobalModel:
        """Shared model <- mean of the clients' copies."""
        return GlobalModel(server.x + received["update"])
