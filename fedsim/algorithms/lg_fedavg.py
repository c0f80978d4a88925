"""LG-FedAvg: every client has its own feature extractor, the header is averaged.

Liang, Liu, Ziyin, Allen, Auerbach, Brent, Salakhutdinov, Morency, "Think Locally, Act Globally: Federated Learning with
Local and Global Representations", NeurIPS 2019 workshop, arXiv 2001.01523, the algorithm box; the rule of the
header as in HtFLlib (github TsingZ0/HtFLlib, serverlg): weights n_i.

Deviation: the global part is the last linear layer alone, so that the extractors may differ from client to client. By
default clients predict with the header that they trained last (``predict=local``), as in the comparison of FedGH.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from fedsim.algorithms.kit.local_sgd import MomentumSGD
from fedsim.algorithms.kit.roles import OwnModel
from fedsim.algorithms.kit.shared_head import GlobalHead, SharedHead
from fedsim.objective import Objective
from fedsim.traits import Traits
from fedsim.types import Message, Round


@dataclass(frozen=True)
class LGFedAvg(SharedHead, MomentumSGD):
    """Local extractors, averaged header.

    Attributes:
        predict: the header that clients predict with: ``local``, the one that they trained last, or ``global``.
    """

    traits: ClassVar[Traits] = Traits(shares="head", hooks=("own",))
    predict: Literal["local", "global"] = "local"

    def local(self, obj: Objective, client: OwnModel, got: Message, rnd: Round) -> tuple[Message, OwnModel]:
        """K steps of the whole model from the own extractor and the global header; sends the header's update."""
        body, _ = obj.split(client.x)
        x = self.solve(obj, obj.join(body, got["head"]), self.rate(rnd))
        return {"head": obj.split(x)[1] - got["head"]}, OwnModel(x)

    def server(self, server: GlobalHead, received: Message, rnd: Round) -> GlobalHead:
        """header <- mean of the clients' headers."""
        return GlobalHead(server.head + received["head"])
