"""BEER: gradient tracking with compressed differences of both the models and the tracked gradients.

Zhao, Li, Li, Richtarik, Chi, "BEER: Fast O(1/T) Rate for Decentralized Nonconvex Optimization with Communication
Compression", NeurIPS 2022, arXiv 2201.13320, the algorithm box:

    X+ = X + gamma (W - I) H - lr V                       H+ = H + C(X+ - H)
    V+ = V + gamma (W - I) G + grad(X+) - grad(X)         G+ = G + C(V+ - G)

from H = G = 0 and V = the full gradient at X. C is the channel, ``channel=[topk]``; two messages a round. With a
constant lr it has no floor: it reaches the exact optimum of the mean risk, whatever C loses.

Deviations: a later gradient is the mean over the round's K minibatches, all at the same x; the lr may decay. Everybody
computes in every round, or the mean of v would not be that of the gradients.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from fedsim.algorithms.kit.gradients import full_gradient, mean_gradient
from fedsim.algorithms.kit.local_sgd import LocalSGD
from fedsim.algorithms.kit.roles import ModelPeer
from fedsim.errors import require
from fedsim.objective import Objective
from fedsim.traits import Traits
from fedsim.types import Message, Round


class BeerPeer(NamedTuple):
    """What a peer keeps."""

    x: Tensor  # [d] its model
    v: Tensor  # [d] its estimate of the mean gradient
    g: Tensor  # [d] its own gradient at x
    x_hat: Tensor  # [d] H, what its neighbours take x for
    v_hat: Tensor  # [d] G, what its neighbours take v for
    x_pull: Tensor  # [d] its row of (W - I) H
    v_pull: Tensor  # [d] its row of (W - I) G


@dataclass(frozen=True)
class Beer(ModelPeer, LocalSGD):
    """Gradient tracking with compressed communication.

    Attributes:
        gamma: step of the gossip, in (0, 1]; the coarser the compressor, the smaller.
    """

    traits: ClassVar[Traits] = Traits(
        role="peers", everyone=True, static=True, compresses=("x", "v"), hooks=("publish",)
    )
    gamma: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.gamma <= 1, "gamma", "be in (0, 1]", self.gamma)

    def init_client(self, x0: Tensor) -> BeerPeer:
        """Every peer starts from the same model; the first round begins with the gradient there."""
        zero = torch.zeros_like(x0)
        return BeerPeer(x0, zero, zero, zero, zero, zero, zero)

    def local(self, obj: Objective, peer: BeerPeer, rnd: Round) -> BeerPeer:
        """x <- x + gamma (W - I) H - lr v; v <- v + gamma (W - I) G + gradient there - gradient before."""
        v, before = peer.v, peer.g
        if rnd.index == 0:  # the box starts from V = the full gradients
            v = before = self.bounded(peer.x, full_gradient(obj, peer.x))
        x = peer.x + self.gamma * peer.x_pull - self.rate(rnd) * v
        g = self.bounded(x, mean_gradient(obj, x))  # at the new x: the difference to the last one is what V tracks
        return peer._replace(x=x, v=v + self.gamma * peer.v_pull + g - before, g=g)

    def offer(self, peer: BeerPeer, rnd: Round) -> Message:
        """What the neighbours do not know yet of x and of v, [d] each."""
        return {"x": peer.x - peer.x_hat, "v": peer.v - peer.v_hat}

    def publish(self, peer: BeerPeer, arrived: Message, rnd: Round) -> tuple[BeerPeer, Message]:
        """H <- H + C(x - H), G <- G + C(v - G), at the peer and at its neighbours alike; what is mixed are H and G."""
        x_hat, v_hat = peer.x_hat + arrived["x"], peer.v_hat + arrived["v"]
        return peer._replace(x_hat=x_hat, v_hat=v_hat), {"x_hat": x_hat, "v_hat": v_hat}

    def mix(self, peer: BeerPeer, mixed: Message, rnd: Round) -> BeerPeer:
        """Keeps (W - I) H and (W - I) G, with which the next round begins."""
        return peer._replace(x_pull=mixed["x_hat"] - peer.x_hat, v_pull=mixed["v_hat"] - peer.v_hat)
