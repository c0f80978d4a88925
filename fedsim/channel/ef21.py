"""EF21: client and server hold the same estimate of what a client would send, and only its change is compressed.

Richtarik, Sokolov, Fatkhullin, "EF21: A New, Simpler, Theoretically Better, and Practically Faster Error Feedback",
NeurIPS 2021, arXiv 2106.05203, the algorithm box; EF21+ is the same paper's; with momentum: Fatkhullin, Tyurin,
Richtarik, "Momentum Provably Improves Error Feedback!", NeurIPS 2023, arXiv 2305.15155 (EF21-SGDM).

Under partial participation the server keeps the mean estimate of ALL clients, of which the absent ones' do not change
(deviation: the papers' analyses are for full participation).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from fedsim.channel.base import Bytes, Noise, Send
from fedsim.channel.ef14 import contracted
from fedsim.errors import require
from fedsim.fields import check_fields
from fedsim.traits import LayerTraits


class EF21Link(NamedTuple):
    """What a client with EF21 remembers about its link: the estimate that both ends hold."""

    g: Tensor  # [d] estimate, the same at the far end
    begun: Tensor  # scalar bool: a message was sent


class Moving(NamedTuple):
    """What a client with momentum remembers."""

    m: Tensor  # [d] momentum
    link: EF21Link


class ServerEstimate(NamedTuple):
    """What the server remembers: the mean of the estimates that it shares with the clients."""

    g: Tensor  # [d] mean of all clients' estimates


@dataclass(frozen=True)
class EF21:
    """Sends D = C(v - G); G <- G + D on both sides; the server steps with the mean of the new G.

    Attributes:
        start: how G begins, the key ``init`` in configurations. ``full``: the first message travels as it is, G = v;
            ``zero`` or ``compressed``: the first message is C(v) and G = C(v), which is the same.
    """

    traits: ClassVar[LayerTraits] = LayerTraits(feedback=True, receives=True)
    start: Literal["full", "zero", "compressed"] = "full"

    def __post_init__(self) -> None:
        check_fields(self)

    def init(self, v: Tensor) -> EF21Link:
        """No estimate."""
        return EF21Link(torch.zeros_like(v), torch.zeros((), dtype=torch.bool, device=v.device))

    def init_server(self, v: Tensor) -> ServerEstimate:
        """No estimate."""
        return ServerEstimate(torch.zeros_like(v))

    def __call__(self, v: Tensor, link: EF21Link, noise: Noise, send: Send) -> tuple[Tensor, EF21Link, Bytes]:
        """Send v [d]; the far end gets D, or v itself the first time."""
        d, sent = contracted(v - link.g, send)
        if self.start == "full":
            d, sent = pick(link.begun, (d, sent), send.plain(v))
        return d, EF21Link(link.g + d, torch.ones_like(link.begun)), sent

    def receive(self, memory: ServerEstimate, mean: Tensor, share: float, rest: Send) -> tuple[Tensor, ServerEstimate]:
        """The mean of all clients' new estimates, [d]."""
        g = memory.g + share * mean
        return g, ServerEstimate(g)


@dataclass(frozen=True)
class EF21SGDM(EF21):
    """EF21 of the momentum m <- (1 - a) m + a v, which begins as the first v.

    Attributes:
        a: weight of the new gradient, in (0, 1]; 1 is EF21.
    """

    traits: ClassVar[LayerTraits] = LayerTraits(feedback=True, receives=True)
    a: float = 0.1

    def __post_init__(self) -> None:
        check_fields(self)
        require(0 < self.a <= 1, "a", "be in (0, 1]", self.a)

    def init(self, v: Tensor) -> Moving:  # type: ignore[override]
        """No momentum, no estimate."""
        return Moving(torch.zeros_like(v), super().init(v))

    def __call__(self, v: Tensor, link: Moving, noise: Noise, send: Send) -> tuple[Tensor, Moving, Bytes]:  # type: ignore[override]
        """Send v [d]."""
        m = torch.where(link.link.begun, (1 - self.a) * link.m + self.a * v, v)
        d, after, sent = super().__call__(m, link.link, noise, send)
        return d, Moving(m, after), sent


@dataclass(frozen=True)
class EF21Plus(EF21):
    """EF21+: each message is the better one of C(v) and G + C(v - G); a byte says which."""

    traits: ClassVar[LayerTraits] = LayerTraits(feedback=True, receives=True)

    def __call__(self, v: Tensor, link: EF21Link, noise: Noise, send: Send) -> tuple[Tensor, EF21Link, Bytes]:
        """Send v [d]."""
        fresh, sent_fresh = contracted(v, send)
        change, sent = contracted(v - link.g, send)
        better = (fresh - v).square().sum() < (link.g + change - v).square().sum()
        d, sent = pick(better, (fresh - link.g, sent_fresh + 1), (change, sent + 1))
        if self.start == "full":
            d, sent = pick(link.begun, (d, sent), send.plain(v))
        return d, EF21Link(link.g + d, torch.ones_like(link.begun)), sent


def pick(which: Tensor, yes: tuple[Tensor, Bytes], no: tuple[Tensor, Bytes]) -> tuple[Tensor, Bytes]:
    """The first of two messages (vector, bytes) if the scalar bool ``which`` holds, else the second; under vmap too."""
    sizes = [torch.as_tensor(size, device=which.device) for size in (yes[1], no[1])]
    return torch.where(which, yes[0], no[0]), torch.where(which, sizes[0], sizes[1])


Start = Literal["full", "zero", "compressed"]


def ef21(init: Start = "full") -> EF21:
    """Sends the change of an estimate that both ends hold.

    What configurations build of ``EF21``: ``init`` is the key of ``start``, whose name is that of a method.
    """
    return EF21(init)


def ef21_plus(init: Start = "full") -> EF21Plus:
    """Sends the better one of C(v) and the change of an estimate that both ends hold.

    What configurations build of ``EF21Plus``: ``init`` is the key of ``start``, whose name is that of a method.
    """
    return EF21Plus(init)


def ef21_sgdm(init: Start = "full", a: float = 0.1) -> EF21SGDM:
    """Sends the change of an estimate of a moving average of v.

    What configurations build of ``EF21SGDM``: ``init`` is the key of ``start``, whose name is that of a method.
    """
    return EF21SGDM(init, a)
