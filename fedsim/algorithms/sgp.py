"""Stochastic gradient push: decentralized SGD over directed graphs, whose bias a push-sum weight takes out.

Assran, Loizou, Ballas, Rabbat, "Stochastic Gradient Push for Distributed Deep Learning", ICML 2019, arXiv 1811.10792,
Algorithm 1; averaging: Kempe, Dobra, Gehrke, "Gossip-based computation of aggregate information", FOCS 2003. Peers
split what they have among their receivers, so that the columns of W sum to 1 (``topology.weights=push_sum``); the sum
of x stays, and z = x / w, with w split in the same way, is free of the weights that a peer gathers.

Deviations: with K local steps the gradient is the mean over K minibatches, all at the same z; no momentum; weight decay
(of z), clipping and decay of the lr as in ``local_sgd``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from torch import Tensor

from fedsim.algorithms.kit.gradients import mean_gradient
from fedsim.algorithms.kit.local_sgd import LocalSGD
from fedsim.objective import Objective
from fedsim.traits import Traits
from fedsim.types import Message, Round


class SGPPeer(NamedTuple):
    """What a peer keeps."""

    x: Tensor  # [d] its share of the sum of models
    w: Tensor  # scalar, its push-sum weight; the weights of all peers sum to n


@dataclass(frozen=True)
class SGP(LocalSGD):
    """Stochastic gradient push."""

    traits: ClassVar[Traits] = Traits(role="peers", mixes="columns")

    def init_client(self, x0: Tensor) -> SGPPeer:
        """Every peer starts from the same model with weight 1."""
        return SGPPeer(x0, x0.new_ones(()))

    def model(self, peer: SGPPeer) -> Tensor:
        """The de-biased model z = x / w [d]."""
        return peer.x / peer.w

    def local(self, obj: Objective, peer: SGPPeer, rnd: Round) -> SGPPeer:
        """x <- x - lr g, g the mean gradient at z over the K minibatches."""
        z = self.model(peer)
        # the step is on the biased x, by the gradient at the de-biased z
        return SGPPeer(peer.x - self.rate(rnd) * self.bounded(z, mean_gradient(obj, z)), peer.w)

    def offer(self, peer: SGPPeer, rnd: Round) -> Message:
        """x [d] and w; the weights of W make shares of them."""
        return {"x": peer.x, "w": peer.w}

    def mix(self, peer: SGPPeer, mixed: Message, rnd: Round) -> SGPPeer:
        """x_i <- sum_j p_ij x_j; w_i <- sum_j p_ij w_j."""
        return SGPPeer(mixed["x"], mixed["w"])
