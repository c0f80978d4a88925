"""Distributed discrete Gaussian: integers with noise of their own, summed modulo 2^bits.

P. Kairouz, Z. Liu, T. Steinke, ICML 2021, arXiv:2102.06387; sampler: C. Canonne, G. Kamath, T. Steinke, NeurIPS 2020,
arXiv:2004.00010, algorithm 3. Deviation: acceptance probabilities are float64, not rationals; the simulator's noise
is not hardened against floating-point attacks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fedsim.errors import InputError, require
from fedsim.fields import check_fields
from fedsim.traits.releases import Release

_TRIES = 10_000  # of a rounding accepted with probability >= 1 - beta


@dataclass(frozen=True)
class SecureSum:
    """Options of the sum.

    Attributes:
        clip: C, largest L2 norm of a client's vector, > 0.
        noise_multiplier: z of the whole expected cohort, >= 0; each client adds std z C / sqrt(expected).
        expected: clients expected in the sum, >= 1.
        bits: of a coordinate on the wire, in 2..48.
        deviations: standard deviations of the sum that fit before it wraps, > 0.
        beta: bound of the chance that a rounding is drawn again, in (0, 1).
    """

    clip: float
    noise_multiplier: float
    expected: int
    bits: int = 16
    deviations: float = 4.0
    beta: float = math.exp(-0.5)

    def __post_init__(self) -> None:
        check_fields(self)
        require(self.clip > 0, "clip", "be > 0", self.clip)
        require(self.noise_multiplier >= 0, "noise_multiplier", "be >= 0", self.noise_multiplier)
        require(self.expected >= 1, "expected", "be >= 1", self.expected)
        require(2 <= self.bits <= 48, "bits", "be in 2..48", self.bits)
        require(self.deviations > 0, "deviations", "be > 0", self.deviations)
        require(0 < self.beta < 1, "beta", "be in (0, 1)", self.beta)
        room = 4.0 ** (self.bits - 1) - self.deviations**2 * self.expected / 4
        require(room > 0, "bits", f"hold the rounding of {self.expected} clients", self.bits, "raise bits")

    @property
    def local_std(self) -> float:
        """Std of each client's noise, units of the vector."""
        return self.noise_multiplier * self.clip / math.sqrt(self.expected)

    def grain(self, d: int) -> float:
        """g, the value of one integer step, for vectors [d]: the finest whose sum fits ``deviations`` deviations."""
        n, k = self.expected, self.deviations
        # of a coordinate of the sum: after the rotation each has its even share of the norm, at most n clip, and the
        # noise; rounding adds n / 4 steps^2. Solved for the g at which k deviations are half of the 2^bits steps
        variance = (self.clip * n) ** 2 / padded_length(d) + n * self.local_std**2
        return k * math.sqrt(variance / (4.0 ** (self.bits - 1) - k**2 * n / 4))

    def bound(self, d: int) -> float:
        """Largest norm after rounding, units of the vector (the paper's proposition 22)."""
        g, c, size = self.grain(d), self.clip, padded_length(d)
        # rounding moves each of the 2^k coordinates by less than g, so the first bound always holds; the tighter second
        # holds with probability 1 - beta, and is made certain by rounding again until it does
        tail = math.sqrt(2 * math.log(1 / self.beta)) * g * (c + g * math.sqrt(size) / 2)
        return min(c + g * math.sqrt(size), math.sqrt(c**2 + g**2 * size / 4 + tail)) + 1e-5 * g

    def encode(self, v: np.ndarray, signs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """One client's message: v [d], signs [2^k] of +-1 common to the cohort -> [2^k] int64, ``bits`` bits each."""
        g = self.grain(len(v))
        norm = float(np.linalg.norm(v))
        require(math.isfinite(norm), "update", "be finite before a secure sum", norm)
        scaled = rotate(v * min(1.0, self.clip / norm if norm else 1.0), signs) / g
        # rounding at random keeps the mean but lengthens the vector; the bound is what the sensitivity rests on
        whole = rounded(scaled, self.bound(len(v)) / g, rng)
        if self.local_std:
            whole = whole + discrete_gaussian(self.local_std / g, len(whole), rng)
        return wrap(whole, self.bits)

    def decode(self, total: np.ndarray, d: int, signs: np.ndarray) -> np.ndarray:
        """The sum of the vectors [d] from the sum of the messages [2^k], wrapped or not."""
        return unrotate(wrap(total, self.bits) * self.grain(d), signs)[:d]

    def std(self, arrived: int) -> float:
        """Std of the noise in the sum of ``arrived`` messages: a dropout takes its share of noise along."""
        require(arrived >= 1, "arrived", "be >= 1", arrived)
        return self.local_std * math.sqrt(arrived)  # variances of independent shares add up

    def release(self, d: int, arrived: int) -> Release:
        """What a sum of ``arrived`` messages of vectors [d] let out.

        The sensitivity is the norm bound after rounding, raised by the paper's term for a sum of discrete Gaussians
        not being one (theorem 1), with its neighbours: a client's vector present or zero.
        """
        std, size = self.std(arrived), padded_length(d)
        require(std > 0, "noise_multiplier", "be > 0 for an epsilon", self.noise_multiplier)
        sigma = self.local_std / self.grain(d)
        k = np.arange(1, arrived)
        # a sum of discrete Gaussians is none exactly: tau is the paper's term for how far from it (theorem 1)
        tau = 10 * float(np.exp(-2 * (math.pi * sigma) ** 2 * k / (k + 1)).sum())
        ratio = self.bound(d) / std
        cost = min(math.sqrt(ratio**2 + tau * size / 2), ratio + tau * math.sqrt(size))
        return Release(cost * std, std, mechanism="discrete_gaussian", unit="client")


def padded_length(d: int) -> int:
    """The power of two >= d."""
    require(d >= 1, "d", "be >= 1", d)
    return 1 << (d - 1).bit_length()


def rotate(v: np.ndarray, signs: np.ndarray) -> np.ndarray:
    """H diag(signs) v / sqrt(2^k), v [d] padded with zeros: [2^k], the same norm."""
    require(len(signs) == padded_length(len(v)), "signs", f"have length {padded_length(len(v))}", len(signs))
    full = np.zeros(len(signs))
    full[: len(v)] = v
    return _hadamard(full * signs)


def unrotate(v: np.ndarray, signs: np.ndarray) -> np.ndarray:
    """Inverse of ``rotate``, [2^k]."""
    return np.asarray(_hadamard(v) * signs)


def draw_signs(d: int, rng: np.random.Generator) -> np.ndarray:
    """The +-1 [2^k] of a rotation; from one address for a whole cohort."""
    return rng.integers(0, 2, padded_length(d)) * 2.0 - 1.0


def rounded(x: np.ndarray, bound: float, rng: np.random.Generator) -> np.ndarray:
    """x [n] to neighbouring integers at random, unbiased but for drawing again until the norm is <= ``bound``."""
    low = np.floor(x)  # up with probability x - floor(x): unbiased
    for _ in range(_TRIES):
        whole = low + (rng.random(len(x)) < x - low)
        if float(whole @ whole) <= bound**2:
            return np.asarray(whole.astype(np.int64))
    raise InputError(f"bound must be reachable by rounding, got {bound:g} for a norm of {np.linalg.norm(x):g}")


def discrete_gaussian(sigma: float, n: int, rng: np.random.Generator) -> np.ndarray:
    """n draws [n] int64 of the law proportional to exp(-x^2 / (2 sigma^2)) on the integers, sigma > 0."""
    require(0 < sigma < math.inf, "sigma", "be > 0 and finite", sigma)
    t = math.floor(sigma) + 1  # scale of the discrete Laplace proposals, a difference of two geometric draws
    drawn = np.zeros(n, dtype=np.int64)
    todo = np.arange(n)
    while len(todo):
        chance = -math.expm1(-1 / t)
        laplace = rng.geometric(chance, len(todo)) - rng.geometric(chance, len(todo))
        # rejection: of proposals as many are kept as the Gaussian law has in the place of the Laplace one
        accept = rng.random(len(todo)) < np.exp(-((np.abs(laplace) - sigma**2 / t) ** 2) / (2 * sigma**2))
        drawn[todo[accept]] = laplace[accept]
        todo = todo[~accept]
    return drawn


def wrap(x: np.ndarray, bits: int) -> np.ndarray:
    """Integers modulo 2^bits, in [-2^(bits-1), 2^(bits-1))."""
    half = 1 << (bits - 1)  # the representative nearest to zero
    return np.asarray((x + half) % (2 * half) - half)


def _hadamard(v: np.ndarray) -> np.ndarray:
    n, width = len(v), 1
    # the fast transform: sums and differences of neighbouring blocks, whose width doubles
    while width < n:
        pairs = v.reshape(-1, 2, width)
        v = np.stack((pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]), axis=1).reshape(n)
        width *= 2
    return np.asarray(v / math.sqrt(n))
