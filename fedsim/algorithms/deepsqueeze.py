"""DeepSqueeze: peers gossip about compressed models and add to the next message what the last one lost.

Tang, Lian, Qiu, Yuan, Zhang, Zhang, Liu, "DeepSqueeze: Decentralization Meets Error-Compensated Compression", 2019,
arXiv 1907.07346, the algorithm box:

    X_half = X - lr G(X);  V = X_half + M;  Q = C(V);  M <- V - Q;  X <- X_half + gamma (W Q - Q)

C is the channel: ``channel=[topk]``. The mean of X moves by the mean step exactly, whatever C loses. No peer holds
copies of its neighbours, so that the graph may change with the round.

Deviations: with K local steps X_half is where they lead; weight decay, clipping, momentum (zeroed every round) and
decay of the lr as in ``local_sgd``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from fedsim.algorithms.kit.local_sgd import MomentumSGD
from fedsim.algorithms.kit.roles import ModelPeer
from fedsim.errors import require
from fedsim.objective import Objective
from fedsim.traits import Traits
from fedsim.types import Message, Round


class DeepSqueezePeer(NamedTuple):
    """What a peer keeps."""

    x: Tensor  # [d] its model
    m: Tensor  # [d] error: what its messages have lost so far


@dataclass(frozen=True)
class DeepSqueeze(ModelPeer, MomentumSGD):
    """Decentralized SGD with error-compensated messages.

    Attributes:
        gamma: step of the gossip, in (0, 1]; the coarser the compressor, the smaller.
    """

    traits: ClassVar[Traits] = Traits(role="peers", compresses=("v",), hooks=("publish",))
    gamma: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.gamma <= 1, "gamma", "be in (0, 1]", self.gamma)

    def init_client(self, x0: Tensor) -> DeepSqueezePeer:
        """Every peer starts from the same model, without an error."""
        return DeepSqueezePeer(x0, torch.zeros_like(x0))

    def local(self, obj: Objective, peer: DeepSqueezePeer, rnd: Round) -> DeepSqueezePeer:
        """X_half: K local steps from the peer's model."""
        return peer._replace(x=self.solve(obj, peer.x, self.rate(rnd)))

    def offer(self, peer: DeepSqueezePeer, rnd: Round) -> Message:
        """v = x_half + m [d]."""
        return {"v": peer.x + peer.m}

    def publish(self, peer: DeepSqueezePeer, arrived: Message, rnd: Round) -> tuple[DeepSqueezePeer, Message]:
        """m <- v - q; the peer's own part of the gossip, x <- x_half - gamma q, while q is at hand."""
        q = arrived["v"]
        # peer.x + peer.m is the v that was offered; -gamma q is the last part of gamma (W Q - Q), W Q comes with mix
        return DeepSqueezePeer(peer.x - self.gamma * q, peer.x + peer.m - q), {"q": q}

    def mix(self, peer: DeepSqueezePeer, mixed: Message, rnd: Round) -> DeepSqueezePeer:
        """x_i <- x_half_i + gamma (sum_j w_ij q_j - q_i)."""
        return peer._replace(x=peer.x + self.gamma * mixed["q"])
