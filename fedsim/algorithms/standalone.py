"""Standalone: every client trains alone; nothing is sent. The baseline that every personalized method must beat.

No paper: SGD on the client's own data, the model kept between the rounds in which it takes part.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fedsim.algorithms.kit.local_sgd import MomentumSGD
from fedsim.algorithms.kit.roles import ModelOwners, OwnModel
from fedsim.objective import Objective
from fedsim.traits import Traits
from fedsim.types import Message, Round


@dataclass(frozen=True)
class Standalone(ModelOwners, MomentumSGD):
    """Local training only."""

    traits: ClassVar[Traits] = Traits(shares="nothing", hooks=("own",))

    def init_server(self, x0: Tensor) -> tuple[()]:
        """There is no server."""
        return ()

    def broadcast(self, server: tuple[()], rnd: Round) -> Message:
        """Nothing is sent."""
        return {}

    def local(self, obj: Objective, client: OwnModel, got: Message, rnd: Round) -> tuple[Message, OwnModel]:
        """K steps of SGD on the client's own model; sends nothing."""
        return {}, OwnModel(self.solve(obj, client.x, self.rate(rnd)))

    def server(self, server: tuple[()], received: Message, rnd: Round) -> tuple[()]:
        """Nothing is received."""
        return server
