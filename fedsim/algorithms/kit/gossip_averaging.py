"""What methods share whose peers train by local SGD and then average models: one exchange, or several of them.

The local solver is the method's own; the state, what travels and the averaging are the same for all of them: Sun, Li,
Wang, "Decentralized Federated Averaging", IEEE Transactions on Pattern Analysis and Machine Intelligence 2023, arXiv
2104.11375, the algorithm box; several exchanges: Shi, Shen, Wei, Sun, Yuan, Wang, Tao, "Improving the Model Consistency
of Decentralized Federated Learning", ICML 2023, arXiv 2302.04083, the algorithm box (multiple gossip steps).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from torch import Tensor

from fedsim.algorithms.kit.local_sgd import MomentumSGD
from fedsim.algorithms.kit.roles import ModelPeer
from fedsim.errors import require
from fedsim.traits import Traits
from fedsim.types import Message, Round


class PeerModel(NamedTuple):
    """What a peer keeps that keeps nothing but its model."""

    x: Tensor  # [d] its model


@dataclass(frozen=True)
class ModelGossip(ModelPeer, MomentumSGD):
    """Peers with a model of their own, which they average with those of their neighbours after their local work.

    Attributes:
        gossip_steps: Q, exchanges in a round, >= 1; Q of them are one with W^Q.
    """

    traits: ClassVar[Traits] = Traits(role="peers", hooks=("gossip_steps",))
    gossip_steps: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.gossip_steps >= 1, "gossip_steps", "be >= 1", self.gossip_steps)

    def init_client(self, x0: Tensor) -> PeerModel:
        """Every peer starts from the same model."""
        return PeerModel(x0)

    def mix(self, peer: PeerModel, mixed: Message, rnd: Round) -> PeerModel:
        """x_i <- sum_j w_ij x_j."""
        return PeerModel(mixed["x"])
