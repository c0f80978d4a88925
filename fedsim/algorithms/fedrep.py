"""FedRep: a client first fits its own head to the shared representation, then improves the representation.

Collins, Hassani, Mokhtari, Shakkottai, "Exploiting Shared Representations for Personalized Federated Learning", ICML
2021, arXiv 2102.07078, the algorithm box.

Deviations: the head's steps go over the round's minibatches ``head_passes`` times, the base's steps once (the paper
counts epochs for each); momentum starts anew with every pass; clients send the base's update.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fedsim.algorithms.fedper import FedPer, FedPerClient
from fedsim.errors import require
from fedsim.objective import Objective
from fedsim.types import Batch, Message, Round


@dataclass(frozen=True)
class FedRep(FedPer):
    """Personal heads first, then the averaged base.

    Attributes:
        head_passes: passes over the round's minibatches that train the head, >= 1.
    """

    head_passes: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.head_passes >= 1, "head_passes", "be >= 1", self.head_passes)

    def local(self, obj: Objective, client: FedPerClient, got: Message, rnd: Round) -> tuple[Message, FedPerClient]:
        """Steps of the head with the base frozen, then of the base with the head frozen; sends the base's update."""
        body, head, lr = got["body"], client.head, self.rate(rnd)

        def along_head(head: Tensor, batch: Batch) -> Tensor:
            return obj.split(obj.grad(obj.join(body, head), batch))[1]

        def along_body(body: Tensor, batch: Batch) -> Tensor:
            return obj.split(obj.grad(obj.join(body, head), batch))[0]

        for _ in range(self.head_passes):  # first the head, to the base as it came
            head = self.solve(obj, head, lr, along_head)
        return {"body": self.solve(obj, body, lr, along_body) - body}, FedPerClient(head)
