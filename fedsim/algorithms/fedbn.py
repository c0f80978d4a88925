"""FedBN: every client keeps its batch normalisation, the rest of the model is averaged.

Li, Jiang, Zhang, Kamp, Dou, "FedBN: Federated Learning on Non-IID Features via Local Batch Normalization", ICLR 2021,
arXiv 2102.07623, the algorithm box.

Deviation: clients send updates. The scales and shifts of BatchNorm are the method's; its running statistics stay at the
client by ``model.batchnorm=local``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from torch import Tensor

from fedsim.algorithms.kit.local_sgd import MomentumSGD
from fedsim.objective import Objective
from fedsim.traits import Traits
from fedsim.types import Message, Round


class FedBNServer(NamedTuple):
    """What the server keeps."""

    shared: Tensor  # [d - p] all but the scales and shifts of BatchNorm


class FedBNClient(NamedTuple):
    """What a client keeps between its rounds."""

    norms: Tensor  # [p] its scales and shifts of BatchNorm


@dataclass(frozen=True)
class FedBN(MomentumSGD):
    """Averaged weights, personal batch normalisation."""

    traits: ClassVar[Traits] = Traits(shares="unnormed", keeps="norms", hooks=("own",))

    def init_server(self, x0: Tensor) -> FedBNServer:
        """The initial model without its BatchNorm."""
        return FedBNServer(x0)

    def init_client(self, x0: Tensor) -> FedBNClient:
        """The initial scales and shifts."""
        return FedBNClient(x0)

    def broadcast(self, server: FedBNServer, rnd: Round) -> Message:
        """All but BatchNorm [d - p]."""
        return {"shared": server.shared}

    def local(self, obj: Objective, client: FedBNClient, got: Message, rnd: Round) -> tuple[Message, FedBNClient]:
        """K steps of the whole model; sends the update of all but BatchNorm."""
        x = self.solve(obj, obj.join_norms(got["shared"], client.norms), self.rate(rnd))
        shared, norms = obj.split_norms(x)
        return {"shared": shared - got["shared"]}, FedBNClient(norms)

    def server(self, server: FedBNServer, received: Message, rnd: Round) -> FedBNServer:
        """shared <- mean of the clients' models but for BatchNorm."""
        return FedBNServer(server.shared + received["shared"])

    def own(self, obj: Objective, client: FedBNClient, got: Message, rnd: Round) -> Tensor:
        """The shared weights with the client's BatchNorm, [d]."""
        return obj.join_norms(got["shared"], client.norms)
