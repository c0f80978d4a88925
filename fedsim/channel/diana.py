"""DIANA: unbiased compression of the difference to a shift that follows the gradients.

Mishchenko, Gorbunov, Takac, Richtarik, "Distributed Learning with Compressed Gradient Differences", 2019,
arXiv 1901.09269, the algorithm box.

Under partial participation the server keeps the mean shift of ALL clients (deviation: the paper's analysis is for full
participation).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from fedsim.channel.base import Bytes, Noise, Send
from fedsim.errors import InputError, require
from fedsim.fields import check_fields
from fedsim.traits import LayerTraits


class Shift(NamedTuple):
    """What a client remembers about its link; the server remembers the mean over all clients."""

    h: Tensor  # [d]


@dataclass(frozen=True)
class Diana:
    """Sends D = C(v - h); the far end takes v for h + D; h <- h + alpha D on both sides.

    Attributes:
        alpha: step of the shift, in (0, 1]; None: 1 / (1 + omega) of the layers inside.
    """

    traits: ClassVar[LayerTraits] = LayerTraits(feedback=True, receives=True)
    alpha: float | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        ok = self.alpha is None or 0 < self.alpha <= 1
        require(ok, "alpha", "be in (0, 1], or null for 1 / (1 + omega)", self.alpha)

    def init(self, v: Tensor) -> Shift:
        """h = 0."""
        return Shift(torch.zeros_like(v))

    def init_server(self, v: Tensor) -> Shift:
        """Mean h = 0."""
        return Shift(torch.zeros_like(v))

    def __call__(self, v: Tensor, link: Shift, noise: Noise, send: Send) -> tuple[Tensor, Shift, Bytes]:
        """Send v [d]; the far end gets D."""
        alpha = self._alpha(send, v.shape[0])
        d, _, sent = send(v - link.h)
        return d, Shift(link.h + alpha * d), sent

    def receive(self, memory: Shift, mean: Tensor, share: float, rest: Send) -> tuple[Tensor, Shift]:
        """Mean h + mean D, [d]."""
        # Only the cohort's shifts move, so the mean over all clients moves by the cohort's share of it.
        return memory.h + mean, Shift(memory.h + self._alpha(rest, mean.shape[0]) * share * mean)

    def _alpha(self, send: Send, d: int) -> float:
        omega = send.omega(d)
        if omega is None:
            raise InputError(
                "diana must stand outside an unbiased compressor, such as qsgd or randk with unbiased=true"
            )
        return 1 / (1 + omega) if self.alpha is None else self.alpha
