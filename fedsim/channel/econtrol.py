"""EControl: error feedback whose error enters what is compressed with a factor eta, around an estimate as in EF21.

Gao, Islamov, Stich, "EControl: Fast Distributed Optimization with Compression and Error Control", ICLR 2024,
arXiv 2311.05645, the algorithm box. eta multiplies the error inside C only, never where it is updated; eta = 0 is EF21.

Deviations: eta is by default half the contraction delta of the layers inside (the theory's c delta with c = 1/400 is
far slower); under partial participation the server keeps the mean estimate of ALL clients, of which the absent ones' do
not change (the paper's analysis is for full participation).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from fedsim.channel.base import Bytes, Noise, Send
from fedsim.channel.ef14 import contracted
from fedsim.channel.ef21 import ServerEstimate, pick
from fedsim.errors import InputError, require
from fedsim.fields import check_fields
from fedsim.traits import LayerTraits


class EControlLink(NamedTuple):
    """What a client with EControl remembers about its link."""

    h: Tensor  # [d] estimate, the same at the far end
    e: Tensor  # [d] error: what was not sent yet
    begun: Tensor  # scalar bool: a message was sent


@dataclass(frozen=True)
class EControl:
    """Sends D = C(eta e + v - h); e <- e + v - h - D; h <- h + D on both sides; the server steps with the new mean h.

    Attributes:
        eta: factor on the error, >= 0; stable up to about delta; None: delta / 2.
        start: of h, the key ``init`` in configurations: ``zero``; ``full``: the first message travels as it is, h = v
            and no error; ``compressed``: the first message is C(v) = h, and the next one follows in the same round.
    """

    traits: ClassVar[LayerTraits] = LayerTraits(feedback=True, receives=True)
    eta: float | None = None
    start: Literal["zero", "full", "compressed"] = "zero"

    def __post_init__(self) -> None:
        check_fields(self)
        require(self.eta is None or self.eta >= 0, "eta", "be >= 0, or null for half the compressor's delta", self.eta)

    def init(self, v: Tensor) -> EControlLink:
        """No estimate, no error."""
        return EControlLink(
            torch.zeros_like(v), torch.zeros_like(v), torch.zeros((), dtype=torch.bool, device=v.device)
        )

    def init_server(self, v: Tensor) -> ServerEstimate:
        """No estimate."""
        return ServerEstimate(torch.zeros_like(v))

    def __call__(self, v: Tensor, link: EControlLink, noise: Noise, send: Send) -> tuple[Tensor, EControlLink, Bytes]:
        """Send v [d]; the far end gets the change of h."""
        eta = self._eta(send, v.shape[0])
        d, sent = contracted(eta * link.e + v - link.h, send)
        if self.start == "full":
            d, sent = pick(link.begun, (d, sent), send.plain(v))
        if self.start == "compressed":
            h, opening = contracted(v, send)
            after, following = contracted(v - h, send)
            d, sent = pick(link.begun, (d, sent), (h + after, opening + following))
        return d, EControlLink(link.h + d, link.e + v - link.h - d, torch.ones_like(link.begun)), sent

    def receive(self, memory: ServerEstimate, mean: Tensor, share: float, rest: Send) -> tuple[Tensor, ServerEstimate]:
        """The mean of all clients' new estimates, [d]."""
        h = memory.g + share * mean
        return h, ServerEstimate(h)

    def _eta(self, send: Send, d: int) -> float:
        if self.eta is not None:
            return self.eta
        delta = send.delta(d)
        if delta is None:
            raise InputError(
                "eta must be given, because the compressor inside econtrol has no contraction delta for every vector; "
                "add channel.econtrol.eta=... (half of what it keeps of typical vectors)"
            )
        return delta / 2


def econtrol(eta: float | None = None, init: Literal["zero", "full", "compressed"] = "zero") -> EControl:
    """Error feedback with a controlled error around an estimate that both ends hold.

    What configurations build of ``EControl``: ``init`` is the key of ``start``, whose name is that of a method.
    """
    return EControl(eta, init)
