"""FedProto: clients of any architecture agree on a prototype of each class in feature space.

Tan, Long, Liu, Zhou, Lu, Jiang, Zhang, "FedProto: Federated Prototype Learning across Heterogeneous Clients", AAAI
2022, arXiv 2105.00243, the algorithm box; the authors' code: github yuetan031/FedProto.

Deviations: a client's prototypes are the plain means of its features after training (theirs: gathered while training in
the last local epoch); the server's mean over the owners of a class is unweighted, as in the code, unless
``aggregate.weights=examples``. A class that nobody in the cohort owns keeps its prototype.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from fedsim.algorithms.kit.local_sgd import MomentumSGD
from fedsim.algorithms.kit.prototypes import at_class, class_means, of_class
from fedsim.algorithms.kit.roles import ModelOwners, OwnModel
from fedsim.errors import require
from fedsim.objective import Objective
from fedsim.traits import Traits
from fedsim.types import Message, Owned, Round


class FedProtoServer(NamedTuple):
    """What the server keeps."""

    prototypes: Tensor  # [C, f] zero where there is none yet
    known: Tensor  # [C] bool: the class has a prototype


def distance(outputs: Tensor, features: Tensor, y: Tensor, prototypes: Tensor, known: Tensor, *, ld: float) -> Tensor:
    """ld times the mean squared distance [..., m] of features [..., m, f] to their classes' prototypes [..., C, f]."""
    gap = (features - at_class(prototypes, y)).square().mean(-1)
    return ld * gap * of_class(known.to(gap.dtype), y)


@dataclass(frozen=True)
class FedProto(ModelOwners, MomentumSGD):
    """Prototypes instead of parameters.

    Attributes:
        ld: weight of the distance to the prototypes, >= 0.
        predict: what a client predicts with: its own ``head``, or the nearest ``prototype`` (before any, the head).
    """

    traits: ClassVar[Traits] = Traits(shares="head", classes=True, hooks=("own",))
    ld: float = 1.0
    predict: Literal["head", "prototype"] = "head"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.ld >= 0, "ld", "be >= 0", self.ld)

    def init_server(self, x0: Tensor) -> FedProtoServer:
        """No prototypes; the head [C, f + 1] gives their shape."""
        return FedProtoServer(torch.zeros_like(x0[:, :-1]), torch.zeros_like(x0[:, 0], dtype=torch.bool))

    def broadcast(self, server: FedProtoServer, rnd: Round) -> Message:
        """The prototypes [C, f] that exist."""
        return {"prototypes": Owned(*server)}

    def local(self, obj: Objective, client: OwnModel, got: Message, rnd: Round) -> tuple[Message, OwnModel]:
        """K steps on cross-entropy + ld * distance to the prototypes; sends its own prototypes [C, f]."""
        prototypes, known = got["prototypes"]
        drawn = obj.plus(partial(distance, ld=self.ld), lambda batch: (prototypes, known))
        x = self.solve(drawn, client.x, self.rate(rnd))
        means = class_means(obj.sweep, lambda batch: obj.features(x, batch), len(known), prototypes.shape[1], x)
        return {"prototypes": means}, OwnModel(x)

    def server(self, server: FedProtoServer, received: Message, rnd: Round) -> FedProtoServer:
        """Prototype of a class <- mean over the clients that own it."""
        values, had = received["prototypes"]  # a mean of ``Owned`` rows is over those who own them
        return FedProtoServer(torch.where(had[:, None], values, server.prototypes), had | server.known)

    def own(self, obj: Objective, client: OwnModel, got: Message, rnd: Round) -> Tensor:
        """The client's model [d], for ``prototype`` with a head whose largest output is the nearest prototype's."""
        if self.predict == "head":
            return client.x
        prototypes, known = got["prototypes"]
        body, head = obj.split(client.x)
        # ||r - p||^2 = ||r||^2 - (2 p.r - ||p||^2): the nearest prototype is the largest logit of this linear layer
        bias = torch.where(known, -prototypes.square().sum(1), FAR)
        nearest = torch.cat([2 * prototypes, bias[:, None]], 1)
        return obj.join(body, torch.where(known.any(), nearest, head))


FAR = -1e30
"""The bias of a class without a prototype: farther than any, whatever the length of the features."""
