"""What methods for strongly convex smooth losses share: the constants mu and L of the worst clients."""

from __future__ import annotations

from dataclasses import dataclass

from fedsim.errors import require
from fedsim.fields import check_fields


@dataclass(frozen=True)
class StronglyConvex:
    """The hyper-parameters; algorithms inherit them.

    Attributes:
        mu: least strong convexity among the clients' losses f_i (not of their mean), > 0; 0: computed, for least
            squares.
        smooth: largest smoothness constant L among the clients' losses, >= mu; 0: computed, for least squares.
        weight_decay: weight of 1/2 ||x||^2 in every f_i, >= 0, which ``mu`` and ``smooth`` include.
    """

    mu: float = 0.0
    smooth: float = 0.0
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self)
        require(self.mu >= 0, "mu", "be > 0, or 0 to have it computed", self.mu)
        must = f"be >= mu = {self.mu:g}, or 0 to have it computed"
        require(self.smooth >= self.mu or self.smooth == 0, "smooth", must, self.smooth)
        require(self.weight_decay >= 0, "weight_decay", "be >= 0", self.weight_decay)

    def bounds(self, mu: float | None, smooth: float | None) -> tuple[float, float]:
        """mu and L as given, else what is known of the losses without weight decay (None: nothing), with it.

        Raises:
            InputError: one is neither given nor known, or the losses are not strongly convex.
        """
        found = {"mu": mu, "smooth": smooth}
        for name, value in found.items():  # 0 stands for "compute it"
            known = bool(getattr(self, name)) or value is not None
            must = "be given for losses other than least squares of a linear model without bias"
            require(known, f"algorithm.{name}", must, 0)
        least, most = (getattr(self, name) or (found[name] or 0.0) + self.weight_decay for name in found)
        must = "be > 0: some client's losses are not strongly convex, its data have fewer directions than the model"
        require(least > 1e-12 * most, "algorithm.mu", must, least, "add algorithm.weight_decay=0.1, for example")
        return least, most
