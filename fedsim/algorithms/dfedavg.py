"""DFedAvg, DFedAvgM: every peer trains by local (momentum) SGD, then averages its model with its neighbours'.

Sun, Li, Wang, "Decentralized Federated Averaging", IEEE Transactions on Pattern Analysis and Machine Intelligence 2023,
arXiv 2104.11375, the algorithm box of DFedAvgM; momentum 0 is DFedAvg. With one local step it is W (X - lr G(X)), on a
complete graph FedAvg with everybody.

Deviations: the momentum buffer is zero at the start of every round and enters as in torch.optim.SGD, v <- m v + g;
several exchanges a round as in DFedSAM-MGS; the lr may decay; weight decay and clipping as in ``local_sgd``. The
quantised variant of the paper sends differences; here a compressor of the channel acts on the models themselves
(``choco_sgd`` sends compressed differences).
"""

from __future__ import annotations

from dataclasses import dataclass

from fedsim.algorithms.kit.gossip_averaging import ModelGossip, PeerModel
from fedsim.objective import Objective
from fedsim.types import Round


@dataclass(frozen=True)
class DFedAvg(ModelGossip):
    """Decentralized federated averaging; ``ModelGossip`` holds the exchange."""

    def local(self, obj: Objective, peer: PeerModel, rnd: Round) -> PeerModel:
        """K local steps v <- m v + g, y <- y - lr v from the peer's model."""
        return PeerModel(self.solve(obj, peer.x, self.rate(rnd)))
