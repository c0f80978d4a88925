"""Error feedback (EF14, EC): what the layers inside lost is added to the next message.

Seide, Fu, Droppo, Li, Yu, "1-bit stochastic gradient descent and its application to data-parallel distributed training
of speech DNNs", Interspeech 2014; Karimireddy, Rebjock, Stich, Jaggi, "Error Feedback Fixes SignSGD and other Gradient
Compression Schemes", ICML 2019, arXiv 1901.09847.

Two forms are in use. On gradients (``algorithm=sgd``): the server multiplies what arrives by its step. On steps
(``algorithm=sgd algorithm.step=client``): clients send gamma_t g, so that a stored error keeps the step with which it
arose. They coincide for a constant step.

Feedback needs a contractive C. An unbiased one of variance omega, such as QSGD, whose error may exceed the vector
itself, is one after multiplication by 1 / (1 + omega), which the receiver does (here, in EF21 and in EControl).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from fedsim.channel.base import Bytes, Noise, Send
from fedsim.traits import LayerTraits


class EF14Link(NamedTuple):
    """What a client with EF14 remembers about its link: the error."""

    e: Tensor  # [d] error: what was not sent yet


@dataclass(frozen=True)
class EF14:
    """Sends D = C(e + v) and keeps e <- e + v - D."""

    traits: ClassVar[LayerTraits] = LayerTraits(feedback=True)

    def init(self, v: Tensor) -> EF14Link:
        """No error."""
        return EF14Link(torch.zeros_like(v))

    def __call__(self, v: Tensor, link: EF14Link, noise: Noise, send: Send) -> tuple[Tensor, EF14Link, Bytes]:
        """Send v [d]."""
        whole = link.e + v
        d, sent = contracted(whole, send)
        return d, EF14Link(whole - d), sent


def contracted(v: Tensor, send: Send) -> tuple[Tensor, Bytes]:
    """What arrives of v [d] when it is sent through the layers inside, and its bytes.

    An unbiased compressor C need not bring the error down, as error feedback wants; where the layers inside are
    unbiased with variance omega, C(v) / (1 + omega) is used, which contracts.
    """
    got, _, sent = send(v)
    omega = send.omega(v.shape[0])
    return got / (1 + omega) if omega else got, sent
