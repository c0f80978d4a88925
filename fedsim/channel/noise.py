"""Addressed random numbers of the channel: functions of (seed, link, layer, field, round, client)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedsim.ground import addresses
from fedsim.ground.opaque import opaque
from fedsim.ground.rng import key, stream


@dataclass(frozen=True, eq=False)
class Addressed:
    """The random numbers of one use of one layer; see ``fedsim.channel.base.Noise``.

    Draws are float32 whatever the run's dtype, so that the dtype changes rounding only.

    Attributes:
        run: its seed.
        purpose: of ``fedsim.ground.addresses``, down to the layer and field.
        index: round.
        client: number of the client, int64 scalar.
    """

    run: int
    purpose: str
    index: int
    client: Tensor

    def at(self, part: int) -> Addressed:
        """Other numbers for each part of the use: a local step, a chunk of examples."""
        return replace(self, purpose=addresses.member(self.purpose, part))

    def uniform(self, like: Tensor) -> Tensor:
        """Uniform on [0, 1), in the shape, dtype and device of ``like``."""
        shape = like.shape
        return self._draw("uniform", lambda g: torch.rand(shape, generator=g)).to(like.dtype)

    def normal(self, like: Tensor) -> Tensor:
        """Standard normal, in the shape, dtype and device of ``like``."""
        shape = like.shape
        return self._draw("normal", lambda g: torch.randn(shape, generator=g)).to(like.dtype)

    def subset(self, k: int, like: Tensor) -> Tensor:
        """k of the len(like) positions of a vector, drawn without replacement: [k] int64, ascending."""
        d = like.shape[0]
        return self._draw("subset", lambda g: torch.randperm(d, generator=g)[:k].sort().values)

    def seed(self, like: Tensor) -> Tensor:
        """The 63-bit number, int64 scalar, from which anybody draws the same ``subset``."""

        def alone(client: Tensor) -> Tensor:
            number = key(self.run, addresses.member(self.purpose, "subset"), self.index, int(client))
            return torch.tensor(number, device=client.device)

        drawn: Tensor = opaque(alone, lambda clients: torch.stack([alone(c) for c in clients]), self.client)
        return drawn

    def _draw(self, kind: str, draw: Callable[[torch.Generator], Tensor]) -> Tensor:
        purpose = addresses.member(self.purpose, kind)

        def alone(client: Tensor) -> Tensor:
            return draw(stream(self.run, purpose, self.index, int(client))).to(client.device)

        def together(clients: Tensor) -> Tensor:
            return torch.stack([alone(client) for client in clients])

        drawn: Tensor = opaque(alone, together, self.client)
        return drawn
