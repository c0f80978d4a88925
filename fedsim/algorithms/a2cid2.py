"""A2CiD2: asynchronous decentralized SGD whose gossip is accelerated by a continuous momentum.

Nabli, Belilovsky, Oyallon, "A2CiD2: Accelerating Asynchronous Communication in Decentralized Deep Learning", NeurIPS
2023, arXiv 2306.08289, its Algorithm 1.

Deviations: the constants chi1 and chi2 are those of the run's graph and rates; momentum of SGD is a peer's own and is
not mixed; no learning-rate schedule.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import sqrt
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from fedsim.algorithms.kit.event_sgd import EventSGD
from fedsim.algorithms.kit.protocols import Constants
from fedsim.errors import require
from fedsim.objective import Objective
from fedsim.traits import Traits
from fedsim.types import Message, Round


class A2CiD2Peer(NamedTuple):
    """What a peer keeps."""

    x: Tensor  # [d] model
    x_tilde: Tensor  # [d] its momentum in time
    v: Tensor  # [d] momentum of SGD


@dataclass(frozen=True)
class A2CiD2(EventSGD):
    """Asynchronous decentralized SGD with accelerated gossip.

    Attributes:
        chi1: of the graph with its rates, > 0; 0: computed.
        chi2: likewise.
    """

    traits: ClassVar[Traits] = Traits(role="events")
    chi1: float = 0.0
    chi2: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("chi1", "chi2"):
            require(getattr(self, name) >= 0, name, "be > 0, or 0 to have it computed", getattr(self, name))

    def tuned(self, constants: Constants) -> A2CiD2:
        """With the graph's chi1 and chi2, unless they were given."""
        return replace(self, chi1=self.chi1 or constants.chi1, chi2=self.chi2 or constants.chi2)

    def init_client(self, x0: Tensor) -> A2CiD2Peer:
        """x and its momentum at x0."""
        return A2CiD2Peer(x0, x0, torch.zeros_like(x0))

    def flow(self, peer: A2CiD2Peer, dt: Tensor) -> A2CiD2Peer:
        """x' = eta (x~ - x), x~' = eta (x - x~): their mean stays, their difference shrinks by exp(-2 eta dt)."""
        eta = 1 / (2 * sqrt(self.chi1 * self.chi2))
        # the exact solution after dt; expm1 keeps its digits where events follow each other closely
        moved = 0.5 * (-torch.expm1(-2 * eta * dt)).to(peer.x.dtype) * (peer.x_tilde - peer.x)
        return peer._replace(x=peer.x + moved, x_tilde=peer.x_tilde - moved)

    def local(self, obj: Objective, peer: A2CiD2Peer, rnd: Round) -> A2CiD2Peer:
        """A gradient event: both variables take the SGD step at x."""
        v = self.push(obj, peer.x, peer.v)  # a step alike on both leaves their difference to the gossip
        return A2CiD2Peer(peer.x - self.lr * v, peer.x_tilde - self.lr * v, v)

    def meet(self, peer: A2CiD2Peer, got: Message, rnd: Round) -> A2CiD2Peer:
        """x moves to the average of the two, x~ by sqrt(chi1 / chi2) times as much."""
        alpha, alpha_t = 0.5, 0.5 * sqrt(self.chi1 / self.chi2)
        m = peer.x - got["x"]
        return peer._replace(x=peer.x - alpha * m, x_tilde=peer.x_tilde - alpha_t * m)
