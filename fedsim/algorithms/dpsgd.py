"""D-PSGD: every peer averages models with its neighbours and steps along the gradient at its model before that.

Lian, Zhang, Zhang, Hsieh, Zhang, Liu, "Can Decentralized Algorithms Outperform Centralized Algorithms? A Case Study for
Decentralized Parallel Stochastic Gradient Descent", NeurIPS 2017, arXiv 1705.09056, Algorithm 1: X <- W X - lr G(X).

Deviations: with K local steps the gradient is the mean over K minibatches, all at the same x (one large minibatch);
weight decay, clipping and decay of the lr as in ``local_sgd``. Code bases that call "D-PSGD" several local steps before
an exchange mean DFedAvg.
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


class DPSGDPeer(NamedTuple):
    """What a peer keeps."""

    x: Tensor  # [d] its model
    g: Tensor  # [d] its gradient there; zero unless it computed in this round


@dataclass(frozen=True)
class DPSGD(ModelPeer, LocalSGD):
    """Decentralized parallel SGD."""

    traits: ClassVar[Traits] = Traits(role="peers")

    def init_client(self, x0: Tensor) -> DPSGDPeer:
        """Every peer starts from the same model."""
        return DPSGDPeer(x0, torch.zeros_like(x0))

    def local(self, obj: Objective, peer: DPSGDPeer, rnd: Round) -> DPSGDPeer:
        """g: the mean gradient at x over the K minibatches."""
        return peer._replace(g=self.bounded(peer.x, mean_gradient(obj, peer.x)))

    def mix(self, peer: DPSGDPeer, mixed: Message, rnd: Round) -> DPSGDPeer:
        """x_i <- sum_j w_ij x_j - lr g_i."""
        # the gradient was taken before mixing: W X - lr G(X), not W (X - lr G(X))
        return DPSGDPeer(mixed["x"] - self.rate(rnd) * peer.g, torch.zeros_like(peer.g))
