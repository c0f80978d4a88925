"""Adaptive clipping: the bound follows a quantile of the norms, at no extra budget.

G. Andrew, O. Thakkar, H. B. McMahan, S. Ramaswamy, Differentially Private Learning with Adaptive Clipping, NeurIPS
2021, arXiv:1905.03871, algorithm 1 and theorem 1. Deviation: none. Each client adds to its clipped update one bit,
sent as +1/2 when its norm is within the bound and -1/2 otherwise; the sums of updates and of bits carry noise of their
own, and together cost as much as one release with the multiplier ``z``.
"""

from __future__ import annotations

import math

from fedsim.errors import require


def fraction_std(cohort: float) -> float:
    """The paper's noise std of the sum of +-1/2 bits: a twentieth of the expected cohort."""
    require(cohort > 0, "cohort", "be > 0", cohort)
    return cohort / 20  # the paper's recommendation, sigma_b = m / 20


def value_multiplier(noise_multiplier: float, bits_std: float) -> float:
    """Multiplier of the updates' noise, so that updates and bits together spend ``noise_multiplier``.

    z_value = (z^-2 - (2 bits_std)^-2)^(-1/2): the sum of +-1/2 bits has sensitivity 1/2, so its multiplier is
    2 bits_std.

    Args:
        noise_multiplier: z of the joint release, > 0.
        bits_std: std of the noise on the sum of bits; more than z / 2.
    """
    require(0 < noise_multiplier < math.inf, "noise_multiplier", "be > 0 and finite", noise_multiplier)
    must = f"be < 2 * bits_std = {2 * bits_std:g}, the multiplier of the bits"
    do = "raise bits_std (the paper: cohort / 20), or take larger cohorts"
    require(noise_multiplier < 2 * bits_std, "noise_multiplier", must, noise_multiplier, do)
    # two Gaussian releases cost as much as one with z^-2 = z_value^-2 + (2 bits_std)^-2 (theorem 1)
    return float((noise_multiplier**-2 - (2 * bits_std) ** -2) ** -0.5)


def noisy_fraction(within: int, arrived: int, expected: float, noise: float) -> float:
    """Estimate of the fraction of norms within the bound.

    Args:
        within: clients whose norm was at most the bound.
        arrived: clients in the sum.
        expected: expected cohort, the fixed denominator: dividing by ``arrived`` would release it.
        noise: a draw of N(0, bits_std^2).

    Returns:
        (sum of +-1/2 bits + noise) / expected + 1/2; may leave [0, 1].
    """
    require(0 <= within <= arrived, "within", f"be in 0..{arrived}", within)
    require(expected > 0, "expected", "be > 0", expected)
    # the sum of the +-1/2 bits is within - arrived / 2; the paper's b' of its update of C
    return (within - arrived / 2 + noise) / expected + 0.5


def next_clip(clip: float, fraction: float, target: float, rate: float) -> float:
    """The bound of the next round, clip * exp(-rate * (fraction - target)).

    Args:
        clip: C of this round, > 0.
        fraction: noisy fraction of norms within C.
        target: quantile the bound is to follow, in [0, 1].
        rate: eta_C, > 0.
    """
    require(0 < clip < math.inf, "clip", "be > 0 and finite", clip)
    require(0 <= target <= 1, "target", "be in [0, 1]", target)
    require(rate > 0, "rate", "be > 0", rate)
    # geometric, so that the bound stays positive and large errors are left behind in few rounds
    return clip * math.exp(-rate * (fraction - target))
