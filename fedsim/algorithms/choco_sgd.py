"""CHOCO-SGD: gossip about public copies of the models, to which only compressed differences are sent.

Koloskova, Stich, Jaggi, "Decentralized Stochastic Optimization and Gossip Algorithms with Compressed Communication",
ICML 2019, arXiv 1902.00340, Algorithm 2 (CHOCO-SGD); without a gradient it is Algorithm 1 (CHOCO-Gossip):

    X_half = X - lr G(X);  Q = C(X_half - X_hat);  X_hat <- X_hat + Q;  X <- X_half + gamma (W X_hat - X_hat)

C is the channel: ``channel=[topk]``. Each peer and all its neighbours hold the same x_hat, so that one message a round,
the same to all of them, suffices. The mean of X moves by the mean step exactly, whatever C loses. The theory's gamma is
far too small in practice; gamma = 1 diverges under Top-K.

Deviations: with K local steps X_half is where they lead; weight decay, clipping, momentum (zeroed every round) and
decay of the lr as in ``local_sgd``. ``copies=model`` starts X_hat from the model that all peers start from, as the
authors' convex code does, rather than from 0, the box: with strong compression the first 1 / delta rounds are not spent
on what everybody knows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from fedsim.algorithms.kit.local_sgd import MomentumSGD
from fedsim.algorithms.kit.roles import ModelPeer
from fedsim.errors import require
from fedsim.objective import Objective
from fedsim.traits import Traits
from fedsim.types import Message, Round


class ChocoSGDPeer(NamedTuple):
    """What a peer keeps."""

    x: Tensor  # [d] its model
    x_hat: Tensor  # [d] what its neighbours take its model for


@dataclass(frozen=True)
class ChocoSGD(ModelPeer, MomentumSGD):
    """Decentralized SGD with compressed differences.

    Attributes:
        gamma: step of the gossip, in (0, 1]; 0.1 to 0.3 is stable for Top-K 5 % on a ring of 10.
        copies: where the public copies start: ``zero`` (the box), or the initial ``model``.
    """

    traits: ClassVar[Traits] = Traits(role="peers", static=True, compresses=("difference",), hooks=("publish",))
    gamma: float = 0.1
    copies: Literal["zero", "model"] = "zero"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.gamma <= 1, "gamma", "be in (0, 1]", self.gamma)

    def init_client(self, x0: Tensor) -> ChocoSGDPeer:
        """Every peer starts from the same model."""
        return ChocoSGDPeer(x0, torch.zeros_like(x0) if self.copies == "zero" else x0)

    def local(self, obj: Objective, peer: ChocoSGDPeer, rnd: Round) -> ChocoSGDPeer:
        """X_half: K local steps from the peer's model."""
        return peer._replace(x=self.solve(obj, peer.x, self.rate(rnd)))

    def offer(self, peer: ChocoSGDPeer, rnd: Round) -> Message:
        """What the neighbours do not know yet, x_half - x_hat [d]."""
        return {"difference": peer.x - peer.x_hat}

    def publish(self, peer: ChocoSGDPeer, arrived: Message, rnd: Round) -> tuple[ChocoSGDPeer, Message]:
        """x_hat <- x_hat + q, at the peer and at its neighbours alike; what is mixed is x_hat."""
        x_hat = peer.x_hat + arrived["difference"]
        return peer._replace(x_hat=x_hat), {"x_hat": x_hat}

    def mix(self, peer: ChocoSGDPeer, mixed: Message, rnd: Round) -> ChocoSGDPeer:
        """x_i <- x_half_i + gamma (sum_j w_ij x_hat_j - x_hat_i)."""
        # over all peers the bracket sums to zero, W being doubly stochastic: gossip about copies moves no mean
        return peer._replace(x=peer.x + self.gamma * (mixed["x_hat"] - peer.x_hat))
