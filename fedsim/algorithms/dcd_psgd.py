"""DCD-PSGD: D-PSGD whose models move by compressed differences, so that every neighbour knows them exactly.

Tang, Gan, Zhang, Zhang, Liu, "Communication Compression for Decentralized Training", NeurIPS 2018, arXiv 1803.06443,
Algorithm 1 (difference compression):

    X_half = W X - lr G(X);  Q = C(X_half - X);  X <- X + Q

C is the channel: ``channel=[qsgd]``. What C loses is lost for the model too: C must be mild (the paper: unbiased),
coarse compressors make it diverge. Without loss it is D-PSGD.

Deviations: with K local steps the gradient is the mean over K minibatches, all at the same x; weight decay, clipping
and decay of the lr as in ``local_sgd``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from fedsim.algorithms.kit.gradients import mean_gradient
from fedsim.algorithms.kit.local_sgd import LocalSGD
from fedsim.algorithms.kit.roles import ModelPeer
from fedsim.objective import Objective
from fedsim.traits import Traits
from fedsim.types import Message, Round


class DCDPSGDPeer(NamedTuple):
    """What a peer keeps."""

    x: Tensor  # [d] its model, which its neighbours know
    wx: Tensor  # [d] sum_j w_ij x_j, from what it knows of theirs
    g: Tensor  # [d] its gradient at x; zero unless it computed in this round


@dataclass(frozen=True)
class DCDPSGD(ModelPeer, LocalSGD):
    """Difference-compressed decentralized parallel SGD."""

    traits: ClassVar[Traits] = Traits(role="peers", static=True, compresses=("difference",), hooks=("publish",))

    def init_client(self, x0: Tensor) -> DCDPSGDPeer:
        """Every peer starts from the same model, so that W X = X."""
        return DCDPSGDPeer(x0, x0, torch.zeros_like(x0))

    def local(self, obj: Objective, peer: DCDPSGDPeer, rnd: Round) -> DCDPSGDPeer:
        """g: the mean gradient at x over the K minibatches."""
        return peer._replace(g=self.bounded(peer.x, mean_gradient(obj, peer.x)))

    def offer(self, peer: DCDPSGDPeer, rnd: Round) -> Message:
        """x_half - x = sum_j w_ij x_j - lr g - x_i [d]."""
        # wx, the sum over the neighbours' models, is known from the last round: every copy equals its model exactly
        return {"difference": peer.wx - self.rate(rnd) * peer.g - peer.x}

    def publish(self, peer: DCDPSGDPeer, arrived: Message, rnd: Round) -> tuple[DCDPSGDPeer, Message]:
        """x <- x + q, at the peer and in its neighbours' copies alike; what is mixed is x."""
        x = peer.x + arrived["difference"]
        return peer._replace(x=x), {"x": x}

    def mix(self, peer: DCDPSGDPeer, mixed: Message, rnd: Round) -> DCDPSGDPeer:
        """Keeps sum_j w_ij x_j, with which the next round begins."""
        return DCDPSGDPeer(peer.x, mixed["x"], torch.zeros_like(peer.g))
