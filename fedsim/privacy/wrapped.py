"""What the mechanisms around an algorithm share: everything but the messages is the algorithm's own."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from fedsim.errors import InputError
from fedsim.types import Message, Round


@dataclass(frozen=True)
class Wrapped:
    """An algorithm whose clients clip what they send.

    Attributes:
        base: the algorithm.
        clip: largest norm of a client's message, all its fields together, > 0.
        noise_multiplier: noise over sensitivity, >= 0.
        steps: how many clients have each number of local steps; not empty where cohorts are drawn at random, who came
            is hidden, and public fields are therefore those of all clients, not of the cohort.
    """

    uniform: ClassVar[bool] = True
    base: Any
    clip: float
    noise_multiplier: float
    steps: tuple[tuple[int, int], ...] = field(default=(), kw_only=True)

    def __post_init__(self) -> None:
        name = type(self.base).__name__
        if hasattr(self.base, "releases"):
            raise InputError(f"privacy must be own for {name}, which is private by itself; use privacy=own")
        if getattr(self.base, "stacked", False) or hasattr(self.base, "own"):
            raise InputError(f"privacy must be none for {name}: a mechanism needs clients that send updates of a model")

    @property
    def everyone(self) -> bool:
        """As the algorithm."""
        return bool(getattr(self.base, "everyone", False))

    @property
    def shares(self) -> str:
        """As the algorithm."""
        return str(getattr(self.base, "shares", "model"))

    @property
    def keeps(self) -> str:
        """As the algorithm."""
        return str(getattr(self.base, "keeps", "model"))

    @property
    def public(self) -> tuple[str, ...]:
        """As the algorithm."""
        return tuple(getattr(self.base, "public", ()))

    def public_of(self, steps: int, rnd: Round) -> dict[str, float]:
        """As the algorithm."""
        found: dict[str, float] = self.base.public_of(steps, rnd)
        return found

    def check(self) -> None:
        """Raise InputError when this much noise cannot be made."""

    def kind(self, rnd: Round) -> Hashable:
        """All rounds let out the same."""
        return 0

    def init_server(self, x0: Any) -> Any:
        """As the algorithm."""
        return self.base.init_server(x0)

    def init_client(self, x0: Any) -> Any:
        """As the algorithm."""
        return self.base.init_client(x0)

    def broadcast(self, server: Any, rnd: Round) -> Message:
        """As the algorithm."""
        sent: Message = self.base.broadcast(server, rnd)
        return sent

    def payload(self, message: Message) -> Message:
        """The fields of a message that depend on data, which are clipped and made noisy."""
        return {name: value for name, value in message.items() if name not in self.public}

    def beside(self, message: Message) -> Message:
        """The public fields of a message, which travel as they are."""
        return {name: value for name, value in message.items() if name in self.public}

    def known(self, received: Message, rnd: Round) -> Message:
        """What the server takes the public fields for: the cohort's mean, or where that would tell who came all's."""
        found = self.beside(received)
        if not found or not self.steps:
            return found
        each = [(self.public_of(steps, rnd), clients) for steps, clients in self.steps]
        return {
            name: torch.full_like(value, sum(of[name] * clients for of, clients in each) / rnd.population)
            for name, value in found.items()
        }

    def clipped(self, message: Message, clip: Tensor | float) -> Message:
        """The message, its payload scaled down to norm ``clip`` if it is longer."""
        norm = self.norm(message)
        scale = (clip / norm.clamp(min=torch.finfo(norm.dtype).tiny)).clamp(max=1.0)
        return {**message, **{name: value * scale for name, value in self.payload(message).items()}}

    def vector(self, message: Message, d: int) -> tuple[str, Tensor]:
        """The name and the value [d] of the one field that a message's payload has.

        Raises:
            InputError: it has others.
        """
        payload = self.payload(message)
        if [value.numel() for value in payload.values()] != [d]:
            fields = ", ".join(f"{name} {list(value.shape)}" for name, value in payload.items())
            must = f"be none, central_gaussian, adaptive_gaussian or local_gaussian for {type(self.base).__name__}"
            raise InputError(
                f"privacy must {must}, whose messages are not one vector of the model's size, got {fields}"
            )
        ((name, value),) = payload.items()
        return name, value

    def norm(self, message: Message) -> Tensor:
        """The norm of a message's payload, all its fields together."""
        payload = self.payload(message)
        for name, value in payload.items():
            if not (isinstance(value, Tensor) and value.is_floating_point()):
                raise InputError(f"privacy needs messages of numbers, got the field {name!r} of another kind")
        return torch.stack([value.square().sum() for value in payload.values()]).sum().sqrt()


def over_expected(received: Message, rnd: Round, expected: int) -> Message:
    """The mean over the cohort -> its sum over the expected size: dividing by the real size would let it out."""
    return {name: value * (len(rnd.clients) / expected) for name, value in received.items()}


def noisy(message: Message, std: float, noise: Any) -> Message:
    """The message with Gaussian noise of this standard deviation on every number: one draw for all fields."""
    whole = torch.cat([value.reshape(-1) for value in message.values()])
    drawn = (std * noise.normal(whole)).split([value.numel() for value in message.values()])
    return {name: value + more.view(value.shape) for (name, value), more in zip(message.items(), drawn, strict=True)}
