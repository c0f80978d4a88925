"""Adaptive clipping, banded noise and the discrete sum as runs: against numpy, noise measured, bytes counted."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from fedsim import Local
from fedsim.algorithms.dp_sgd import PrivateSGD
from fedsim.algorithms.fedavg import FedAvg
from fedsim.algorithms.scaffold import Scaffold
from fedsim.channel.channel import Channel
from fedsim.channel.diana import Diana
from fedsim.channel.noise import Addressed
from fedsim.channel.onion import Layer
from fedsim.channel.randk import RandK
from fedsim.errors import InputError
from fedsim.privacy.adaptive import AdaptiveNoise, AdaptiveState
from fedsim.privacy.banded import BandedNoise
from fedsim.privacy.central import CentralNoise
from fedsim.privacy.clipping import value_multiplier
from fedsim.privacy.discrete import DiscreteNoise, ModularSum, packed, unpacked
from fedsim.privacy.local import LocalNoise
from fedsim.privacy.matrix_mechanism import banded_factor
from fedsim.schedule import Bernoulli, Cyclic
from fedsim.traits.releases import Release
from fedsim.types import Round
from tests.privacy.test_mechanisms import dense, prefix_errors
from tests.privacy.test_runs import MANY, SIZES, D, clipped, flat, problem, run, sample_gradients

N, BASE = len(SIZES), FedAvg(lr=0.05)


def updates(x: np.ndarray) -> np.ndarray:
    """[n, d] what the clients send after one full step."""
    data = problem()
    g = sample_gradients(data, x)
    return np.array([-0.05 * g[data.train.group == i].mean(0) for i in range(N)])


@pytest.mark.parametrize("batching", ["auto", "loop"])
def test_adaptive_clipping_without_noise_is_the_numpy_loop(batching: str) -> None:
    rule = AdaptiveNoise(BASE, 0.1, 0.0, N, quantile=0.7, rate=0.5)
    found = run(rule, rounds=8, batching=batching)
    x, c, seen = np.linspace(-1, 1, D), 0.1, set()
    for got in found.trajectory:
        np.testing.assert_allclose(got, x, rtol=0, atol=1e-12)
        last, u = c, updates(x)
        fraction = float(np.mean(np.linalg.norm(u, axis=1) <= c))
        seen.add(fraction)
        x, c = x + clipped(u, c).mean(0), c * math.exp(-0.5 * (fraction - 0.7))
    assert float(found.server.clip) == pytest.approx(last, rel=1e-12)
    assert len(seen) > 1, "some rounds have more norms within the bound than others"


def test_adaptive_noise_is_split_between_updates_and_bits() -> None:
    """Sums of 40 expected clients: sigma_b = 2, the bits' multiplier 4, z = 1.5 for both together."""
    z, expected, c = 1.5, 40, 0.3
    rule = AdaptiveNoise(BASE, c, z, expected)
    z_delta = (z**-2 - (2 * 2.0) ** -2) ** -0.5
    assert value_multiplier(z, 2.0) == pytest.approx(z_delta)
    moved = run(rule, flat(), rounds=1).server.base.x.numpy()
    assert np.std(moved) == pytest.approx(z_delta * c / expected, rel=0.01)
    logs = []
    state = AdaptiveState(BASE.init_server(torch.zeros(1)), torch.tensor(c, dtype=torch.float64))
    received = {"update": torch.zeros(1, dtype=torch.float64), "within": torch.tensor(0.25, dtype=torch.float64)}
    for seed in range(1500):
        noise = Addressed(seed, "server", 0, torch.zeros((), dtype=torch.int64))
        logs.append(
            math.log(float(rule.server(state, received, Round(0, tuple(range(expected)), 40, noise=noise)).clip) / c)
        )
    fractions = 0.5 - np.array(logs) / 0.2  # 30 of 40 within
    assert np.mean(fractions) == pytest.approx(0.75, abs=4 * 0.05 / math.sqrt(1500))
    assert np.std(fractions) == pytest.approx(1 / 20, rel=4 / math.sqrt(2 * 1500))
    (release,) = rule.releases(Round(0, (), 40))
    assert release == Release(1.0, z), "no extra budget"


