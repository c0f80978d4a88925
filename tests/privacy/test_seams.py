"""Mechanisms around methods that send public numbers, and rounds in which nobody came."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fedsim import Local
from fedsim.algorithms.dp_sgd import PrivateSGD
from fedsim.algorithms.fedavg import FedAvg
from fedsim.algorithms.fedcm import FedCM
from fedsim.algorithms.fednova import FedNova
from fedsim.algorithms.mofedsam import MoFedSAM
from fedsim.algorithms.relaxed import Relaxed
from fedsim.channel.noise import Addressed
from fedsim.errors import InputError
from fedsim.pool.rehearsal import messages
from fedsim.privacy.accountant import Accountant
from fedsim.privacy.adaptive import AdaptiveNoise
from fedsim.privacy.banded import BandedNoise
from fedsim.privacy.central import CentralNoise
from fedsim.privacy.config import AdaptiveGaussian, BandedMatrix, CentralGaussian, DiscreteGaussian, LocalGaussian, Own
from fedsim.privacy.discrete import DiscreteNoise, ModularSum
from fedsim.privacy.local import LocalNoise
from fedsim.privacy.matrix_mechanism import banded_factor
from fedsim.record.checkpoint import Checkpointing
from fedsim.schedule import All, Bernoulli, Uniform
from fedsim.traits.declared import traits_of
from fedsim.traits.releases import Release
from tests.laws.test_catalogue import SERVERS, algorithm
from tests.privacy.test_runs import SIZES, D, flat, run

pytest.importorskip("dp_accounting")

N = len(SIZES)
EPOCHS = Local(epochs=2, batch_size=2)  # 4, 6, 10 and 4 steps
STEPS = ((4, 2), (6, 1), (10, 1))
PUBLIC = {
    "fedcm": FedCM(lr=0.05),
    "mofedsam": MoFedSAM(lr=0.05),
    "fednova": FedNova(lr=0.05),
    "fednova momentum": FedNova(lr=0.05, momentum=0.5),
    "fednova mu": FedNova(lr=0.05, momentum=0.5, mu=0.1),
    "relaxed": Relaxed(FedCM(lr=0.05), beta=0.1),
}


def sent(rule: Any, rows: int) -> dict[str, Tensor]:
    """One client's message after one minibatch of two samples, which are those from ``rows`` on."""
    from tests.privacy.test_sensitivity import prepared

    setup = prepared()
    data = np.random.default_rng(rows).normal(size=(len(setup.train.y), setup.train.x.shape[1] + 1))
    setup = replace(setup, algorithm=rule, train=replace(setup.train, x=data[:, :-1], y=data[:, -1]))
    x0 = torch.linspace(-1, 1, setup.train.x.shape[1], dtype=torch.float64)
    shared = {"head.weight": x0.view(1, -1)} if traits_of(rule).shares == "parameters" else x0
    kept = shared if traits_of(rule).keeps == "parameters" else x0
    return messages(setup, 0, rule.init_client(kept), shared, 2)


def sends_of_data(name: str) -> bool:
    """Whether a method can be tried on least squares, and all its clients send what depends on their data.

    Methods of classes, or whose clients have models of their own, need another problem; in rounds of DIFF2-BVR's walk
    one client works, and the others send zeros.
    """
    said = traits_of(algorithm(name))
    whole = said.shares in ("model", "parameters") and not said.classes and "own" not in said.hooks
    return whole and name != "diff2_bvr"


@pytest.mark.parametrize("name", list(filter(sends_of_data, SERVERS)))
def test_numbers_that_depend_on_no_data_are_declared_public_and_no_others(name: str) -> None:
    rule = algorithm(name)
    one, other = sent(rule, 1), sent(rule, 2)
    public = set(traits_of(rule).public)
    still = {field for field, value in one.items() if torch.equal(value, other[field])}
    assert {field for field in still if one[field].dim() == 0} == public
    assert public <= still
    if public:
        from fedsim.types import Round

        assert {field: float(one[field]) for field in public} == pytest.approx(rule.public_of(1, Round(0, (0,), 1)))


