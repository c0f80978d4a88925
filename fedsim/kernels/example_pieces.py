"""Gradients by example of one parameter for m examples of each of b clients: their norms and their weighted sum.

Neither needs the gradients themselves; the pieces are made by ``fedsim.kernels.example_sums``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

NUMBERS = 2**23
"""Most numbers in gradients by example at once, of all clients and of one layer: 32 MB in float32."""


class Piece(Protocol):
    """Gradients of one parameter for m examples of each of b clients."""

    def norms2(self) -> Tensor:
        """Squared norms [b, m]."""
        ...

    def total(self, weights: Tensor) -> Tensor:
        """Sum over the examples of weights [b, m] times gradients, [b, *shape]."""
        ...


class Whole(NamedTuple):
    """Gradients that are small enough to exist: scales and shifts."""

    g: Tensor  # [b, m, p]

    def norms2(self) -> Tensor:
        """Squared norms of the gradients, [b, m]."""
        return self.g.square().sum(-1)

    def total(self, weights: Tensor) -> Tensor:
        """The weighted sum over the examples, [b, p]."""
        return torch.bmm(weights.unsqueeze(1), self.g).squeeze(1)


class Outer(NamedTuple):
    """Gradients delta a^T of a weight that each example uses once."""

    a: Tensor  # [b, m, f] what entered
    delta: Tensor  # [b, m, o] derivative by what left

    def norms2(self) -> Tensor:
        """Squared norms of the gradients, [b, m]."""
        return self.a.square().sum(-1) * self.delta.square().sum(-1)

    def total(self, weights: Tensor) -> Tensor:
        """The weighted sum over the examples, [b, o, f]."""
        return torch.bmm((self.delta * weights.unsqueeze(-1)).transpose(1, 2), self.a)


class OuterDifference(NamedTuple):
    """Differences delta a^T - delta' a'^T = E a^T + delta' e^T, with E = delta - delta' and e = a - a'."""

    here: Outer
    there: Outer

    def norms2(self) -> Tensor:
        """Squared norms of the differences, [b, m].

        With e = s a + r, where r is orthogonal to a, the difference is (E + s delta') a^T + delta' r^T, two orthogonal
        matrices: a sum of squares, where the textbook's inner products would cancel.
        """
        (a, delta), (before, delta_before) = self
        aa, e = a.square().sum(-1), a - before
        s = ((a * e).sum(-1) / aa.clamp(min=torch.finfo(a.dtype).tiny)).unsqueeze(-1)
        along = (delta - delta_before + s * delta_before).square().sum(-1)
        return aa * along + delta_before.square().sum(-1) * (e - s * a).square().sum(-1)

    def total(self, weights: Tensor) -> Tensor:
        """The weighted sum over the examples, [b, o, f]."""
        (a, delta), (before, delta_before) = self
        w = weights.unsqueeze(-1)
        left = torch.cat([(delta - delta_before) * w, delta_before * w], 1)
        return torch.bmm(left.transpose(1, 2), torch.cat([a, a - before], 1))


@dataclass(frozen=True)
class SharedWeight:
    """Gradients sum_t delta_t a_t^T of a weight that each example uses at t positions, or their differences.

    Attributes:
        columns: what entered at the positions, [b, k, t, f], of some examples, from their part of ``entered``.
        entered: what entered the layer, [b, m, ...], at one or two models.
        deltas: derivatives by what left it, [b, m, t, o], likewise.
        features: f.
    """

    columns: Callable[[Tensor], Tensor]
    entered: tuple[Tensor, ...]
    deltas: tuple[Tensor, ...]
    features: int

    def norms2(self) -> Tensor:
        """Squared norms of the gradients, [b, m]."""
        found = []
        for some in self._parts():
            each = [delta[:, some].transpose(2, 3) @ self.columns(a[:, some]) for a, delta in self._models()]
            found.append((each[0] if len(each) == 1 else each[0] - each[1]).square().sum((2, 3)))
        return torch.cat(found, 1)

    def total(self, weights: Tensor) -> Tensor:
        """The weighted sum over the examples, [b, o, f]."""
        sums = []
        for entered, deltas in self._models():
            weighted = deltas * weights[:, :, None, None]
            parts = (
                torch.bmm(weighted[:, some].flatten(1, 2).transpose(1, 2), self.columns(entered[:, some]).flatten(1, 2))
                for some in self._parts()
            )
            sums.append(sum(parts, start=torch.zeros((), dtype=deltas.dtype, device=deltas.device)))
        return sums[0] if len(sums) == 1 else sums[0] - sums[1]

    def _models(self) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(self.entered, self.deltas, strict=True)

    def _parts(self) -> list[slice]:
        """Examples whose columns and gradients are held at once."""
        b, m, t, o = self.deltas[0].shape
        size = max(1, NUMBERS // (b * self.features * max(t, o)))
        return [slice(first, first + size) for first in range(0, m, size)]


class TableRows(NamedTuple):
    """Gradients of a table of which an example uses some rows: at every place the derivative by the row there."""

    tokens: Tensor  # [b, m, t]
    delta: Tensor  # [b, m, t, f]
    rows: int  # of the table

    def norms2(self) -> Tensor:
        """Squared norms of the gradients, [b, m]: products of all pairs of places with the same row."""
        b, m, t = self.tokens.shape
        size, found = max(1, NUMBERS // (b * t * t)), []
        for some in (slice(first, first + size) for first in range(0, m, size)):
            tokens, delta = self.tokens[:, some], self.delta[:, some]
            same = tokens.unsqueeze(-1) == tokens.unsqueeze(-2)
            found.append((torch.matmul(delta, delta.transpose(2, 3)) * same).sum((2, 3)).clamp(min=0))
        return torch.cat(found, 1)

    def total(self, weights: Tensor) -> Tensor:
        """The weighted sum over the examples, [b, rows, f]."""
        b, f = len(self.tokens), self.delta.shape[-1]
        out = self.delta.new_zeros(b * self.rows, f)
        at = self.tokens + torch.arange(b, device=self.tokens.device).mul_(self.rows).view(-1, 1, 1)
        weighted = self.delta * weights[:, :, None, None]
        return out.index_add_(0, at.flatten(), weighted.reshape(-1, f)).view(b, self.rows, f)