def test_noise_as_of_a_larger_cohort() -> None:
    """pfl-research's CIFAR-10: the noise of 1,000 clients in a mean over 4, the epsilon of 1,000 among a million."""
    z, c = 1.5, 0.3
    rule = CentralNoise(BASE, c, z, N, 1000, 1_000_000)
    moved = run(rule, flat(), rounds=1).server.x.numpy()
    assert np.std(moved) == pytest.approx(z * c / 1000, rel=0.01)
    (release,) = rule.releases(Round(0, (), N))
    assert (release.multiplier, release.sampling, release.rate) == (pytest.approx(z), "poisson", 1e-3)
    np.testing.assert_allclose(run(CentralNoise(BASE, c, 0.0, N, 1000, 10**6)).trajectory[1],
                               np.linspace(-1, 1, D) + clipped(updates(np.linspace(-1, 1, D)), c).mean(0))  # fmt: skip


def white(rounds: int, d: int) -> np.ndarray:
    """[rounds, d] what the server draws in a run of seed 0."""
    lone = torch.zeros((), dtype=torch.int64)
    return np.stack(
        [Addressed(0, "server", t, lone).normal(torch.zeros(d, dtype=torch.float64)).numpy() for t in range(rounds)]
    )


def test_banded_noise_is_the_dense_solution() -> None:
    rounds, z, c = 12, 1.5, 0.1
    factor = banded_factor(rounds, 4)
    rule = BandedNoise(BASE, c, z, 1, factor, 4)
    schedule = Cyclic(cohort=1)
    found = run(rule, rounds=rounds, schedule=schedule)
    noise = np.linalg.solve(dense(factor), white(rounds, D)) * z * c
    x = np.linspace(-1, 1, D)
    for t, got in enumerate(found.trajectory):
        np.testing.assert_allclose(got, x, rtol=0, atol=1e-10)
        if t < rounds:
            (client,) = schedule.clients(t, N, 0)
            x = x + clipped(updates(x), c)[client] + noise[t]
    assert found.server.past.shape == (3, D)


def test_banded_noise_cancels_in_the_sum() -> None:
    rounds, z, c = 16, 1.0, 0.5
    factor = banded_factor(rounds, 4)
    moved = run(BandedNoise(BASE, c, z, 1, factor, 4), flat(MANY), rounds=rounds, schedule=Cyclic(cohort=1)).server.x
    assert np.std(moved.numpy()) == pytest.approx(z * c * prefix_errors(factor)[-1], rel=0.01)
    assert prefix_errors(factor)[-1] < 0.75 * math.sqrt(rounds), "independent noise has the root of the rounds"


def test_a_clients_rounds_are_as_many_releases_as_stretches() -> None:
    rule = BandedNoise(BASE, 0.5, 2.0, 1, banded_factor(10, 4), 4)
    each = [rule.releases(Round(t, (), N)) for t in range(10)]
    assert [t for t, some in enumerate(each) if some] == [0, 4, 8]
    mu = math.sqrt(sum(r.multiplier**-2 for some in each for r in some))
    assert mu == pytest.approx(math.sqrt(math.ceil(10 / 4)) / 2.0)


DISCRETE = {"aggregate": ModularSum()}


@pytest.mark.parametrize("batching", ["auto", "loop"])
def test_the_discrete_sum_is_the_sum_of_clipped_messages_to_rounding(batching: str) -> None:
    rule = DiscreteNoise(BASE, 0.1, 0.0, N, D, bits=20, deviations=8.0)
    found = run(rule, rounds=6, batching=batching, **DISCRETE)
    grain = rule.rule.grain(D)
    assert 0 < grain < 1e-5
    x = np.linspace(-1, 1, D)
    for got in found.trajectory:
        np.testing.assert_allclose(got, x, rtol=0, atol=grain * math.sqrt(8))
        x = got + clipped(updates(got), 0.1).mean(0)
    assert not np.array_equal(
        found.trajectory[1], found.trajectory[0] + clipped(updates(found.trajectory[0]), 0.1).mean(0)
    )