@pytest.mark.parametrize("name", PUBLIC)
@pytest.mark.parametrize("k", [1, 2, 5])
def test_what_public_fields_hold_follows_from_the_steps(name: str, k: int) -> None:
    """With equal steps, what a mechanism takes for all clients' mean is what the cohort sent."""
    local = Local(steps=k, batch_size=2)
    sent = run(CentralNoise(PUBLIC[name], 0.1, 0.0, N), rounds=3, local=local)
    told = run(CentralNoise(PUBLIC[name], 0.1, 0.0, N, steps=((k, N),)), rounds=3, local=local)
    np.testing.assert_allclose(told.trajectory, sent.trajectory, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", PUBLIC)
@pytest.mark.parametrize("mechanism", ["central", "adaptive", "banded", "local", "discrete"])
def test_a_mechanism_that_clips_and_adds_nothing_is_the_method(mechanism: str, name: str) -> None:
    """Whatever the steps are; public fields are of the cohort's clients where everybody knows who came."""
    base, wide = PUBLIC[name], 1e6
    rule = {
        "central": CentralNoise(base, wide, 0.0, N),
        "adaptive": AdaptiveNoise(base, wide, 0.0, N),
        "banded": BandedNoise(base, wide, 0.0, N, banded_factor(3, 1), 1),
        "local": LocalNoise(base, wide, 0.0),
        "discrete": DiscreteNoise(base, 10.0, 0.0, N, D, bits=40),
    }[mechanism]
    options: dict[str, Any] = {"aggregate": ModularSum()} if mechanism == "discrete" else {}
    plain = run(base, rounds=3, local=EPOCHS).trajectory
    grain = 1e-6 if mechanism == "discrete" else 1e-12
    np.testing.assert_allclose(run(rule, rounds=3, local=EPOCHS, **options).trajectory, plain, rtol=0, atol=grain)


def test_step_counts_are_not_clipped_with_what_they_divide() -> None:
    """Seen: with C = 0.5 the mean of K = 4..10 became a fraction of 1, and the direction many times too long."""
    found = run(CentralNoise(FedCM(lr=0.05), 0.1, 0.0, N), rounds=1, local=EPOCHS)
    moved = found.trajectory[1] - found.trajectory[0]
    np.testing.assert_allclose(found.server.g.numpy(), -moved / (6 * 0.05), rtol=1e-12, atol=0)
    assert np.linalg.norm(moved) > 0.03, "with K in the norm it would be below 0.1 |u| / 6, here 0.015"


def test_where_who_came_is_hidden_public_numbers_are_those_of_all_clients() -> None:
    privacy = CentralGaussian(1e-5, noise_multiplier=1.0, clip=0.1)
    for seed in range(6):
        found = run(FedCM(lr=0.05), rounds=1, local=EPOCHS, schedule=Bernoulli(0.4), seed=seed, privacy=privacy)
        moved = found.trajectory[1] - found.trajectory[0]
        np.testing.assert_allclose(found.server.g.numpy(), -moved / (6 * 0.05), rtol=1e-12, atol=0)
        assert "public, neither clipped nor noisy: the mean steps over all clients" in found.summary["privacy/promise"]


def test_public_fields_of_hidden_cohorts_must_say_what_they_hold() -> None:
    class Untold(FedAvg):
        traits = FedAvg.traits.but(public=("steps",))

    with pytest.raises(InputError, match="must have public_of"):
        run(Untold(lr=0.05), schedule=Bernoulli(0.4), privacy=CentralGaussian(1e-5, noise_multiplier=1.0))


SPARSE = Bernoulli(rate=0.2)  # of four clients: two rounds in five are empty


def emptied(seed: int, rounds: int) -> list[int]:
    """Rounds in which nobody came."""
    return [t for t in range(rounds) if not Bernoulli(0.2, "keep").clients(t, N, seed)]


def drawn(index: int, d: int) -> np.ndarray:
    found: np.ndarray = Addressed(0, "server", index, torch.zeros((), dtype=torch.int64)).normal(torch.zeros(d)).numpy()
    return found


PRIVATE: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "central": (FedAvg(lr=0.05), CentralGaussian(1e-5, noise_multiplier=1.5, clip=0.1), {}),
    "central fedcm": (FedCM(lr=0.05), CentralGaussian(1e-5, noise_multiplier=1.5, clip=0.1), {}),
    "central relaxed": (Relaxed(FedCM(lr=0.05)), CentralGaussian(1e-5, noise_multiplier=1.5, clip=0.1), {}),
    "adaptive": (FedAvg(lr=0.05), AdaptiveGaussian(1e-5, noise_multiplier=1.5, bits_std=2.0), {}),
    "banded": (FedAvg(lr=0.05), BandedMatrix(1e-5, noise_multiplier=1.5, clip=0.1), {}),
    "local": (FedCM(lr=0.05), LocalGaussian(1e-5, noise_multiplier=1.5, clip=0.1), {}),
    "discrete": (FedNova(lr=0.05), DiscreteGaussian(1e-5, noise_multiplier=1.5, clip=0.1), {"aggregate": ModularSum()}),
    "dp_sgd": (
        PrivateSGD(lr=0.05),
        Own(1e-5, noise_multiplier=1.5),
        {"local": Local(steps=2, batch_size=2, sampling="poisson")},
    ),
}


