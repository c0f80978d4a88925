"""FedAvg with fine-tuning: the global model, adapted by each client to its own data before it predicts.

Cheng, Chadha, Duchi, "Fine-tuning is Fine in Federated Learning", 2021, arXiv 2108.07313; the global model is that of
FedAvg's algorithm box (see ``fedavg``).

Deviation: a client fine-tunes for the local work of one round (``local``), with the lr of the round, each time it is
evaluated; nothing of that is kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fedsim.algorithms.fedavg import FedAvg
from fedsim.objective import Objective
from fedsim.traits import Traits
from fedsim.types import Message, Round


@dataclass(frozen=True)
class FedAvgFT(FedAvg):
    """FedAvg whose clients predict with a fine-tuned copy of the global model."""

    traits: ClassVar[Traits] = Traits(moves=True, hooks=("own",))

    def own(self, obj: Objective, client: tuple[()], got: Message, rnd: Round) -> Tensor:
        """The global model after K local steps, [d]."""
        return self.solve(obj, got["x"], self.rate(rnd))