@pytest.mark.parametrize("bits", [8, 12, 16, 31])
def test_messages_weigh_their_bits_and_unpack_to_what_they_were(bits: int) -> None:
    integers = np.random.default_rng(bits).integers(-(2 ** (bits - 1)), 2 ** (bits - 1), 64)
    data = packed(integers, bits)
    assert len(data) == 2 + bits * 64 // 8
    got = unpacked(data.tobytes())
    assert ((got - integers) % 2**bits == 0).all()
    found = run(DiscreteNoise(BASE, 0.1, 0.0, N, D, bits=bits), rounds=1, **DISCRETE)
    field = 1 + 1 + len("update") + 1 + 1 + 4  # count, name, dtype, dimensions, one of them
    assert found.metrics[1]["comm/uplink_bytes"] == N * (field + 2 + bits * 8 // 8), "6 numbers, padded to 8"


def test_a_sum_that_does_not_fit_wraps() -> None:
    """Half a deviation of room: what comes out is wrong by a multiple of 2^bits steps, and by nothing else."""
    x = np.linspace(-1, 1, D)
    rule = DiscreteNoise(BASE, 0.5, 0.0, N, D, bits=10, deviations=0.3)
    got = run(rule, rounds=1, **DISCRETE).trajectory[1] - x
    error = got - clipped(updates(x), 0.5).mean(0)
    assert np.abs(error).max() > 0.05
    wide = run(DiscreteNoise(BASE, 0.5, 0.0, N, D, bits=24, deviations=30.0), rounds=1, **DISCRETE).trajectory[1] - x
    np.testing.assert_allclose(wide, clipped(updates(x), 0.5).mean(0), rtol=0, atol=1e-4)


def test_discrete_noise_has_the_promised_size_and_falls_with_those_who_miss() -> None:
    z, c, expected = 1.5, 0.3, 4
    d = 2**15
    for schedule, arrived in ((Bernoulli(rate=1.0), 4), (Cyclic(cohort=2), 2)):
        rule = DiscreteNoise(BASE, c, z, expected, d, bits=20, deviations=6.0)
        moved = run(rule, flat(d), rounds=1, schedule=schedule, **DISCRETE).server.x.numpy() * expected
        assert np.std(moved) == pytest.approx(z * c * math.sqrt(arrived / expected), rel=4 / math.sqrt(2 * d))
        (release,) = rule.client_releases(Round(0, tuple(range(arrived)), N), None)  # type: ignore[arg-type]
        assert release.std == pytest.approx(np.std(moved), rel=0.03)
        assert release.multiplier <= z * math.sqrt(arrived / expected)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: run(DiscreteNoise(BASE, 0.1, 0.0, N, D), rounds=1), "ModularSum|sum of integers"),
        (lambda: run(DiscreteNoise(Scaffold(lr=0.1), 0.1, 0.0, N, D), rounds=1, **DISCRETE), "not one vector"),
        (lambda: run(BandedNoise(Scaffold(lr=0.1), 0.1, 1.0, N, banded_factor(2, 1), 1), rounds=1), "not one vector"),
        (lambda: run(BandedNoise(BASE, 0.1, 1.0, N, banded_factor(2, 1), 1), rounds=3), "rounds must be at most 2"),
        (lambda: AdaptiveNoise(PrivateSGD(lr=0.1), 0.1, 1.0, N), "use privacy=own"),
    ],
)
def test_what_does_not_go_together_is_refused(make: Any, says: str) -> None:
    with pytest.raises(Exception, match=says) as error:  # a client's failure is wrapped by the engine
        make()
    assert isinstance(error.value, InputError) or "InputError" in str(error.value)


def soteria(ratio: float) -> Channel:
    return Channel((Layer("diana", Diana(alpha=0.5)), Layer("randk", RandK(ratio=ratio, unbiased=True))))


@pytest.mark.parametrize("rule", [LocalNoise(BASE, 0.1, 1.0), PrivateSGD(lr=0.05, noise_multiplier=1.0)])
def test_soteriafl_is_noise_of_the_clients_before_shifted_compression(rule: Any) -> None:
    """A lossless compressor changes nothing but rounding: noise is in the message before the codec; a real one does."""
    local = Local(steps=1, batch_size=3, sampling="poisson")
    plain = run(rule, rounds=5, local=local)
    lossless = run(rule, rounds=5, local=local, channel=soteria(1.0))
    np.testing.assert_allclose(lossless.trajectory, plain.trajectory, rtol=0, atol=1e-12)
    half = run(rule, rounds=5, local=local, channel=soteria(0.5))
    assert half.status == "finished"
    assert not np.allclose(half.trajectory, plain.trajectory)
    assert half.metrics[1]["comm/uplink_bytes"] < plain.metrics[1]["comm/uplink_bytes"]