@pytest.mark.parametrize("batching", ["auto", "loop"])
@pytest.mark.parametrize("name", PRIVATE)
def test_in_an_empty_round_only_the_servers_noise_moves_anything(name: str, batching: str) -> None:
    rounds, (rule, privacy, options) = 8, PRIVATE[name]
    empty = emptied(0, rounds)
    assert 0 < len(empty) < rounds
    settings: dict[str, Any] = {"schedule": SPARSE, "privacy": privacy, "batching": batching} | options
    found = run(rule, rounds=rounds, **settings)
    assert found.status == "finished"
    assert found.trajectory is not None
    moved = np.diff(found.trajectory, axis=0)
    noisy_server = name.split()[0] in ("central", "adaptive", "banded")
    for t in range(rounds):
        record = found.metrics[t + 1]
        assert ("train/loss" in record) == (t not in empty)
        assert (record["comm/uplink_bytes"] == 0) == (record["comm/downlink_bytes"] == 0) == (t in empty)
        if t in empty:
            assert np.any(moved[t] != 0) == noisy_server
        if t in empty and name.startswith("central"):
            np.testing.assert_allclose(moved[t], 1.5 * 0.1 * drawn(t, D), rtol=1e-6, atol=0)
    if name.startswith("central"):
        want = Accountant("pld", 1e-5).epsilon([Release(1.0, 1.5, rounds, sampling="poisson", rate=0.2)])
        assert found.summary["privacy/epsilon"] == pytest.approx(want)


def test_the_noise_of_an_empty_round_has_the_promised_size() -> None:
    privacy = CentralGaussian(1e-5, noise_multiplier=1.5, clip=0.1)
    seed = next(s for s in range(100) if emptied(s, 1))
    found = run(FedAvg(lr=0.05), flat(), rounds=1, schedule=SPARSE, privacy=privacy, seed=seed)
    assert np.std(found.server.x.numpy()) == pytest.approx(1.5 * 0.1, rel=0.01)


def test_a_run_goes_on_over_empty_rounds_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    privacy = AdaptiveGaussian(1e-5, noise_multiplier=1.5, bits_std=2.0)
    empty = emptied(0, 8)
    stop = empty[1]  # the next round after the stop is empty
    options: dict[str, Any] = {"schedule": SPARSE, "privacy": privacy, "run_dir": tmp_path / "run"}
    options |= {"checkpoint": Checkpointing(every=1)}
    whole = run(FedCM(lr=0.05), rounds=8, **options | {"run_dir": tmp_path / "whole"})
    run(FedCM(lr=0.05), rounds=stop, **options)
    rest = run(FedCM(lr=0.05), rounds=8, resume=True, **options)
    assert rest.summary["digest"] == whole.summary["digest"]
    assert rest.summary["privacy/epsilon"] == whole.summary["privacy/epsilon"]
    assert [r.get("train/loss") for r in rest.metrics] == [r.get("train/loss") for r in whole.metrics]


def test_without_privacy_an_empty_round_is_drawn_again_or_leaves_all_as_it_is() -> None:
    empty = emptied(0, 8)
    again = run(FedAvg(lr=0.05), rounds=8, schedule=SPARSE)
    assert all("train/loss" in record for record in again.metrics[1:])
    kept = run(FedAvg(lr=0.05), rounds=8, schedule=replace(SPARSE, empty="keep"))
    assert [t for t in range(8) if "train/loss" not in kept.metrics[t + 1]] == empty
    assert kept.trajectory is not None
    assert [t for t in range(8) if np.array_equal(kept.trajectory[t], kept.trajectory[t + 1])] == empty


@pytest.mark.parametrize("schedule", [Bernoulli(0.3), Uniform(2)])
def test_public_numbers_of_known_cohorts_are_the_cohorts_own(schedule: Any) -> None:
    """Without a promise nothing is hidden: the cohort's mean, as the method has it."""
    plain = run(FedCM(lr=0.05), rounds=3, schedule=schedule, local=EPOCHS, seed=1)
    rule = CentralNoise(FedCM(lr=0.05), 1e6, 0.0, schedule.expected(N))
    found = run(rule, rounds=3, schedule=schedule, local=EPOCHS, seed=1)
    if isinstance(schedule, Uniform):
        np.testing.assert_allclose(found.trajectory, plain.trajectory, rtol=0, atol=1e-12)
    else:
        assert found.status == "finished"


def test_cohorts_of_a_users_own_rule_earn_no_amplification() -> None:
    """A class built on Uniform or Bernoulli may bring the same clients in every round."""

    class Fixed(Uniform):
        def clients(self, index: int, population: int, seed: int) -> tuple[int, ...]:
            return (0, 1)

    promise = CentralGaussian(1e-5, noise_multiplier=1.0, fixed_as_poisson=True)
    found = run(FedAvg(lr=0.05), schedule=Fixed(2), privacy=promise).summary["privacy/epsilon"]
    assert found == run(FedAvg(lr=0.05), schedule=All(), privacy=promise).summary["privacy/epsilon"]


def test_public_fields_must_say_what_they_hold_in_every_schedule() -> None:
    class Untold(FedAvg):
        traits = FedAvg.traits.but(public=("update",))

    with pytest.raises(InputError, match="must have public_of"):
        run(Untold(lr=0.05), schedule=All(), privacy=CentralGaussian(1e-5, noise_multiplier=1.0))
