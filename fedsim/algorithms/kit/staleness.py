"""How much a server trusts an update that began from an older model: FedAsync's families of discounts.

Xie, Koyejo, Gupta, "Asynchronous Federated Optimization", 2019, arXiv 1903.03934, its section on adaptive mixing. With
staleness s, the steps of the server since the client began: constant 1; polynomial (1 + s)^-a; hinge, 1 up to b, then
1 / (a (s - b) + 1).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from fedsim.errors import require

Discount = Literal["constant", "polynomial", "hinge"]


def discounts(kind: Discount, a: float, b: float, staleness: Tensor) -> Tensor:
    """The factor in (0, 1] of each update.

    Args:
        kind: family.
        a: power or slope.
        b: staleness that a hinge forgives.
        staleness: [k], >= 0.

    Returns:
        [k] in the dtype of ``staleness``.
    """
    if kind == "constant":
        return torch.ones_like(staleness)
    if kind == "polynomial":
        return (1 + staleness) ** -a
    # the hinge: 1 up to b, from there on falling like one over the rest
    return 1 / (a * (staleness - b).clamp(min=0) + 1)


def check_discount(a: float, b: float) -> None:
    """Raise InputError unless the parameters mean something."""
    require(a > 0, "a", "be > 0", a)
    require(b >= 0, "b", "be >= 0", b)
