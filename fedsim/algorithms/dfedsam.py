"""DFedSAM, DFedSAM-MGS: sharpness-aware local steps, then one or several exchanges of models with the neighbours.

Shi, Shen, Wei, Sun, Yuan, Wang, Tao, "Improving the Model Consistency of Decentralized Federated Learning", ICML 2023,
arXiv 2302.04083, the algorithm box of DFedSAM and DFedSAM-MGS (``gossip_steps`` Q > 1).

Deviations: the norm of the ascent step is guarded by 1e-12, as in the common torch implementation of SAM; local
momentum (0 in the paper) is zeroed every round; the lr may decay; weight decay, outside the ascent, and clipping as in
``local_sgd``. rho = 0 is DFedAvg.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fedsim.algorithms.kit.gossip_averaging import ModelGossip, PeerModel
from fedsim.algorithms.kit.local_sgd import sam_grad
from fedsim.errors import require
from fedsim.objective import Objective
from fedsim.types import Batch, Round


@dataclass(frozen=True)
class DFedSAM(ModelGossip):
    """Decentralized federated averaging of sharpness-aware local steps; ``ModelGossip`` holds the exchange.

    Attributes:
        rho: length of the ascent step, >= 0.
    """

    rho: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.rho >= 0, "rho", "be >= 0", self.rho)

    def local(self, obj: Objective, peer: PeerModel, rnd: Round) -> PeerModel:
        """K local steps along grad(y + rho g / ||g||) from the peer's model, both gradients on the same minibatch."""

        def sharp(y: Tensor, batch: Batch) -> Tensor:
            return sam_grad(obj, y, batch, self.rho, eps=1e-12)  # elsewhere 1e-7; see the deviations

        return PeerModel(self.solve(obj, peer.x, self.rate(rnd), sharp))
