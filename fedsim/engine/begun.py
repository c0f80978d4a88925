"""What workers do for an asynchronous server: each client goes on from the broadcast that it began with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from fedsim.channel.message import heard
from fedsim.objective import Objective
from fedsim.types import Message, Round


@dataclass(frozen=True)
class Begun:
    """A server algorithm whose clients' rows hold, beside their state, the broadcast that each got.

    Attributes:
        base: the algorithm.
    """

    stacked: ClassVar[bool] = True
    base: Any

    def init_server(self, x0: Any) -> Any:
        """As the algorithm."""
        return self.base.init_server(x0)

    def init_client(self, x0: Any) -> Any:
        """The algorithm's state of a client, and its first broadcast."""
        first = self.base.broadcast(self.base.init_server(x0), Round(0, (0,), 1))
        return self.base.init_client(x0), heard(first)

    def broadcast(self, server: Any, rnd: Round) -> Message:
        """As the algorithm."""
        sent: Message = self.base.broadcast(server, rnd)
        return sent

    def local(self, obj: Objective, client: Any, got: Message, rnd: Round) -> tuple[Message, Any]:
        """The algorithm's work from the broadcast in the client's row."""
        state, begun = client
        message, state = self.base.local(obj, state, begun, rnd)
        return message, (state, begun)

    def server(self, server: Any, received: Message, rnd: Round) -> Any:
        """As the algorithm."""
        return self.base.server(server, received, rnd)
