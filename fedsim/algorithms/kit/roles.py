"""The plain case of each role, which most methods are: a method inherits it, and overrides what it does otherwise.

``ModelServer``: the server keeps one model and sends it. ``ModelOwners``: every client keeps a model of its own.
``ModelPeer``: a peer, of a method in rounds or in virtual time, has a model and offers it. None has hyper-parameters.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from fedsim.objective import Objective
from fedsim.traits.declared import Declared
from fedsim.types import Message, Round


class GlobalModel(NamedTuple):
    """What a server keeps that keeps nothing but the model."""

    x: Tensor  # [d] global model


class ModelServer(Declared):
    """The server keeps the model x [d] and broadcasts it; clients keep nothing between their rounds."""

    def init_server(self, x0: Tensor) -> Any:
        """``GlobalModel``: the initial model."""
        return GlobalModel(x0)

    def init_client(self, x0: Tensor) -> Any:
        """``()``: clients keep nothing."""
        return ()

    def broadcast(self, server: Any, rnd: Round) -> Message:
        """The global model x [d]."""
        return {"x": server.x}


class OwnModel(NamedTuple):
    """What a client keeps that keeps nothing but a model of its own."""

    x: Tensor  # [d] its model after its last round


class ModelOwners(Declared):
    """Every client keeps a model x [d] of its own, and predicts with it; its class declares the hook ``own``."""

    def init_client(self, x0: Tensor) -> Any:
        """``OwnModel``: the initial model of the client's architecture."""
        return OwnModel(x0)

    def own(self, obj: Objective, client: Any, got: Message, rnd: Round) -> Tensor:
        """The client's model [d]."""
        x: Tensor = client.x
        return x


class ModelPeer(Declared):
    """A peer's state has its model x [d], which it predicts with, and which is all that it offers to its neighbours."""

    def model(self, peer: Any) -> Tensor:
        """The peer's model x [d]."""
        x: Tensor = peer.x
        return x

    def offer(self, peer: Any, rnd: Round) -> Message:
        """The peer's model x [d]."""
        return {"x": peer.x}
