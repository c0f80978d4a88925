"""FedPer: the base is averaged, every client keeps a head of its own; both are trained together.

Arivazhagan, Aggarwal, Singh, Choudhary, "Federated Learning with Personalization Layers", 2019, arXiv 1912.00818,
the algorithm box, of client and server.

Deviation: the personalization layers are the last linear layer (``model.head``); clients send the base's update.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from torch import Tensor

from fedsim.algorithms.kit.local_sgd import MomentumSGD
from fedsim.objective import Objective
from fedsim.traits import Traits
from fedsim.types import Message, Round


class FedPerServer(NamedTuple):
    """What the server keeps."""

    body: Tensor  # [d - C (f + 1)] global base


class FedPerClient(NamedTuple):
    """What a client keeps between its rounds."""

    head: Tensor  # [C, f + 1] own head, the bias last


@dataclass(frozen=True)
class FedPer(MomentumSGD):
    """Averaged base, personal heads."""

    traits: ClassVar[Traits] = Traits(shares="body", keeps="head", hooks=("own",))

    def init_server(self, x0: Tensor) -> FedPerServer:
        """The initial base."""
        return FedPerServer(x0)

    def init_client(self, x0: Tensor) -> FedPerClient:
        """The initial head."""
        return FedPerClient(x0)

    def broadcast(self, server: FedPerServer, rnd: Round) -> Message:
        """The base [d - C (f + 1)]."""
        return {"body": server.body}

    def local(self, obj: Objective, client: FedPerClient, got: Message, rnd: Round) -> tuple[Message, FedPerClient]:
        """K steps of the whole model from the global base and the own head; sends the base's update."""
        body, head = obj.split(self.solve(obj, obj.join(got["body"], client.head), self.rate(rnd)))
        return {"body": body - got["body"]}, FedPerClient(head)

    def server(self, server: FedPerServer, received: Message, rnd: Round) -> FedPerServer:
        """base <- mean of the clients' bases."""
        return FedPerServer(server.body + received["body"])

    def own(self, obj: Objective, client: FedPerClient, got: Message, rnd: Round) -> Tensor:
        """The global base with the client's head, [d]."""
        return obj.join(got["body"], client.head)
