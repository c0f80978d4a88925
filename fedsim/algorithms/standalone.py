"""Standalone: every client trains alone; nothing is sent. The baseline that every personalized method must beat.

No paper: SGD on the client's own data, the model kept between the rounds in which it takes part.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from torch import Tensor

from fedsim.algorithms.kit.local_sgd import MomentumSGD
from fedsim.objective import Objective
from fedsim.traits import Traits
from fedsim.types import Message, Round


class ClientState(NamedTuple):
    """What a client keeps between its rounds."""

    x: Tensor  # [d] own model


@dataclass(frozen=True)
class Standalone(MomentumSGD):
    """Local training only."""

    traits: ClassVar[Traits] = Traits(shares="nothing", hooks=("own",))

    def init_server(self, x0: Tensor) -> tuple[()]:
        """There is no server."""
        return ()

    def init_client(self, x0: Tensor) -> ClientState:
        """The initial model."""
        return ClientState(x0)

    def broadcast(self, server: tuple[()], rnd: Round) -> Message:
        """Nothing."""
        return {}

    def local(self, obj: Objective, client: ClientState, got: Message, rnd: Round) -> tuple[Message, ClientState]:
        """K steps of SGD on the client's own model; sends nothing."""
        return {}, ClientState(self.solve(obj, client.x, self.rate(rnd)))

    def server(self, server: tuple[()], received: Message, rnd: Round) -> tuple[()]:
        """Nothing."""
        return server

    def own(self, obj: Objective, client: ClientState, got: Message, rnd: Round) -> Tensor:
        """The client's model [d]."""
        return client.x
