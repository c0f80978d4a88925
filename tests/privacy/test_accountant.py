"""Epsilon against the tables of the specification, the exact Gaussian formula and opacus; its traps and laws."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import norm

from fedsim.errors import InputError
from fedsim.privacy.accountant import Accountant
from fedsim.traits.releases import Release, merged
from tests.privacy.closed_forms import SpiderBoost, diff2

pytest.importorskip("dp_accounting")
PLD, RDP = Accountant("pld"), Accountant("rdp")
TABLE = [
    (0.5, 1, 0.05308, 0.384, 0.348),
    (0.5, 6, 0.02423, 0.377, 0.342),
    (0.5, 60, 0.007661, 0.386, 0.351),
    (3, 1, 0.009383, 2.541, 2.341),
    (3, 6, 0.004283, 2.496, 2.299),
    (3, 60, 0.001354, 2.559, 2.358),
    (5, 1, 0.005935, 4.260, 3.940),
    (5, 6, 0.002709, 4.182, 3.867),
    (5, 60, 0.0008566, 4.290, 3.969),
]
S2 = {0.5: 0.1187, 3: 0.02098, 5: 0.01327}


def gaussian(z, count=1, rate=None):
    return Release(1.0, z, count, sampling="none" if rate is None else "poisson", rate=rate)


def exact(mu, delta):
    return brentq(lambda e: norm.cdf(-e / mu + mu / 2) - math.exp(e) * norm.cdf(-e / mu - mu / 2) - delta, 0, 50)


@pytest.mark.parametrize(("nominal", "period", "s1", "rdp", "pld"), TABLE)
def test_diff2_table(nominal, period, s1, rdp, pld):
    noise = diff2(nominal, 2000, period, 16510, PLD)
    assert noise.anchor == pytest.approx(s1, rel=6e-4)
    if period > 1:
        assert noise.difference == pytest.approx(S2[nominal], rel=6e-4)
    assert noise.epsilon == pytest.approx(pld, abs=6e-4)
    assert RDP.epsilon(noise.releases) == pytest.approx(rdp, abs=6e-4)
    mu = math.sqrt(sum(r.count / (r.std * 16510 / 2) ** 2 for r in noise.releases))
    assert noise.epsilon == pytest.approx(exact(mu, 1e-5), rel=1e-6)
    assert sum(r.count for r in noise.releases) == 2000


def test_the_discretised_distribution_agrees_with_the_exact_composition():
    import dp_accounting

    noise = diff2(3, 2000, 60, 16510, PLD)
    events = [dp_accounting.SelfComposedDpEvent(dp_accounting.GaussianDpEvent(r.multiplier), r.count)
              for r in noise.releases]  # fmt: skip
    library = dp_accounting.pld.PLDAccountant().compose(dp_accounting.ComposedDpEvent(events))
    assert library.get_epsilon(1e-5) == pytest.approx(noise.epsilon, rel=1e-3)


def test_poisson_and_the_relation_that_is_counted_once():
    release = gaussian(1.0, 1000, 0.01)
    assert RDP.epsilon([release]) == pytest.approx(2.101, abs=6e-4)
    assert PLD.epsilon([release]) == pytest.approx(1.828, abs=6e-4)
    assert PLD.epsilon([release]) <= PLD.running([release]) <= 1.06 * PLD.epsilon([release])
    for relation in ("add_or_remove", "replace"):
        same = [Release(1.0, 20.0, 100, relation=relation)]
        assert RDP.epsilon(same) == pytest.approx(2.166, abs=6e-4)
        assert PLD.epsilon(same) == pytest.approx(1.993, abs=6e-4)


SCALES = [
    (0.6, 0.5, 300),
    (1.0, 0.01, 10_000),
    (5.0, 0.01, 1000),
    (100.0, 0.1, 1000),
    (300.0, 0.1, 1000),
    (1000.0, 0.1, 1000),
]


@pytest.mark.parametrize(("z", "rate", "count"), SCALES)
def test_bins_are_fine_for_every_size_of_epsilon(z, rate, count):
    """Epsilons from 0.007 to 200 are nearly those of much finer bins, and the running one is near."""
    import dp_accounting

    losses = dp_accounting.pld.privacy_loss_distribution
    release = gaussian(z, count, rate)
    got, running = PLD.epsilon([release]), PLD.running([release])
    fine = losses.from_gaussian_mechanism(z, sampling_prob=rate, value_discretization_interval=1e-5 * got)
    want = fine.self_compose(count).get_epsilon_for_delta(1e-5)
    assert 0.999 * want <= got <= 1.01 * want  # the library cuts tails: its finest bins are no lower bound
    grid = PLD.epsilon([gaussian(z, int(count * 1.1) + 1, rate)])  # a tenth more rounds
    assert got <= running <= 1.02 * grid


def test_epsilon_of_next_to_nothing_is_next_to_nothing():
    """Noise so large that delta covers everything: bins stop shrinking, and the answer is at most their floor."""
    assert PLD.epsilon([gaussian(1e6, 1, 0.01)]) <= 1e-3
    assert PLD.epsilon([gaussian(1e6, 1, 0.01)]) <= PLD.running([gaussian(1e6, 1, 0.01)]) <= 1e-3


def test_opacus_agrees():
    accountants = pytest.importorskip("opacus.accountants")
    for z, rate, steps in ((1.0, 0.01, 1000), (2.0, 1.0, 50)):
        other = accountants.RDPAccountant()
        other.history = [(z, rate, steps)]
        ours = RDP.epsilon([gaussian(z, steps, rate)])
        assert other.get_epsilon(1e-5) == pytest.approx(ours, rel=5e-3)
    prv = accountants.PRVAccountant()
    prv.history = [(1.0, 0.01, 1000)]
    assert prv.get_epsilon(1e-5) == pytest.approx(PLD.epsilon([gaussian(1.0, 1000, 0.01)]), abs=0.03)


@pytest.mark.parametrize("accountant", [PLD, RDP])
@pytest.mark.parametrize(
    ("rate", "target"), [(None, 0.3), (None, 8.0), pytest.param(0.02, 1.5, marks=pytest.mark.slow)]
)
def test_calibrate_inverts_epsilon(accountant, rate, target):
    scale = accountant.calibrate(lambda s: [gaussian(3 * s, 40, rate), gaussian(s, 10, rate)], target)
    got = accountant.epsilon([gaussian(3 * scale, 40, rate), gaussian(scale, 10, rate)])
    assert target * (1 - 1e-4) <= got <= target


@settings(max_examples=12, deadline=None)
@given(st.floats(0.8, 20), st.floats(1.01, 3), st.integers(1, 500), st.floats(0.01, 0.5))
def test_more_noise_fewer_rounds_and_rarer_samples_cost_less(z, more, count, rate):
    for accountant, q in ((PLD, None), (RDP, None), (RDP, rate)):
        base = accountant.epsilon([gaussian(z, count, q)])
        assert accountant.epsilon([gaussian(z * more, count, q)]) <= base
        assert accountant.epsilon([gaussian(z, count + 1, q)]) >= base
        assert accountant.epsilon([gaussian(z, count, (q or 1.0) / more)]) <= base + 1e-9


def test_fixed_cohorts_are_refused_or_said():
    fixed = Release(1.0, 1.0, 100, sampling="fixed", cohort=10, population=1000)
    with pytest.raises(InputError, match="fixed_as_poisson"):
        PLD.epsilon([fixed])
    said = Accountant("rdp", fixed_as_poisson=True)
    assert said.epsilon([fixed]) == RDP.epsilon([gaussian(1.0, 100, 0.01)])
    assert "not what ran" in said.note([fixed])
    assert "client-level" in said.note([fixed])
    assert RDP.epsilon([fixed.unamplified()]) > said.epsilon([fixed])


def test_what_has_no_epsilon_is_an_error(monkeypatch):
    for bad in ({"delta": 0.0}, {"delta": 1.0}, {"kind": "zcdp"}):
        with pytest.raises(InputError):
            Accountant(**bad)
    for bad in ((math.inf, 1.0), (1.0, 0.0), (0.0, 1.0), (1.0, math.nan)):
        with pytest.raises(InputError):
            Release(*bad)
    with pytest.raises(InputError, match="one kind of unit"):
        RDP.epsilon([Release(1, 1), Release(1, 1, unit="sample")])
    with pytest.raises(InputError, match="rdp"):
        PLD.epsilon([Release(1, 1, mechanism="discrete_gaussian")])
    for target in (0.0, -1.0, math.inf):
        with pytest.raises(InputError, match="target_epsilon"):
            RDP.calibrate(lambda s: [gaussian(s)], target)
    with pytest.raises(InputError, match="reachable"):
        PLD.calibrate(lambda s: [gaussian(1.0)], 0.1)
    with pytest.raises(InputError, match="need noise"):
        PLD.calibrate(lambda s: [], 0.1)
    monkeypatch.setitem(__import__("sys").modules, "dp_accounting", None)
    with pytest.raises(InputError, match=r"fedsim-ray\[dp\]"):
        PLD.epsilon([gaussian(7.77)])


def test_merged_and_empty():
    assert PLD.epsilon([]) == 0.0
    assert merged([gaussian(1, 2), gaussian(2), gaussian(1, 3)]) == (gaussian(1, 5), gaussian(2))


def test_spiderboost_has_the_papers_square_root():
    one = SpiderBoost(2.0, 3.0, 1000, 400, 16, 1000, 1000)
    noise = one.noise(1.0, PLD)
    level = math.sqrt(math.log(1e5))
    assert noise.anchor == pytest.approx(level * 2 * 20 / (4 * 1000))
    assert noise.difference == pytest.approx(level * 3 * 20 / 1000)
    assert noise.cap / (2 * 2.0) == pytest.approx(noise.difference / 3.0)
    assert noise.releases[1].multiplier == pytest.approx(noise.cap * 1000 / (2 * 2.0))
    assert noise.epsilon > 0
