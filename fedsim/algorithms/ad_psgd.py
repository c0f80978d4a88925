"""AD-PSGD: asynchronous decentralized SGD; peers average with a neighbour while they compute.

Lian, Zhang, Zhang, Liu, "Asynchronous Decentralized Parallel Stochastic Gradient Descent", ICML 2018, arXiv 1710.06952,
its Algorithm 1.

Deviations: meetings happen at the clocks of the edges, where the paper has each peer average once for every gradient
(``topology.rates`` sets how often); momentum and weight decay as options, off in the paper's box.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from fedsim.algorithms.kit.event_sgd import EventSGD
from fedsim.algorithms.kit.protocols import Constants
from fedsim.objective import Objective
from fedsim.traits import Traits
from fedsim.types import Message, Round


class ADPSGDPeer(NamedTuple):
    """What a peer keeps."""

    x: Tensor  # [d] model
    x_hat: Tensor  # [d] the model when the gradient began that is being computed
    v: Tensor  # [d] momentum of SGD


@dataclass(frozen=True)
class ADPSGD(EventSGD):
    """Asynchronous decentralized parallel SGD.

    A gradient takes from one gradient event of its peer to the next: it is that of the model where the last event left
    it, and is applied to what meetings have made of the model since.
    """

    traits: ClassVar[Traits] = Traits(role="events")

    def tuned(self, constants: Constants) -> ADPSGD:
        """No constant depends on the graph."""
        return self

    def init_client(self, x0: Tensor) -> ADPSGDPeer:
        """x0, where the first gradient begins."""
        return ADPSGDPeer(x0, x0, torch.zeros_like(x0))

    def flow(self, peer: ADPSGDPeer, dt: Tensor) -> ADPSGDPeer:
        """Nothing happens between events."""
        return peer

    def local(self, obj: Objective, peer: ADPSGDPeer, rnd: Round) -> ADPSGDPeer:
        """A gradient event: x <- x - lr g(x_hat); the next gradient begins there."""
        v = self.push(obj, peer.x_hat, peer.v)  # the gradient was begun at x_hat; meetings have moved x since
        x = peer.x - self.lr * v
        return ADPSGDPeer(x, x, v)

    def meet(self, peer: ADPSGDPeer, got: Message, rnd: Round) -> ADPSGDPeer:
        """x <- the average of the two."""
        return peer._replace(x=0.5 * (peer.x + got["x"]))
