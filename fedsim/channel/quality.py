"""What a compressor C guarantees for every vector v [d], which step sizes such as EControl's eta are taken from.

Contractive: E||C(v) - v||^2 <= (1 - delta) ||v||^2. Unbiased: E C(v) = v and E||C(v) - v||^2 <= omega ||v||^2. Both in
exact arithmetic and alone: a codec of fewer digits further in adds its own error.
"""

from __future__ import annotations

from typing import Protocol


class Compressor(Protocol):
    """A layer that loses information, and says how much at worst."""

    def delta(self, d: int) -> float | None:
        """The contraction in (0, 1] of C as it is; None when there is no bound for every v, or C is unbiased."""
        ...

    def omega(self, d: int) -> float | None:
        """The variance >= 0 of an unbiased C; None when C is biased."""
        ...


def contraction(compressor: Compressor, d: int) -> float | None:
    """delta of C, or of C / (1 + omega), which is 1 / (1 + omega)-contractive, where C is unbiased; None: no bound."""
    omega = compressor.omega(d)
    return compressor.delta(d) if omega is None else 1 / (1 + omega)
