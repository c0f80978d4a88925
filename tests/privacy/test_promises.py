"""Private runs from the command line's parts to the summary: the promise in words, epsilon of the worst-off client."""

from __future__ import annotations

from typing import Any

import pytest

from fedsim import Local
from fedsim.algorithms.diff2 import Diff2
from fedsim.algorithms.diff2_bvr import Diff2BVR
from fedsim.algorithms.dp_sgd import PrivateSGD
from fedsim.algorithms.fedavg import FedAvg
from fedsim.channel.half import Half
from fedsim.errors import InputError
from fedsim.privacy.accountant import Accountant
from fedsim.privacy.config import AdaptiveGaussian, BandedMatrix, DiscreteGaussian, Own
from fedsim.privacy.discrete import ModularSum
from fedsim.schedule import Cyclic, Uniform
from fedsim.traits.releases import Release
from tests.privacy.test_runs import SIZES, layers, run
from tests.privacy.test_samples import POISSON

pytest.importorskip("dp_accounting")
RDP = Accountant("rdp", 1e-5)


def test_dp_sgd_reports_the_client_that_fares_worst_in_the_cohorts_that_ran() -> None:
    schedule = Uniform(cohort=2)
    privacy = Own(1e-5, noise_multiplier=1.5, kind="rdp")
    found = run(PrivateSGD(lr=0.01), rounds=5, seed=4, schedule=schedule, local=POISSON, privacy=privacy)
    each = []
    for i, n in enumerate(SIZES):
        count = 3 * sum(i in schedule.clients(t, len(SIZES), 4) for t in range(5))
        rate = min(3, n) / n
        how: dict[str, Any] = {"sampling": "poisson", "rate": rate} if rate < 1 else {}
        each.append(RDP.epsilon([Release(1.0, 1.5, count, **how)]) if count else 0.0)
    assert found.summary["privacy/epsilon"] == pytest.approx(max(each))
    assert found.summary["privacy/promise"].startswith("sample-level (add or remove), rdp")


def test_bvr_meets_its_target() -> None:
    privacy = Own(1e-5, target_epsilon=8.0, kind="rdp")
    found = run(Diff2BVR(lr=1e-4, period=3), rounds=8, local=POISSON, privacy=privacy)
    assert found.summary["privacy/epsilon"] == pytest.approx(8.0, rel=1e-4)


def test_the_papers_calibration_is_in_the_summary() -> None:
    found = run(Diff2(lr=1e-4, period=4), rounds=10, privacy=Own(1e-5, target_epsilon=3.0, calibration="paper"))
    assert found.summary["privacy/epsilon_nominal"] == 3.0
    assert 0 < found.summary["privacy/epsilon"] < 3.0


def test_mechanisms_run_and_promise_clients() -> None:
    adaptive = AdaptiveGaussian(1e-5, noise_multiplier=0.2)
    banded = BandedMatrix(1e-5, noise_multiplier=2.0, clip=0.1)
    discrete = DiscreteGaussian(1e-5, noise_multiplier=2.0, clip=0.1)
    cyclic, whole = {"schedule": Cyclic(cohort=1)}, {"aggregate": ModularSum()}
    for privacy, options in ((adaptive, {}), (banded, cyclic), (discrete, whole)):
        found = run(FedAvg(lr=0.05), rounds=4, privacy=privacy, **options)
        assert found.status == "finished"
        assert found.summary["privacy/promise"].startswith("client-level")
        assert found.summary["privacy/epsilon"] > 0


@pytest.mark.parametrize(
    ("algorithm", "options", "says"),
    [
        (
            PrivateSGD(lr=0.1),
            {"privacy": Own(1e-5, noise_multiplier=1.0), "local": Local(batch_size=2)},
            "must be poisson",
        ),
        (FedAvg(lr=0.1), {"privacy": DiscreteGaussian(1e-5, noise_multiplier=1.0)}, "aggregate must be the sum of"),
        (FedAvg(lr=0.1), {"aggregate": ModularSum()}, "aggregate must be a rule for numbers"),
        (
            FedAvg(lr=0.1),
            {
                "privacy": DiscreteGaussian(1e-5, noise_multiplier=1.0),
                "aggregate": ModularSum(),
                "channel": layers(Half()),
            },
            r"channel must be \[\] for messages of integers",
        ),
    ],
)
def test_what_does_not_fit_is_said_before_the_run(algorithm: Any, options: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        run(algorithm, **options)
