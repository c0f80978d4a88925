"""What workers do for peers: an algorithm without a server, in the shape that workers know."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from fedsim.objective import Objective
from fedsim.pool.begun import Begun
from fedsim.pool.owned_buffers import AveragedBuffers, LocalBuffers
from fedsim.traits import Traits
from fedsim.types import Message, Round


@dataclass(frozen=True)
class LocalPart:
    """A peer algorithm's ``local``: nothing is received, nothing is sent; the driver lets the peers talk.

    Attributes:
        base: the peers' algorithm.
    """

    traits: ClassVar[Traits] = Traits(shares="nothing")
    base: Any

    def init_server(self, x0: Any) -> tuple[()]:
        """There is no server."""
        return ()

    def init_client(self, x0: Any) -> Any:
        """The client's state as the peer algorithm begins it."""
        return self.base.init_client(x0)

    def broadcast(self, server: tuple[()], rnd: Round) -> Message:
        """Nothing."""
        return {}

    def local(self, obj: Objective, client: Any, got: Message, rnd: Round) -> tuple[Message, Any]:
        """The algorithm's work; no message."""
        return {}, self.base.local(obj, client, rnd)

    def server(self, server: tuple[()], received: Message, rnd: Round) -> tuple[()]:
        """Nothing."""
        return server


def written(algorithm: Any) -> Any:
    """The algorithm as it was written, without what the engine puts around it for workers."""
    around = (LocalPart, Begun, LocalBuffers, AveragedBuffers)
    return written(algorithm.base) if isinstance(algorithm, around) else algorithm
