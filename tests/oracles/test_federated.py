"""Every federated method against its numpy loop, the identities between methods, and where they converge to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsim import Engine, Evaluate, Local, Mean, Result, simulate
from fedsim.algorithms.fedavg import FedAvg
from fedsim.algorithms.fedcm import FedCM
from fedsim.algorithms.feddyn import FedDyn
from fedsim.algorithms.fedgamma import FedGAMMA
from fedsim.algorithms.fedinit import FedInit
from fedsim.algorithms.fednova import FedNova
from fedsim.algorithms.fedopt import FedAdagrad, FedAdam, FedYogi
from fedsim.algorithms.fedprox import FedProx
from fedsim.algorithms.fedsam import FedSAM
from fedsim.algorithms.fedsmoo import FedSMOO
from fedsim.algorithms.fedspeed import FedSpeed
from fedsim.algorithms.mime_lite import MimeLite
from fedsim.algorithms.mofedsam import MoFedSAM
from fedsim.algorithms.relaxed import Relaxed
from fedsim.algorithms.scaffold import Scaffold
from fedsim.data import Dataset, Split
from fedsim.errors import InputError
from fedsim.ground.rng import numpy_stream
from fedsim.models import linear_zero
from fedsim.partition import Natural
from fedsim.schedule import All, Cohorts
from fedsim.traits.declared import traits_of
from tests.conftest import Quadratics
from tests.oracles import loops

TIGHT = 1e-10  # float64; amplified by a few dozen steps and, for the adaptive methods, by a division by sqrt(v)
EVERYBODY = [[0, 1, 2, 3, 4]]
COHORTS = [[0, 1, 2], [1, 4], [3], [0, 2, 3, 4], [0, 1, 2, 3, 4], [2], [0, 4], [1, 2, 3]]
SGD = {"lr": 0.2, "lr_decay": 0.9}
NP = {"lr": 0.2, "decay": 0.9}
SOLVER = {"momentum": 0.7, "clip": 0.9, "weight_decay": 0.1}
OPT = {"server_lr": 0.3, "beta1": 0.8, "tau": 0.05, "v0": 0.01}

METHODS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "fedavg": (FedAvg(**SGD), loops.fedprox, {}),
    "fedavg_wd_clip": (
        FedAvg(**SGD, weight_decay=0.05, clip=1.5, server_lr=0.8),
        loops.fedprox,
        {"wd": 0.05, "clip": 1.5, "server_lr": 0.8},
    ),
    "fedavg_momentum": (
        FedAvg(**SGD, momentum=0.6, weight_decay=0.05, clip=1.5),
        loops.fedprox,
        {"momentum": 0.6, "wd": 0.05, "clip": 1.5},
    ),
    "fedprox_momentum": (FedProx(**SGD, mu=0.4, momentum=0.6), loops.fedprox, {"mu": 0.4, "momentum": 0.6}),
    "fedadam_momentum": (
        FedAdam(**SGD, **OPT, beta2=0.9, momentum=0.6),
        loops.fedopt,
        {**OPT, "beta2": 0.9, "variant": "adam", "momentum": 0.6},
    ),
    "fedprox": (FedProx(**SGD, mu=0.4, server_lr=0.7), loops.fedprox, {"mu": 0.4, "server_lr": 0.7}),
    "fedprox_wd_clip": (
        FedProx(**SGD, mu=0.4, weight_decay=0.05, clip=1.5),
        loops.fedprox,
        {"mu": 0.4, "wd": 0.05, "clip": 1.5},
    ),
    "relaxed_fedavg": (
        Relaxed(FedAvg(**SGD, server_lr=0.7), beta=0.3),
        loops.relaxed,
        {"base": "fedavg", "beta": 0.3, "server_lr": 0.7},
    ),
    "relaxed_scaffold": (
        Relaxed(Scaffold(**SGD, server_lr=0.6), beta=0.3),
        loops.relaxed,
        {"base": "scaffold", "beta": 0.3, "server_lr": 0.6},
    ),
    "relaxed_feddyn": (
        Relaxed(FedDyn(**SGD, alpha=0.5), beta=0.3),
        loops.relaxed,
        {"base": "feddyn", "beta": 0.3, "alpha": 0.5},
    ),
    "fedsam": (FedSAM(**SGD, rho=0.3, server_lr=0.9), loops.fedprox, {"rho": 0.3, "server_lr": 0.9}),
    "fedinit": (FedInit(**SGD, beta=0.3), loops.fedinit, {"beta": 0.3}),
    "scaffold_1": (Scaffold(**SGD, option=1, server_lr=0.6), loops.scaffold, {"option": 1, "server_lr": 0.6}),
    "scaffold_2": (Scaffold(**SGD, option=2, server_lr=0.6), loops.scaffold, {"option": 2, "server_lr": 0.6}),
    "scaffold_wd_clip": (
        Scaffold(**SGD, weight_decay=0.05, clip=1.5),
        loops.scaffold,
        {"wd": 0.05, "clip": 1.5},
    ),
    "fedgamma": (FedGAMMA(**SGD, rho=0.3, server_lr=0.6), loops.scaffold, {"rho": 0.3, "server_lr": 0.6}),
    "feddyn": (FedDyn(**SGD, alpha=0.5), loops.feddyn, {"alpha": 0.5}),
    "fedsmoo": (FedSMOO(**SGD, alpha=0.5, rho=0.3), loops.feddyn, {"alpha": 0.5, "rho": 0.3}),
    "fedcm": (FedCM(**SGD, alpha=0.3, server_lr=0.7), loops.fedcm, {"alpha": 0.3, "server_lr": 0.7}),
    "mofedsam": (MoFedSAM(**SGD, rho=0.3, alpha=0.3), loops.fedcm, {"rho": 0.3, "alpha": 0.3}),
    "mime_lite": (MimeLite(**SGD, beta=0.6), loops.mime_lite, {"beta": 0.6}),
    "mime_lite_wd_clip": (
        MimeLite(**SGD, beta=0.6, weight_decay=0.05, clip=1.5),
        loops.mime_lite,
        {"beta": 0.6, "wd": 0.05, "clip": 1.5},
    ),
    "fednova": (FedNova(**SGD), loops.fednova, {}),
    "fednova_momentum": (FedNova(**SGD, momentum=0.7), loops.fednova, {"momentum": 0.7}),
    "fednova_prox": (FedNova(**SGD, mu=0.6), loops.fednova, {"mu": 0.6}),
    "fednova_both": (FedNova(**SGD, momentum=0.7, mu=0.6), loops.fednova, {"momentum": 0.7, "mu": 0.6}),
    "fedadam": (FedAdam(**SGD, **OPT, beta2=0.9), loops.fedopt, {**OPT, "beta2": 0.9, "variant": "adam"}),
    "fedyogi": (FedYogi(**SGD, **OPT, beta2=0.9), loops.fedopt, {**OPT, "beta2": 0.9, "variant": "yogi"}),
    "fedadagrad": (FedAdagrad(**SGD, **OPT), loops.fedopt, {**OPT, "beta2": None, "variant": "adagrad"}),
} | {
    f"fedspeed_{server}_{'fixed' if normalize else 'raw'}": (
        FedSpeed(**SGD, lam=3.0, rho=0.2, alpha=0.7, normalize=normalize, correction=server),
        loops.fedspeed,
        {"lam": 3.0, "rho": 0.2, "alpha": 0.7, "normalize": normalize, "server": server},
    )
    for server in ("all", "active")
    for normalize in (True, False)
}


class Unequal:
    """Client i holds k[i] copies of one row: k[i] local steps of batch size 1, every one along the same gradient."""

    n, d, k = 5, 4, (1, 4, 2, 7, 3)

    def __init__(self) -> None:
        random = np.random.default_rng(3)
        self.a, self.b = random.normal(size=(self.n, self.d)) / 4, random.normal(size=self.n)

    def grad(self, i: int, x: np.ndarray) -> np.ndarray:
        return (
            max(self.k) * self.a[i] * (self.a[i] @ x - self.b[i])
        )  # a sample's loss is m/2 (a x - b)^2, m the most rows

    def dataset(self) -> Dataset:
        rows = np.repeat(np.arange(self.n), self.k)
        return Dataset(
            "copies", Split(self.a[rows], self.b[rows], rows), None, "least_squares", 1, x0=loops.start(self)
        )


def run(problem: Any, algorithm: Any, schedule: Any, rounds: int, local: Local, **options: Any) -> Result:
    result = simulate(
        algorithm,
        data=problem.dataset(),
        partition=Natural(),
        model=linear_zero,
        rounds=rounds,
        schedule=schedule,
        local=local,
        aggregate=Mean(weights=options.get("weights", "uniform")),
        engine=Engine(backend="serial", dtype="float64", batching=options.get("batching", "auto")),
        evaluate=Evaluate(every=10**6),
        trajectory=True,
    )
    assert result.status == "finished", result.message
    return result


def trajectory(problem: Any, algorithm: Any, cohorts: Any, folder: Path, steps: int = 3, **options: Any) -> np.ndarray:
    """[rounds + 1, d] of full-batch steps with these cohorts."""
    file = folder / "cohorts.json"
    file.write_text(json.dumps(cohorts))
    local = Local(steps=steps, batch_size="full")
    return run(problem, algorithm, Cohorts(path=str(file)), len(cohorts), local, **options).trajectory


@pytest.mark.parametrize("batching", ["auto", "loop"])
@pytest.mark.parametrize("name", METHODS)
def test_trajectory_equals_numpy_loop(name: str, batching: str, quadratics: Quadratics, tmp_path: Path) -> None:
    """A round of everybody, and then rounds of some."""
    algorithm, loop, keys = METHODS[name]
    cohorts = EVERYBODY + COHORTS
    got = trajectory(quadratics, algorithm, cohorts, tmp_path, batching=batching)
    want = loop(quadratics, cohorts, [3] * quadratics.n, [1] * quadratics.n, **NP, **keys)
    np.testing.assert_allclose(got, want, rtol=TIGHT, atol=TIGHT)
    assert np.ptp(want, axis=0).min() > 1e-2, "nothing moved: the test proves nothing"


@pytest.mark.parametrize("batching", ["auto", "loop"])
@pytest.mark.parametrize("name", METHODS)
def test_unequal_steps_and_sizes_equal_numpy_loop(name: str, batching: str, tmp_path: Path) -> None:
    """Epochs give clients 1 to 7 local steps; weights are by examples where the method allows it."""
    algorithm, loop, keys = METHODS[name]
    problem = Unequal()
    weights = "uniform" if traits_of(algorithm).uniform else "examples"
    file = tmp_path / "cohorts.json"
    file.write_text(json.dumps(COHORTS))
    local = Local(epochs=1, batch_size=1)
    got = run(problem, algorithm, Cohorts(path=str(file)), 8, local, weights=weights, batching=batching).trajectory
    p = [1] * problem.n if weights == "uniform" else problem.k
    want = loop(problem, COHORTS, problem.k, p, **NP, **keys)
    np.testing.assert_allclose(got, want, rtol=TIGHT, atol=TIGHT)


IDENTITIES = {
    "fedspeed_rho0_is_feddyn": (FedSpeed(**SGD, lam=4.0, rho=0.0), FedDyn(**SGD, alpha=0.25)),
    "fedspeed_alpha0_is_feddyn": (FedSpeed(**SGD, lam=4.0, rho=0.5, alpha=0.0), FedDyn(**SGD, alpha=0.25)),
    "fedprox_mu0_is_fedavg": (FedProx(**SGD, mu=0.0), FedAvg(**SGD)),
    "fedsam_rho0_is_fedavg": (FedSAM(**SGD, rho=0.0), FedAvg(**SGD)),
    "fedcm_alpha1_is_fedavg": (FedCM(**SGD, alpha=1.0), FedAvg(**SGD)),
    "mime_lite_beta0_is_fedavg": (MimeLite(**SGD, beta=0.0), FedAvg(**SGD)),
    "fedinit_beta0_is_fedavg": (FedInit(**SGD, beta=0.0), FedAvg(**SGD)),
    "relaxed_beta0_is_the_method": (Relaxed(FedSMOO(**SGD), beta=0.0), FedSMOO(**SGD)),
    "fednova_equal_steps_is_fedavg": (FedNova(**SGD), FedAvg(**SGD)),
    "fednova_with_the_solver": (FedNova(**SGD, **SOLVER), FedAvg(**SGD, **SOLVER)),
    "mofedsam_rho0_is_fedcm": (MoFedSAM(**SGD, rho=0.0, alpha=0.3), FedCM(**SGD, alpha=0.3)),
    "fedgamma_rho0_is_scaffold": (FedGAMMA(**SGD, rho=0.0), Scaffold(**SGD)),
    "fedsmoo_rho0_is_feddyn": (FedSMOO(**SGD, rho=0.0, alpha=0.4), FedDyn(**SGD, alpha=0.4)),
}


@pytest.mark.parametrize("name", IDENTITIES)
def test_identities(name: str, quadratics: Quadratics, tmp_path: Path) -> None:
    """With partial participation and a decaying lr."""
    one, other = (trajectory(quadratics, rule, COHORTS, tmp_path) for rule in IDENTITIES[name])
    np.testing.assert_allclose(one, other, rtol=TIGHT, atol=TIGHT)


@pytest.mark.parametrize("rule", [FedAvg(lr=0.3), Scaffold(lr=0.3), Scaffold(lr=0.3, option=1)], ids=str)
def test_one_step_of_everybody_is_gradient_descent(rule: Any, quadratics: Quadratics, tmp_path: Path) -> None:
    everybody = [list(range(quadratics.n))] * 6
    x = loops.start(quadratics)
    want = [x]
    for _ in everybody:
        x = x - 0.3 * np.mean([quadratics.grad(i, x) for i in range(quadratics.n)], axis=0)
        want.append(x)
    np.testing.assert_allclose(trajectory(quadratics, rule, everybody, tmp_path, steps=1), want, rtol=TIGHT, atol=TIGHT)


def minimiser(problem: Quadratics, ascent: float = 0.0) -> np.ndarray:
    """Of mean_i f_i + ascent/2 ||grad f_i||^2: sum_i (I + ascent H_i) (H_i x - A_i^T b_i) = 0."""
    scale = [np.eye(problem.d) + ascent * problem.hessian(i) for i in range(problem.n)]
    h = sum(scale[i] @ problem.hessian(i) for i in range(problem.n))
    return np.linalg.solve(h, -sum(scale[i] @ problem.grad(i, np.zeros(problem.d)) for i in range(problem.n)))


EXACT = [
    Scaffold(lr=0.3),
    Scaffold(lr=0.3, option=1),
    FedDyn(lr=0.3, alpha=1.0),
    FedSpeed(lr=0.3, lam=1.0, rho=0.0),
    FedSpeed(lr=0.3, lam=1.0, rho=0.0, correction="active"),
]


@pytest.mark.parametrize("rule", EXACT, ids=str)
def test_control_variates_reach_the_global_optimum(rule: Any, quadratics: Quadratics) -> None:
    """Where FedAvg stops at its closed-form limit (test_fedavg.py), more than 1e-2 away."""
    x = run(quadratics, rule, All(), 100, Local(steps=3, batch_size="full")).trajectory[-1]
    np.testing.assert_allclose(x, minimiser(quadratics), rtol=TIGHT, atol=TIGHT)


def test_fedspeed_with_raw_ascent_has_its_closed_form_limit(quadratics: Quadratics) -> None:
    rule = FedSpeed(lr=0.3, lam=1.0, rho=0.5, alpha=0.6, normalize=False)
    x = run(quadratics, rule, All(), 100, Local(steps=3, batch_size="full")).trajectory[-1]
    np.testing.assert_allclose(x, minimiser(quadratics, 0.6 * 0.5), rtol=TIGHT, atol=TIGHT)
    assert np.linalg.norm(x - minimiser(quadratics)) > 1e-2, "the ascent must bias the limit"


def test_fedspeed_with_fixed_ascent_ends_where_the_mixed_gradients_cancel(quadratics: Quadratics) -> None:
    rule = FedSpeed(lr=0.3, lam=1.0, rho=0.2, alpha=0.6)
    x = run(quadratics, rule, All(), 100, Local(steps=3, batch_size="full")).trajectory[-1]
    g1 = [quadratics.grad(i, x) for i in range(quadratics.n)]
    g2 = [quadratics.grad(i, x + 0.2 * g / np.linalg.norm(g)) for i, g in enumerate(g1)]
    np.testing.assert_allclose(0.4 * np.mean(g1, axis=0) + 0.6 * np.mean(g2, axis=0), 0, atol=TIGHT)


def test_fedspeed_settles_with_half_of_the_clients_only_if_all_correct(tmp_path: Path) -> None:
    problem = Quadratics(n=10, seed=1)
    cohorts = [sorted(numpy_stream(0, "test_cohorts", t).choice(10, 5, replace=False).tolist()) for t in range(140)]
    errors = {}
    for server in ("all", "active"):
        rule = FedSpeed(lr=0.3, lam=0.5, rho=0.0, correction=server)
        x = trajectory(problem, rule, cohorts, tmp_path)
        errors[server] = np.abs(x[-50:] - minimiser(problem)).max()
    assert errors["all"] < TIGHT
    assert errors["active"] > 1e-2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Relaxed(FedAvg(lr=0.1), beta=-1.0), "beta must be >= 0, got -1.0"),
        (lambda: Relaxed(Natural()), "base must be an object with the methods of ServerAlgorithm .* got Natural"),
        (lambda: Relaxed(Relaxed(FedAvg(lr=0.1))), "base must be an algorithm .*, and not a relaxed one"),
        (
            lambda: Relaxed(FedSpeed(lr=0.1, correction="active")),
            "traits = Traits\\(moves=True\\); FedSpeed does not; server=all",
        ),
    ],
)
def test_relaxed_refuses_what_it_cannot_relax(make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_relaxed_names_a_method_whose_clients_send_no_update() -> None:
    with pytest.raises(InputError, match=r"base must send `update`.*Traits\(moves=True\); FedNova does not"):
        Relaxed(FedNova(lr=0.1))


@pytest.mark.parametrize(
    ("rule", "down", "up"),
    [
        (FedAvg(lr=0.1), 1, 1),
        (FedSpeed(lr=0.1), 1, 1),
        (FedSpeed(lr=0.1, correction="active"), 1, 1),
        (FedDyn(lr=0.1), 1, 1),
        (Scaffold(lr=0.1), 2, 2),
        (FedGAMMA(lr=0.1), 2, 2),
        (FedSMOO(lr=0.1), 2, 2),
        (FedCM(lr=0.1), 2, 1),
        (MoFedSAM(lr=0.1), 2, 1),
        (FedNova(lr=0.1), 1, 1),
        (FedAdam(lr=0.1), 1, 1),
    ],
    ids=lambda part: type(part).__name__,
)
def test_communication_in_vectors_of_the_models_size(rule: Any, down: int, up: int) -> None:
    problem = Quadratics(n=3, m=2, d=100)
    record = run(problem, rule, All(), 1, Local(batch_size="full")).metrics[-1]
    for way, vectors in (("downlink", down), ("uplink", up)):
        numbers = record[f"comm/{way}_bytes"] / 3 / 8  # float64; headers and a scalar take less than ten numbers
        assert vectors * 100 <= numbers < vectors * 100 + 10
