"""FedAsync: the server mixes every arriving model into its own, the less the staler it is.

Xie, Koyejo, Gupta, "Asynchronous Federated Optimization", 2019, arXiv 1903.03934, its Algorithm 1.

Deviations: mixing does not decay with time by itself; the learning rate may, with the client's own participations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fedsim.algorithms.kit.local_sgd import MomentumSGD
from fedsim.algorithms.kit.roles import GlobalModel, ModelServer
from fedsim.algorithms.kit.staleness import Discount, check_discount, discounts
from fedsim.errors import require
from fedsim.objective import Objective
from fedsim.traits import Traits
from fedsim.types import Batch, Message, Round


@dataclass(frozen=True)
class FedAsync(ModelServer, MomentumSGD):
    """Asynchronous federated optimization.

    Attributes:
        alpha: how much of an arriving model that is not stale goes into the server's, in (0, 1].
        rho: weight of the clients' proximal term rho/2 ||y - x||^2, >= 0.
        discount: factor on alpha of a stale model: ``constant``, ``polynomial`` or ``hinge``.
        a: power of the polynomial, slope of the hinge, > 0.
        b: staleness that the hinge forgives, >= 0.
    """

    traits: ClassVar[Traits] = Traits(asynchronous=True, stacked=True, hooks=("buffer",))
    buffer: ClassVar[int] = 1

    alpha: float = 0.6
    rho: float = 0.005
    discount: Discount = "polynomial"
    a: float = 0.5
    b: float = 4.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.alpha <= 1, "alpha", "be in (0, 1]", self.alpha)
        require(self.rho >= 0, "rho", "be >= 0", self.rho)
        check_discount(self.a, self.b)

    def local(self, obj: Objective, client: tuple[()], got: Message, rnd: Round) -> tuple[Message, tuple[()]]:
        """K local steps y <- y - lr (g + rho (y - x)) from x; sends y [d]."""
        x: Tensor = got["x"]

        def direction(y: Tensor, batch: Batch) -> Tensor:
            # the gradient of the box's regularised loss f_i(y) + rho/2 ||y - x||^2
            return obj.grad(y, batch) + self.rho * (y - x)

        return {"x": self.solve(obj, x, self.rate(rnd), direction if self.rho else None)}, client

    def server(self, server: GlobalModel, received: Message, rnd: Round) -> GlobalModel:
        """x <- (1 - alpha_t) x + alpha_t y with alpha_t = alpha s(staleness)."""
        # one arrival at a time (buffer = 1), so row 0 is the only one
        alpha = self.alpha * discounts(self.discount, self.a, self.b, received["staleness"])[0]
        return GlobalModel((1 - alpha) * server.x + alpha * received["x"][0])
