"""Addressed random numbers of the channel: functions of (seed, link, layer, field, round, client)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from fedsim.ground import addresses, by_key
from fedsim.ground.opaque import opaque
from fedsim.ground.rng import key, stream
from fedsim.ground.transfer import sent


@dataclass(frozen=True, eq=False)
class Addressed:
    """The random numbers of one use of one layer; see ``fedsim.channel.base.Noise``.

    Draws are float32 whatever the run's dtype, so that the dtype changes rounding only. Those of the CPU come from one
    stream after the other; on a GPU all clients' are computed at once, by the same addresses, to other numbers.

    Attributes:
        run: its seed.
        purpose: of ``fedsim.ground.addresses``, down to the layer and field.
        index: round.
        client: number of the client, int64 scalar.
        number: the same on the CPU, where streams are named; None: it is there.
    """

    run: int
    purpose: str
    index: int
    client: Tensor
    number: Tensor | None = None

    def at(self, part: int) -> Addressed:
        """Other numbers for each part of the use: a local step, a chunk of examples."""
        return replace(self, purpose=addresses.member(self.purpose, part))

    def uniform(self, like: Tensor) -> Tensor:
        """Uniform on [0, 1), in the shape, dtype and device of ``like``."""
        shape = like.shape
        draw = _Draw(lambda g: torch.rand(shape, generator=g), lambda keys: by_key.uniform(keys, shape))
        return self._draw("uniform", draw, like.device).to(like.dtype)

    def normal(self, like: Tensor) -> Tensor:
        """Standard normal, in the shape, dtype and device of ``like``."""
        shape = like.shape
        draw = _Draw(lambda g: torch.randn(shape, generator=g), lambda keys: by_key.normal(keys, shape))
        return self._draw("normal", draw, like.device).to(like.dtype)

    def subset(self, k: int, like: Tensor) -> Tensor:
        """k of the len(like) positions of a vector, drawn without replacement: [k] int64, ascending."""
        d = like.shape[0]
        draw = _Draw(lambda g: torch.randperm(d, generator=g)[:k].sort().values, lambda keys: by_key.subset(keys, k, d))
        return self._draw("subset", draw, like.device)

    def seed(self, like: Tensor) -> Tensor:
        """The 63-bit number, int64 scalar, from which anybody draws the same ``subset``."""
        device = like.device

        def together(clients: Tensor) -> Tensor:
            return self._keys("subset", clients, device)

        named: Tensor = opaque(lambda client: together(client[None])[0], together, self._number)
        return named

    @property
    def _number(self) -> Tensor:
        return self.client if self.number is None else self.number

    def _draw(self, kind: str, draw: _Draw, device: torch.device) -> Tensor:
        def alone(client: Tensor) -> Tensor:
            if device.type != "cpu":
                return together(client[None])[0]
            return draw.by_stream(stream(self.run, addresses.member(self.purpose, kind), self.index, int(client)))

        def together(clients: Tensor) -> Tensor:
            if device.type != "cpu":
                return draw.by_keys(self._keys(kind, clients, device))
            return torch.stack([alone(client) for client in clients])

        found: Tensor = opaque(alone, together, self._number)
        return found

    def _keys(self, kind: str, clients: Tensor, device: torch.device) -> Tensor:
        """[b] what names each client's stream, on a device."""
        purpose = addresses.member(self.purpose, kind)
        keys = torch.tensor([key(self.run, purpose, self.index, i) for i in clients.tolist()])
        return sent([keys], device)[0]


class _Draw(NamedTuple):
    """One kind of random numbers: of one client from its stream, or of many from the keys [b] of their streams."""

    by_stream: Callable[[torch.Generator], Tensor]
    by_keys: Callable[[Tensor], Tensor]
