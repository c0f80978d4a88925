"""FedBuff: the server steps on the mean of K updates, whenever that many have arrived.

Nguyen, Malik, Zhan, Yousefpour, Rabbat, Malek, Huba, "Federated Learning with Buffered Asynchronous Aggregation",
AISTATS 2022, arXiv 2106.06639, its Algorithm 1; discounts of 1 / sqrt(1 + staleness) as in its experiments.

Deviations: no secure aggregation and no noise; server momentum as in FedAvgM, off by default; other discounts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fedsim.algorithms.fedavg import FedAvg, FedAvgServer
from fedsim.algorithms.kit.staleness import Discount, check_discount, discounts
from fedsim.errors import require
from fedsim.traits import Traits
from fedsim.types import Message, Round


@dataclass(frozen=True)
class FedBuff(FedAvg):
    """Federated learning with a buffer of updates.

    Attributes:
        buffer: K, updates in a server step, >= 1.
        discount: factor on a stale update: ``constant``, ``polynomial`` or ``hinge``.
        a: power of the polynomial, slope of the hinge, > 0.
        b: staleness that the hinge forgives, >= 0.
    """

    traits: ClassVar[Traits] = Traits(asynchronous=True, stacked=True, hooks=("buffer",))

    buffer: int = 10
    discount: Discount = "polynomial"
    a: float = 0.5
    b: float = 4.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.buffer >= 1, "buffer", "be >= 1", self.buffer)
        check_discount(self.a, self.b)

    def server(self, server: FedAvgServer, received: Message, rnd: Round) -> FedAvgServer:
        """v <- beta v + 1/K sum s(staleness) update; x <- x + server_lr v."""
        weights = discounts(self.discount, self.a, self.b, received["staleness"])
        updates: Tensor = received["update"]  # [K, d], one row for each arrival in the buffer
        # divided by K and not by the sum of the discounts: a stale buffer makes a small step
        return super().server(server, {"update": (weights[:, None] * updates).mean(0)}, rnd)
