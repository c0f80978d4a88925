"""What workers do for an asynchronous server: each client goes on from the broadcast that it began with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fedsim.algorithms.kit.around import Around
from fedsim.channel.message import heard
from fedsim.objective import Objective
from fedsim.traits import Traits
from fedsim.traits.declared import traits_of
from fedsim.types import Message, Round


@dataclass(frozen=True)
class Begun(Around):
    """A server algorithm whose clients' rows hold, beside their state, the broadcast that each got.

    Attributes:
        base: the algorithm.
    """

    @property
    def traits(self) -> Traits:
        """The algorithm's; the engine takes its clients' messages one by one."""
        return traits_of(self.base).but(stacked=True)

    def inside(self, state: Any) -> Any:
        """The algorithm's state of a client."""
        return state[0]

    def put(self, state: Any, inner: Any) -> Any:
        """The same row with another state of the algorithm."""
        return inner, state[1]

    def init_client(self, x0: Any) -> Any:
        """The algorithm's state of a client, and its first broadcast."""
        first = self.base.broadcast(self.base.init_server(x0), Round(0, (0,), 1))
        return self.base.init_client(x0), heard(first)

    def local(self, obj: Objective, client: Any, got: Message, rnd: Round) -> tuple[Message, Any]:
        """The algorithm's work from the broadcast in the client's row."""
        state, begun = client
        message, state = self.base.local(obj, state, begun, rnd)
        return message, (state, begun)
