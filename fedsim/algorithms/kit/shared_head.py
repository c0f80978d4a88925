"""What methods share whose clients have extractors of their own under one header, the last linear layer of all."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from torch import Tensor

from fedsim.algorithms.kit.roles import ModelOwners
from fedsim.objective import Objective
from fedsim.types import Message, Round


class GlobalHead(NamedTuple):
    """What a server keeps that keeps nothing but the header."""

    head: Tensor  # [C, f + 1] global header, the bias last


class SharedHead(ModelOwners):
    """The server keeps and broadcasts the header; a client's own model has the header that the client trained last.

    Its class has the hyper-parameter ``predict``: the header that clients predict with, the one that they trained last
    (``local``) or the server's (``global``), and declares ``shares="head"`` and the hook ``own``.
    """

    predict: Literal["local", "global"]

    def init_server(self, x0: Tensor) -> GlobalHead:
        """The initial header [C, f + 1]."""
        return GlobalHead(x0)

    def broadcast(self, server: GlobalHead, rnd: Round) -> Message:
        """The header [C, f + 1]."""
        return {"head": server.head}

    def own(self, obj: Objective, client: Any, got: Message, rnd: Round) -> Tensor:
        """The model [d] that the client predicts with."""
        x: Tensor = client.x
        return x if self.predict == "local" else obj.join(obj.split(x)[0], got["head"])
