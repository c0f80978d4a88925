"""Error feedback (EF14, EC): what the layers inside lost is added to the next message.

Seide, Fu, Droppo, Li, Yu, "1-bit stochastic gradient descent and its application to data-parallel distributed training
of speech DNNs", Interspeech 2014; Karimireddy, Rebjock, Stich, Jaggi, "Error Feedback Fixes SignSGD and other Gradient
Compression Schemes", ICML 2019, arXiv 1901.09847.

Two forms are in use. On gradients (``algorithm=sgd``): the server multiplies what arrives by its step. On steps
(``algorithm=sgd algorithm.step=client``): clients send gamma_t g, so that a stored error keeps the step with which it
arose. They coincide for a constant step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fedsim.channel.base import Bytes, Noise, Send


class Link(NamedTuple):
    """What a client remembers about its link."""

    e: Tensor  # [d] error: what was not sent yet


@dataclass(frozen=True)
class EF14:
    """Sends D = C(e + v) and keeps e <- e + v - D."""

    def init(self, v: Tensor) -> Link:
        """No error."""
        return Link(torch.zeros_like(v))

    def __call__(self, v: Tensor, link: Link, noise: Noise, send: Send) -> tuple[Tensor, Link, Bytes]:
        """Send v [d]."""
        whole = link.e + v
        d, _, sent = send(whole)
        return d, Link(whole - d), sent
