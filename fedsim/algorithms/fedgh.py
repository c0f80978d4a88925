"""FedGH: clients of any architecture share one header, which the server trains on their class representations.

Yi, Wang, Liu, Shi, Yu, "FedGH: Heterogeneous Federated Learning with Generalized Global Header", ACM MM 2023,
arXiv 2303.13137, the algorithm box; set-up of the authors' code: github LipingYi/FedGH.

Deviations: the server's header is really trained and persistent, as in the paper (in the authors' code the optimizer of
the header step holds a client's parameters, so that the broadcast header stays random); a client's representation of a
class is the plain mean over its own examples, not augmented (theirs: mean of minibatch means of augmented images);
clients take the global header in round 0 too. By default they predict with the header that they trained last
(``predict=local``), as the authors' code measures.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from fedsim.algorithms.kit.local_sgd import MomentumSGD
from fedsim.algorithms.kit.prototypes import class_means
from fedsim.algorithms.kit.roles import OwnModel
from fedsim.algorithms.kit.shared_head import GlobalHead, SharedHead
from fedsim.errors import require
from fedsim.objective import Objective
from fedsim.traits import Traits
from fedsim.types import Message, Round


@dataclass(frozen=True)
class FedGH(SharedHead, MomentumSGD):
    """Generalized global header.

    Attributes:
        header_lr: learning rate of the server's steps on the header, > 0; the paper's is the clients' lr.
        predict: the header that clients predict with: ``local``, the one that they trained last, or ``global``.
    """

    traits: ClassVar[Traits] = Traits(shares="head", stacked=True, classes=True, hooks=("own",))
    header_lr: float = 0.01
    predict: Literal["local", "global"] = "local"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.header_lr > 0, "header_lr", "be > 0", self.header_lr)

    def local(self, obj: Objective, client: OwnModel, got: Message, rnd: Round) -> tuple[Message, OwnModel]:
        """Trains extractor and header; sends the mean representation [C, f] of the classes that it owns."""
        body, _ = obj.split(client.x)  # the header that it trained last is thrown away
        x = self.solve(obj, obj.join(body, got["head"]), self.rate(rnd))
        classes, width = got["head"].shape[0], got["head"].shape[1] - 1
        means = class_means(obj.sweep, lambda batch: obj.features(x, batch), classes, width, x)
        return {"representations": means}, OwnModel(x)

    def server(self, server: GlobalHead, received: Message, rnd: Round) -> GlobalHead:
        """One SGD step on the cross-entropy of theta(representation) for each (client, class), in that order."""
        theta, lr = server.head, self.header_lr * self.lr_decay**rnd.index
        values, mask = received["representations"]  # [c, C, f], [c, C]
        for client, label in mask.nonzero().tolist():
            r = torch.cat([values[client, label], theta.new_ones(1)])  # 1 for the bias
            error = torch.softmax(theta @ r, 0)
            error[label] -= 1  # softmax - onehot, the gradient of the cross-entropy by the logits
            theta = theta - lr * error[:, None] * r
        return GlobalHead(theta)
