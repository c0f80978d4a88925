"""LG-FedAvg: every client has its own feature extractor, the header is averaged.

Liang, Liu, Ziyin, Allen, Auerbach, Brent, Salakhutdinov, Morency, "Think Locally, Act Globally: Federated Learning with
Local and Global Representations", NeurIPS 2019 workshop, arXiv 2001.01523, the algorithm box; the rule of the
header as in HtFLlib (github TsingZ0/HtFLlib, serverlg): weights n_i.

Deviation: the global part is the last linear layer alone, so that the extractors may differ from client to client. By
default clients predict with the header that they trained last (``predict=local``), as in the comparison of FedGH.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

from torch import Tensor

from fedsim.algorithms.kit.local_sgd import MomentumSGD
from fedsim.objective import Objective
from fedsim.traits import Traits
from fedsim.types import Message, Round


class ServerState(NamedTuple):
    """What the server keeps."""

    head: Tensor  # [C, f + 1] global header, the bias last


class ClientState(NamedTuple):
    """What a client keeps between its rounds."""

    x: Tensor  # [d] model after its last round; only its extractor goes into the next


@dataclass(frozen=True)
class LGFedAvg(MomentumSGD):
    """Local extractors, averaged header.

    Attributes:
        predict: the header that clients predict with: ``local``, the one that they trained last, or ``global``.
    """

    traits: ClassVar[Traits] = Traits(shares="head", hooks=("own",))
    predict: Literal["local", "global"] = "local"

    def init_server(self, x0: Tensor) -> ServerState:
        """The initial header [C, f + 1]."""
        return ServerState(x0)

    def init_client(self, x0: Tensor) -> ClientState:
        """The initial model of the client's architecture."""
        return ClientState(x0)

    def broadcast(self, server: ServerState, rnd: Round) -> Message:
        """The header [C, f + 1]."""
        return {"head": server.head}

    def local(self, obj: Objective, client: ClientState, got: Message, rnd: Round) -> tuple[Message, ClientState]:
        """K steps of the whole model from the own extractor and the global header; sends the header's update."""
        body, _ = obj.split(client.x)
        x = self.solve(obj, obj.join(body, got["head"]), self.rate(rnd))
        return {"head": obj.split(x)[1] - got["head"]}, ClientState(x)

    def server(self, server: ServerState, received: Message, rnd: Round) -> ServerState:
        """header <- mean of the clients' headers."""
        return ServerState(server.head + received["head"])

    def own(self, obj: Objective, client: ClientState, got: Message, rnd: Round) -> Tensor:
        """The model [d] that the client predicts with."""
        return client.x if self.predict == "local" else obj.join(obj.split(client.x)[0], got["head"])
