"""Per-client low-rank: the vector, folded to a near-square matrix, travels as two thin factors.

The vector is projected on a subspace found by subspace iteration from a random start: Halko, Martinsson, Tropp,
"Finding structure with randomness: Probabilistic algorithms for constructing approximate matrix decompositions", SIAM
Review 2011, arXiv 0909.4061, algorithm 4.4. This is not PowerSGD (Vogels et al. 2019, ``algorithm=powersgd``): that
averages the factors over the workers inside the iteration and starts from the last round's; here each client's message
stands alone.

Quality: delta = r / p in expectation over the start, p <= m the sides of the matrix, by induction from E tr(S' M S) =
(r / p) tr(M) for a random r-dimensional S (M = A' A); on decaying spectra it comes close to the best rank r. Wire:
r (m + p) values, or all d values when those are no more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from fedsim.channel.base import Bytes, Noise, Send
from fedsim.channel.one_by_one import one_by_one
from fedsim.errors import require
from fedsim.fields import check_fields
from fedsim.traits import LayerTraits


@dataclass(frozen=True)
class LowRank:
    """Sends a rank-r approximation of the folded vector.

    Attributes:
        rank: r, >= 1.
        iterations: products with the matrix and its transpose before the projection, >= 0; more come closer to the SVD.
    """

    traits: ClassVar[LayerTraits] = LayerTraits(loses=True, contractive=True)
    rank: int = 1
    iterations: int = 1

    def __post_init__(self) -> None:
        check_fields(self)
        require(self.rank >= 1, "rank", "be >= 1", self.rank)
        require(self.iterations >= 0, "iterations", "be >= 0", self.iterations)

    def init(self, v: Tensor) -> tuple[()]:
        """No memory."""
        return ()

    def __call__(self, v: Tensor, link: tuple[()], noise: Noise, send: Send) -> tuple[Tensor, tuple[()], Bytes]:
        """Send v [d]."""
        d, r = v.shape[0], self.rank
        m, p = sides(d)
        if r * (m + p) >= d:  # two factors would be no smaller than the vector
            got, _, size = send(v)
            return got, link, size
        a = pad(v, (0, m * p - d)).reshape(m, p)
        start = noise.normal(v.new_zeros(p * r)).reshape(p, r)
        sent = one_by_one(low_rank_factors, a, start, self.iterations, at_once=low_rank_factors)
        factors, _, size = send(sent)
        left, right = factors[: m * r].reshape(m, r), factors[m * r :].reshape(r, p)
        return one_by_one(torch.mm, left, right, at_once=torch.bmm).reshape(-1)[:d], link, size

    def delta(self, d: int) -> float | None:
        """r / p in expectation; 1 for a vector sent as it is."""
        m, p = sides(d)
        return 1.0 if self.rank * (m + p) >= d else self.rank / p

    def omega(self, d: int) -> float | None:
        """None: what arrives is biased."""
        return None


def sides(d: int) -> tuple[int, int]:
    """(m, p): the matrix of d entries, m >= p, both next to sqrt(d), the last row filled up with zeros."""
    p = max(1, math.isqrt(d))
    return -(-d // p), p


def low_rank_factors(a: Tensor, start: Tensor, iterations: int) -> Tensor:
    """a [m, p], start [p, r] -> left [m, r] (orthogonal) and right [r, p], flat in one vector; left right ~ a.

    Or of b clients, each with a leading dimension [b].

    Both are multiplied by powers of two, which changes no bit of their product, so that they are of about the same
    magnitude, and zero where a is: layers further in see one vector, and would lose a factor that is far smaller.
    """
    # Orthogonal after each product: powers of a a^T alone would all turn into its first direction in floating point.
    left = torch.linalg.qr(a @ start).Q
    for _ in range(iterations):
        left = torch.linalg.qr(a @ torch.linalg.qr(a.mT @ left).Q).Q
    right = left.mT @ a
    peak = right.abs().amax((-2, -1), keepdim=True)
    half = torch.frexp(peak).exponent >> 1
    left = torch.where(peak == 0, 0, torch.ldexp(left, half))
    return torch.cat([left.flatten(-2), torch.ldexp(right, -half).flatten(-2)], -1)
