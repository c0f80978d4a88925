"""What is counted of whom: participations in the real cohorts, rates by size, the worst-off client; promises."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from fedsim import Local
from fedsim.algorithms.diff2 import Diff2
from fedsim.algorithms.diff2_bvr import Diff2BVR
from fedsim.algorithms.dp_sgd import PrivateSGD
from fedsim.algorithms.dp_srm import DPSRM
from fedsim.algorithms.fedavg import FedAvg
from fedsim.algorithms.private_spiderboost import PrivateSpiderBoost
from fedsim.assembly.nodes import build_object
from fedsim.errors import InputError
from fedsim.privacy.accountant import Accountant
from fedsim.privacy.config import (
    AdaptiveGaussian,
    BandedMatrix,
    CentralGaussian,
    DiscreteGaussian,
    LocalGaussian,
    Own,
    promised,
)
from fedsim.privacy.ledger import Ledger
from fedsim.schedule import All, Bernoulli, Cyclic, Uniform
from fedsim.traits import Traits
from fedsim.traits.releases import Release
from tests.privacy.closed_forms import diff2

pytest.importorskip("dp_accounting")
RDP, PLD = Accountant("rdp", 1e-5), Accountant("pld", 1e-5)
POISSON = Local(steps=4, batch_size=10, sampling="poisson")
SIZES = (40, 400, 41, 100, 55, 40)
DISCRETE, ADAPTIVE = (kind(1e-5, noise_multiplier=1.0) for kind in (DiscreteGaussian, AdaptiveGaussian))
EPOCHS = Local(epochs=1, batch_size=10, sampling="poisson")
OWN = Own(1e-5, noise_multiplier=1.2, kind="rdp")


def ledger(privacy: Any, algorithm: Any, schedule: Any = All(), rounds: int = 30, **options: Any) -> Ledger:  # noqa: B008
    settings: dict[str, Any] = {"sizes": SIZES, "local": POISSON, "seed": 3, "parameters": 50} | options
    return promised(
        privacy,
        algorithm,
        schedule,
        settings["sizes"],
        rounds,
        settings["local"],
        settings["seed"],
        settings["parameters"],
    )[1]


def poisson(z: float, rate: float, count: int) -> Release:
    return Release(1.0, z, count, sampling="poisson" if rate < 1 else "none", rate=rate if rate < 1 else None)


def test_dp_sgd_counts_each_clients_own_rounds_and_rate() -> None:
    schedule, rounds = Uniform(cohort=2), 30
    found = ledger(OWN, PrivateSGD(lr=0.1), schedule, rounds)
    for done in (1, 7, rounds, 12):
        counts = np.zeros(len(SIZES), dtype=int)
        for t in range(done):
            counts[list(schedule.clients(t, len(SIZES), 3))] += 1
        each = [RDP.epsilon([poisson(1.2, 10 / n, 4 * int(c))]) if c else 0.0
                for n, c in zip(SIZES, counts, strict=True)]  # fmt: skip
        assert found.epsilon(done) == pytest.approx(max(each), rel=1e-12)
    assert counts.max() < 12, "drawing cohorts earns no credit, but only the rounds one was in count"


def test_the_worst_client_is_found_where_bounds_and_counts_trade_off() -> None:
    """By epochs a large client makes more steps at a lower rate; the accountant alone can say who is worst."""
    local = Local(epochs=3, batch_size=10, sampling="poisson")
    tight = Own(1e-5, noise_multiplier=1.2)
    found = ledger(tight, PrivateSGD(lr=0.1), rounds=2, local=local)
    each = [PLD.epsilon([poisson(1.2, 10 / n, 2 * 3 * math.ceil(n / 10))]) for n in SIZES]
    assert found.epsilon(2) == pytest.approx(max(each), rel=1e-9)
    assert f"that of client {int(np.argmax(each))}" in found.summary(2)["privacy/promise"]


def test_a_target_is_met_by_the_worst_client() -> None:
    found = ledger(Own(1e-5, target_epsilon=2.0, kind="rdp"), PrivateSGD(lr=0.1), Uniform(cohort=3), rounds=20)
    assert found.epsilon(20) == pytest.approx(2.0, rel=1e-4)
    assert found.epsilon(20) <= 2.0
    said = found.summary(20)["privacy/promise"]
    assert said.startswith(
        "sample-level (add or remove), rdp, delta 1e-05; the largest of all clients, that of client "
    )


def test_shared_noise_is_worth_more_to_clients_with_larger_minibatches() -> None:
    """Full batches of 40..400: the noise is measured by 40."""
    found = ledger(OWN, DPSRM(lr=0.1), local=Local(steps=1, batch_size="full"), rounds=5)
    assert found.epsilon(5) == pytest.approx(RDP.epsilon([Release(1.0, 1.2, 5)]))
    found = ledger(OWN, DPSRM(lr=0.1), sizes=(8, 40), rounds=5)  # B = 8 and 10: z, whole; and 1.25 z at rate 1/4
    first, second = RDP.epsilon([poisson(1.2, 1, 20)]), RDP.epsilon([poisson(1.5, 0.25, 20)])
    assert found.epsilon(5) == pytest.approx(max(first, second))
    assert first > second


def test_spiderboost_counts_anchors_and_differences() -> None:
    rule = PrivateSpiderBoost(lr=0.1, period=4, anchor_rate=0.5, anchor_noise=2.0)
    found = ledger(OWN, rule, sizes=(40, 40), rounds=10)  # anchors 0, 4, 8
    want = [poisson(2.4, 0.5, 3), poisson(1.2, 0.25, 7 * 4)]
    assert found.epsilon(10) == pytest.approx(RDP.epsilon(want))


def test_bvr_adds_the_workers_own_steps_to_what_concerns_all() -> None:
    rule, rounds, n = Diff2BVR(lr=0.1, period=5, local_noise=0.8), 14, len(SIZES)
    found = ledger(OWN, rule, rounds=rounds)
    anchor, steps = 1.2 * math.sqrt(0.25 / 5), 3  # seven rounds of the paper: 0 and 5 are anchors; K - 1 = 3
    common = [Release(1.0, anchor, 2), Release(1.0, 1.2, 5)]
    turns = [2 if i == 0 else 1 for i in range(n)]
    each = [RDP.epsilon([*common, poisson(0.8 * 1.2, 10 / m, steps * k)]) for m, k in zip(SIZES, turns, strict=True)]
    assert found.epsilon(rounds) == pytest.approx(max(each))
    assert found.epsilon(1) == pytest.approx(RDP.epsilon([Release(1.0, anchor)])), "no worker yet"
    assert "sample-level (replace)" in found.summary(rounds)["privacy/promise"]


def test_local_noise_counts_what_one_client_sent() -> None:
    schedule = Cyclic(cohort=2)  # three groups of two
    found = ledger(LocalGaussian(1e-5, noise_multiplier=2.0), FedAvg(lr=0.1), schedule, rounds=10)
    assert found.epsilon(10) == pytest.approx(PLD.epsilon([Release(1.0, 2.0, 4)]))
    assert found.summary(10)["privacy/promise"].startswith("client-level (replace)")


def test_banded_noise_counts_participations_and_verifies_the_cohorts() -> None:
    privacy = BandedMatrix(1e-5, noise_multiplier=2.0)
    found = ledger(privacy, FedAvg(lr=0.1), Cyclic(cohort=2), rounds=10)
    assert found.algorithm.factor.noise_coefficients.shape == (10, 3)
    assert found.epsilon(10) == pytest.approx(PLD.epsilon([Release(1.0, 2.0, 4)]))
    assert "lie at least 3 apart" in found.summary(10)["privacy/promise"]
    with pytest.raises(InputError, match=r"min_separation must be <= 1, .* add schedule=cyclic"):
        ledger(BandedMatrix(1e-5, noise_multiplier=2.0, min_separation=2), FedAvg(lr=0.1), All())
    with pytest.raises(InputError, match=r"bands must be in 1\.\.3"):
        ledger(BandedMatrix(1e-5, noise_multiplier=2.0, bands=4), FedAvg(lr=0.1), Cyclic(cohort=2))


def test_the_discrete_sum_counts_who_came_and_what_noise_they_brought() -> None:
    privacy = DiscreteGaussian(1e-5, noise_multiplier=2.0, bits=20)
    schedule, rounds = Bernoulli(rate=0.5, empty="keep"), 12
    found = ledger(privacy, FedAvg(lr=0.1), schedule, rounds)
    cohorts = [schedule.clients(t, len(SIZES), 3) for t in range(rounds)]
    assert len({len(c) for c in cohorts}) > 1
    rule = found.algorithm.rule
    each = [RDP.epsilon([rule.release(50, len(c)) for c in cohorts if i in c]) for i in range(len(SIZES))]
    assert found.epsilon(rounds) == pytest.approx(max(each))
    plain = RDP.epsilon([Release(1.0, 2.0 * math.sqrt(len(c) / 3)) for c in cohorts if c])
    assert max(each) < plain * 1.01, "not every client was in every round"
    met = ledger(DiscreteGaussian(1e-5, target_epsilon=4.0, bits=20), FedAvg(lr=0.1), schedule, rounds)
    assert met.epsilon(rounds) == pytest.approx(4.0, rel=1e-4)


def test_the_papers_calibration_stands_beside_the_tighter_epsilon() -> None:
    """Spec 4.4: nominal 3, T = 60, R = 2000, n_min P = 16510: exact epsilon 2.358."""
    sizes = (1651,) * 10
    found = ledger(Own(1e-5, target_epsilon=3.0, calibration="paper"), Diff2(lr=0.1), rounds=2000, sizes=sizes)
    summary = found.summary(2000)
    assert summary["privacy/epsilon_nominal"] == 3.0
    assert found.epsilon(2000) == pytest.approx(2.358, abs=6e-4)
    assert found.epsilon(2000) == pytest.approx(diff2(3.0, 2000, 60, 16510, PLD).epsilon)
    tight = ledger(Own(1e-5, target_epsilon=3.0), Diff2(lr=0.1), rounds=2000, sizes=sizes)
    assert tight.noise_multiplier / found.noise_multiplier == pytest.approx(0.808, abs=6e-4)
    with pytest.raises(InputError, match="calibration must be library for PrivateSGD"):
        ledger(Own(1e-5, target_epsilon=3.0, calibration="paper"), PrivateSGD(lr=0.1))


def test_a_larger_deployment_is_accounted_for_and_said() -> None:
    privacy = CentralGaussian(1e-5, noise_multiplier=1.0, noise_cohort=1000, noise_population=1_000_000)
    found = ledger(privacy, FedAvg(lr=0.1), Uniform(cohort=2), rounds=50)
    assert found.epsilon(50) == pytest.approx(PLD.epsilon([poisson(1.0, 1e-3, 50)]))
    said = found.summary(50)["privacy/promise"]
    assert "those of Poisson cohorts of 1000 of 1000000 clients, not of the 2 of 6 that ran" in said


def test_epsilon_at_a_rate_is_for_cohorts_that_may_be_empty() -> None:
    """20 clients at rate 0.05: a redraw would have made it 0.078 a round, and epsilon 5.47 instead of 3.50."""
    privacy, schedule, sizes = CentralGaussian(1e-5, noise_multiplier=1.0), Bernoulli(rate=0.05), (40,) * 20
    found = ledger(privacy, FedAvg(lr=0.1), schedule, rounds=100, sizes=sizes)
    assert found.epsilon(100) == pytest.approx(PLD.epsilon([poisson(1.0, 0.05, 100)]))
    assert found.epsilon(100) == pytest.approx(3.50, abs=0.005)
    cohorts = [found.run.cohort(t) for t in range(4000)]
    share = sum(map(len, cohorts)) / (20 * 4000)
    assert abs(share - 0.05) < 4 * math.sqrt(0.05 * 0.95 / (20 * 4000))
    assert () in cohorts
    with pytest.raises(InputError, match=r"schedule.empty must be keep or auto in a private run"):
        ledger(privacy, FedAvg(lr=0.1), Bernoulli(rate=0.05, empty="redraw"))


def test_an_algorithm_that_says_nothing_of_kinds_is_asked_every_round() -> None:
    class Rising(FedAvg):
        traits = Traits(noise="server", hooks=("releases", "noise_multiplier"))
        noise_multiplier = 1.0

        def releases(self, rnd: Any) -> tuple[Release, ...]:
            return (Release(1.0, 1.0 + rnd.index),)

    found = Ledger(Rising(lr=0.1), RDP, ledger(OWN, Diff2(lr=0.1)).run)
    assert found.epsilon(3) == pytest.approx(RDP.epsilon([Release(1.0, z) for z in (1.0, 2.0, 3.0)]))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: ledger(OWN, PrivateSGD(lr=0.1), local=Local(batch_size=10)), "local.sampling must be poisson"),
        (lambda: ledger(OWN, DPSRM(lr=0.1), local=EPOCHS), "local.steps must be the same .* '4 to 40'"),
        (lambda: CentralGaussian(1e-5, noise_multiplier=1.0, clip=math.inf), "clip must be a finite number, got inf"),
        (lambda: CentralGaussian(1e-5, noise_multiplier=1.0, noise_cohort=10), "both given"),
        (lambda: DiscreteGaussian(1e-5, noise_multiplier=1.0, kind="pld"), "kind must be rdp"),
        (lambda: DiscreteGaussian(1e-5, noise_multiplier=1.0, bits=1), "bits must be in"),
        (lambda: ledger(DISCRETE, FedAvg(lr=0.1), parameters=None), "one architecture"),
        (lambda: ledger(ADAPTIVE, FedAvg(lr=0.1)), r"noise_multiplier must be < 2 \*"),
        (lambda: AdaptiveGaussian(1e-5, noise_multiplier=1.0, quantile=2.0), "quantile must be in"),
        (lambda: Own(1e-5, noise_multiplier=1.0, calibration="paper"), "target_epsilon must be given"),
        (
            lambda: build_object({"_target_": "fedsim.privacy.config.Own", "noise_multiplier": 1.0}, "privacy"),
            "privacy.delta",
        ),
    ],
)  # fmt: skip
def test_promises_that_cannot_be_made_are_refused(make: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        make()


def test_a_full_batch_needs_no_sampling() -> None:
    found = ledger(OWN, PrivateSGD(lr=0.1), local=Local(steps=2, batch_size="full"), rounds=3)
    assert found.epsilon(3) == pytest.approx(RDP.epsilon([Release(1.0, 1.2, 6)]))
