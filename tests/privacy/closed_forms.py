"""Noise levels from papers' formulas, with the releases they mean, so that an accountant can say what they cost."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from fedsim.algorithms.diff2 import Diff2
from fedsim.errors import require
from fedsim.fields import check_fields
from fedsim.privacy.accountant import Accountant
from fedsim.traits.releases import Release, Sampling
from fedsim.types import Round


@dataclass(frozen=True)
class AnchoredNoise:
    """Noise of a method with anchor rounds (full gradients) and difference rounds.

    Attributes:
        anchor: std in an anchor round: per unit of the clip bound (DIFF2), of the gradient itself (SpiderBoost).
        difference: std in a difference round per unit of clip bound (DIFF2) or of distance moved (SpiderBoost); not
            used where every round is an anchor.
        cap: largest std in a difference round; infinite where the method has no cap.
        epsilon: the library's epsilon at the delta and for the rounds asked, tighter than the formula's.
        releases: what was accounted for, sensitivities and stds in the units above.
    """

    anchor: float
    difference: float
    cap: float
    epsilon: float
    releases: tuple[Release, ...]


def diff2_releases(anchor: float, difference: float, rounds: int, period: int, pool: int) -> tuple[Release, ...]:
    """DIFF2-GD's releases per unit of the clip bound.

    Neighbours replace one sample of one client, which moves the mean by at most 2c / (n_min P): the multipliers are
    s n_min P / 2.

    Args:
        anchor: s1 > 0.
        difference: s2 > 0; not used when no round is a difference.
        rounds: R.
        period: T; rounds r with r % T == 0 are anchors.
        pool: n_min P, the smallest client's samples times the clients.
    """
    require(rounds >= 1, "rounds", "be >= 1", rounds)
    require(period >= 1, "period", "be >= 1", period)
    require(pool >= 1, "pool", "be >= 1", pool)
    anchors = math.ceil(rounds / period)
    counts = ((anchor, anchors), (difference, rounds - anchors))
    return tuple(Release(2 / pool, std, count, unit="sample", relation="replace") for std, count in counts if count)


def diff2(epsilon: float, rounds: int, period: int, pool: int, accountant: Accountant) -> AnchoredNoise:
    """DIFF2-GD's noise as calibrated by its public code, at the accountant's delta (``Diff2.paper_multiplier``).

    Args:
        epsilon: nominal, > 0.
        rounds: R.
        period: T >= 1; 1 is DP-GD.
        pool: n_min P.
        accountant: for the delta and the tighter epsilon.
    """
    require(rounds >= 1, "rounds", "be >= 1", rounds)
    require(pool >= 1, "pool", "be >= 1", pool)
    rule = Diff2(lr=1.0, period=period)
    rule = replace(rule, noise_multiplier=rule.paper_multiplier(epsilon, accountant.delta, rounds))
    anchor, difference = (2 / pool * rule.multiplier(Round(index, (), 1)) for index in (0, 1))
    releases = diff2_releases(anchor, difference, rounds, period, pool)
    return AnchoredNoise(anchor, difference, math.inf, accountant.epsilon(releases), releases)


@dataclass(frozen=True)
class SpiderBoost:
    """Private SpiderBoost's problem and schedule.

    R. Arora, R. Bassily, T. Gonzalez, C. Guzman, M. Menart, E. Ullah, Faster rates of convergence to stationary points
    in differentially private optimization, ICML 2023, arXiv:2206.00846, algorithm 2. The anchor noise has the paper's
    sqrt(period); two public implementations divide by the period itself, too little noise by sqrt(period).

    Attributes:
        lipschitz: L0, bound of a sample's gradient norm (enforced by clipping), > 0.
        smoothness: L1; a difference is clipped to min(L1 ||dw||, 2 L0) per sample, > 0.
        samples: n >= 1.
        rounds: T, rounds run, >= 1.
        period: q >= 1; rounds t with t % q == 0 are anchors.
        anchor_batch: b1 in 1..n.
        difference_batch: b2 in 1..n.
        constant: the paper's unspecified universal constant c, > 0.
        sampling: how batches are drawn; a batch of n needs none.
        relation: neighbours; "replace" doubles the sensitivities.
    """

    lipschitz: float
    smoothness: float
    samples: int
    rounds: int
    period: int
    anchor_batch: int
    difference_batch: int
    constant: float = 1.0
    sampling: Literal["poisson", "fixed"] = "poisson"
    relation: Literal["add_or_remove", "replace"] = "add_or_remove"

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("lipschitz", "smoothness", "constant"):
            require(getattr(self, name) > 0, name, "be > 0", getattr(self, name))
        for name in ("samples", "rounds", "period"):
            require(getattr(self, name) >= 1, name, "be >= 1", getattr(self, name))
        for name in ("anchor_batch", "difference_batch"):
            size = getattr(self, name)
            require(1 <= size <= self.samples, name, f"be in 1..{self.samples}", size)

    def noise(self, epsilon: float, accountant: Accountant) -> AnchoredNoise:
        """The paper's stds for a nominal epsilon at the accountant's delta, and what they cost."""
        require(0 < epsilon < math.inf, "target_epsilon", "be > 0 and finite", epsilon)
        level = self.constant * math.sqrt(math.log(1 / accountant.delta)) / epsilon
        composed = math.sqrt(self.rounds) / self.samples
        anchor = level * self.lipschitz * max(1 / self.anchor_batch, composed / math.sqrt(self.period))
        difference = level * max(1 / self.difference_batch, composed)
        releases = self.releases(anchor, difference * self.smoothness)
        cap = 2 * self.lipschitz * difference
        return AnchoredNoise(anchor, difference * self.smoothness, cap, accountant.epsilon(releases), releases)

    def releases(self, anchor: float, difference: float) -> tuple[Release, ...]:
        """The run's releases for the std of an anchor and of a difference per unit of distance.

        A difference is clipped to min(L1 ||dw||, 2 L0) and its noise is min(difference ||dw||, cap) with the cap
        2 L0 / L1 times ``difference``: one multiplier, whatever ||dw||.
        """
        twice = 2 if self.relation == "replace" else 1
        anchors = math.ceil(self.rounds / self.period)
        parts = [(twice * self.lipschitz / self.anchor_batch, anchor, self.anchor_batch, anchors)]
        if self.rounds > anchors:
            bound = twice * self.smoothness / self.difference_batch
            parts.append((bound, difference, self.difference_batch, self.rounds - anchors))
        return tuple(self._release(*part) for part in parts)

    def _release(self, sensitivity: float, std: float, batch: int, count: int) -> Release:
        whole, fixed = batch == self.samples, self.sampling == "fixed"
        sampling: Sampling = "none" if whole else self.sampling
        return Release(
            sensitivity,
            std,
            count,
            sampling=sampling,
            rate=None if whole or fixed else batch / self.samples,
            cohort=batch if fixed and not whole else None,
            population=self.samples if fixed and not whole else None,
            unit="sample",
            relation=self.relation,
        )
