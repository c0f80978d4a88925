"""What the mechanisms around an algorithm share: everything but the messages is the algorithm's own."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fedsim.algorithms.kit.around import Around, name_of
from fedsim.errors import InputError, require
from fedsim.traits import Hook, Traits
from fedsim.traits.declared import traits_of
from fedsim.types import Message, Round


@dataclass(frozen=True)
class Wrapped(Around):
    """An algorithm whose clients clip what they send.

    Attributes:
        base: the algorithm.
        clip: largest norm of a client's message, all its fields together, > 0.
        noise_multiplier: noise over sensitivity, >= 0.
        steps: how many clients have each number of local steps; not empty where cohorts are drawn at random, who came
            is hidden, and public fields are therefore those of all clients, not of the cohort.
    """

    base: Any
    clip: float
    noise_multiplier: float
    steps: tuple[tuple[int, int], ...] = field(default=(), kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.clip > 0, "clip", "be > 0", self.clip)
        require(self.noise_multiplier >= 0, "noise_multiplier", "be >= 0", self.noise_multiplier)
        require(all(k >= 1 and n >= 1 for k, n in self.steps), "steps", "be pairs of counts >= 1", self.steps)
        said, name = traits_of(self.base), name_of(self.base)
        if said.noise != "none":
            raise InputError(f"privacy must be own for {name}, which is private by itself; use privacy=own")
        if said.role != "server" or said.stacked or "own" in said.hooks:
            raise InputError(f"privacy must be none for {name}: a mechanism needs clients that send updates of a model")

    def private(self, *hooks: Hook, **words: Any) -> Traits:
        """The algorithm's words and those of a mechanism that clips messages."""
        return traits_of(self.base).but("releases", "kind", "noise_multiplier", *hooks, uniform=True, **words)

    def check(self) -> None:
        """Raise InputError when this much noise cannot be made."""

    def kind(self, rnd: Round) -> Hashable:
        """0 for every round: with fixed bound and noise each lets out the same."""
        return 0

    def payload(self, message: Message) -> Message:
        """The fields of a message that depend on data, which are clipped and made noisy."""
        return {name: value for name, value in message.items() if name not in self.traits.public}

    def beside(self, message: Message) -> Message:
        """The public fields of a message, which travel as they are."""
        found = {name: value for name, value in message.items() if name in self.traits.public}
        for name, value in found.items():
            require(value.numel() == 1, f"public field {name!r}", "be one number, such as a count", list(value.shape))
        return found

    def known(self, received: Message, rnd: Round) -> Message:
        """What the server takes the public fields for: the cohort's mean, or where that would tell who came all's."""
        found = self.beside(received)
        if not found or not self.steps:
            return found
        # the cohort's mean would tell who came, so it is replaced by that of all clients, whose sizes are public
        each = [(self.public_of(steps, rnd), clients) for steps, clients in self.steps]
        return {
            name: torch.full_like(value, sum(of[name] * clients for of, clients in each) / rnd.population)
            for name, value in found.items()
        }

    def clipped(self, message: Message, clip: Tensor | float) -> Message:
        """The message, its payload scaled down to norm ``clip`` if it is longer."""
        if not self.payload(message):  # some methods have rounds without an upload
            return message
        norm = self.norm(message)
        # min(1, clip / norm), also for a message of zeros
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
            must = f"be none, central_gaussian, adaptive_gaussian or local_gaussian for {name_of(self.base)}"
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
        if not payload:
            return torch.zeros(())
        return torch.stack([value.square().sum() for value in payload.values()]).sum().sqrt()


def over_expected(received: Message, rnd: Round, expected: int) -> Message:
    """The mean over the cohort -> its sum over the expected size: dividing by the real size would let it out."""
    # the rule has divided by the clients that came; times their number it is the sum again
    return {name: value * (len(rnd.clients) / expected) for name, value in received.items()}


def noisy(message: Message, std: float, noise: Any) -> Message:
    """The message with Gaussian noise of this standard deviation on every number: one draw for all fields."""
    if not message:
        return message
    # one vector and one draw, so that no two fields get the same numbers
    whole = torch.cat([value.reshape(-1) for value in message.values()])
    drawn = (std * noise.normal(whole)).split([value.numel() for value in message.values()])
    return {name: value + more.view(value.shape) for (name, value), more in zip(message.items(), drawn, strict=True)}
