"""Every feedback layer against its numpy loop, the identities between them, and where they converge to."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedsim import Engine, Evaluate, Local, Mean, Result, simulate
from fedsim.algorithms.fedavg import FedAvg
from fedsim.algorithms.sgd import SGD
from fedsim.channel.channel import Channel
from fedsim.channel.diana import Diana
from fedsim.channel.econtrol import EControl
from fedsim.channel.ef14 import EF14
from fedsim.channel.ef21 import EF21, EF21SGDM, EF21Plus
from fedsim.channel.noise import Addressed
from fedsim.channel.onion import Layer, Layerwise
from fedsim.channel.qsgd import QSGD
from fedsim.channel.randk import RandK
from fedsim.channel.topk import TopK
from fedsim.models import linear_zero
from fedsim.partition import Dirichlet, Natural
from fedsim.schedule import All, Cohorts
from tests.conftest import Quadratics, images, small_cnn
from tests.oracles import feedback_loops as loops
from tests.oracles.loops import start

FLOAT64 = 1e-8  # fifty rounds of feedback on numbers of order 10; Top-K could flip only at a tie to 15 digits
ROUNDS, D, K = 50, 8, 2
PARTIAL = [[0, 1, 2], [1, 3], [3], [0, 2, 3], [0, 1, 2, 3], [2]]  # repeated; client 3 is first seen in round 1
TOPK, UNBIASED = Layer("topk", TopK(k=K)), Layer("randk", RandK(k=K, unbiased=True))
SEED = 5


@pytest.fixture(scope="module")
def problem() -> Quadratics:
    """Well conditioned (0.7 to 1.9) and heterogeneous."""
    return Quadratics(n=4, m=60, d=D)


class Unequal(Quadratics):
    """Client i holds k[i] copies of one row, so that an epoch of batch size 1 is k[i] steps along f_i's gradient."""

    def __init__(self) -> None:
        super().__init__(n=4, m=1, d=D, seed=3)
        self.a, self.k = self.a / 2, (1, 4, 2, 7)

    def grad(self, i: int, x: np.ndarray) -> np.ndarray:
        return max(self.k) * super().grad(i, x)  # a row's loss is m/2 (a x - b)^2, m the most rows of a client

    def dataset(self) -> Any:
        whole = super().dataset()
        rows = np.repeat(np.arange(self.n), self.k)
        return type(whole)(
            "copies", type(whole.train)(self.a[rows, 0], self.b[rows, 0], rows), None, "least_squares", 1, x0=whole.x0
        )


def cohorts_of(partial: bool, n: int, rounds: int = ROUNDS) -> list[list[int]]:
    return [PARTIAL[t % len(PARTIAL)] if partial else list(range(n)) for t in range(rounds)]


def run(
    problem: Any,
    layers: Sequence[Layer] = (),
    rounds: int = ROUNDS,
    *,
    algorithm: Any = SGD(lr=0.2),  # noqa: B008 - a frozen dataclass
    schedule: Any = All(),  # noqa: B008
    local: Local = Local(steps=1, batch_size="full"),  # noqa: B008
    weights: Any = "uniform",
    downlink: Sequence[Layer] = (),
    batching: Any = "auto",
    dtype: Any = "float64",
) -> Result:
    return simulate(
        algorithm,
        data=problem.dataset(),
        partition=Natural(),
        model=linear_zero,
        rounds=rounds,
        schedule=schedule,
        local=local,
        aggregate=Mean(weights=weights),
        channel=Channel(tuple(layers)),
        downlink=Channel(tuple(downlink)),
        engine=Engine(backend="serial", dtype=dtype, batching=batching),
        evaluate=Evaluate(every=10**6),
        trajectory=True,
        seed=SEED,
    )


def scheduled(cohorts: list[list[int]], folder: Path) -> Cohorts:
    file = folder / "cohorts.json"
    file.write_text(json.dumps(cohorts))
    return Cohorts(path=str(file))


def draws(layer: str, i: int, t: int, field: str = "gradient") -> Addressed:
    """The run's own random numbers of one client in one round."""
    return Addressed(SEED, f"uplink.{layer}.{field}", t, torch.tensor(i))


def random_k(v: np.ndarray, i: int, t: int) -> np.ndarray:
    at = draws("randk", i, t).subset(K, torch.zeros(D)).numpy()
    out = np.zeros_like(v)
    out[at] = v[at] * (D / K)
    return out


def qsgd(levels: int) -> loops.Codec:
    def codec(v: np.ndarray, i: int, t: int) -> np.ndarray:
        u = draws("qsgd", i, t).uniform(torch.zeros(D, dtype=torch.float64)).numpy()
        norm = np.sqrt(np.sum(v**2))
        exact = levels * np.abs(v) / norm
        signed = np.where(v < 0, 1 - u, u)  # rounding v up with probability p is rounding |v| up with 1 - p
        level = np.floor(exact) + (signed < exact - np.floor(exact))
        return np.sign(v) * level * norm / levels

    return codec


CONTROL = [Layer("econtrol", EControl()), TOPK]
METHODS: dict[str, tuple[list[Layer], Any, loops.Codec, dict[str, Any]]] = {
    "plain": ([TOPK], loops.plain, loops.top(K), {}),
    "ec": ([Layer("ef14", EF14()), TOPK], loops.ec, loops.top(K), {}),
    "ef21_zero": ([Layer("ef21", EF21("zero")), TOPK], loops.ef21, loops.top(K), {"init": "zero"}),
    "ef21_full": ([Layer("ef21", EF21("full")), TOPK], loops.ef21, loops.top(K), {"init": "full"}),
    "ef21_sgdm_full": ([Layer("ef21_sgdm", EF21SGDM("full", 0.3)), TOPK], loops.ef21, loops.top(K), {"a": 0.3}),
    "ef21_sgdm_zero": (
        [Layer("ef21_sgdm", EF21SGDM("zero")), TOPK],
        loops.ef21,
        loops.top(K),
        {"a": 0.1, "init": "zero"},
    ),
    "ef21_plus": ([Layer("ef21_plus", EF21Plus("full")), TOPK], loops.ef21_plus, loops.top(K), {"init": "full"}),
    "ef21_plus_zero": ([Layer("ef21_plus", EF21Plus("zero")), TOPK], loops.ef21_plus, loops.top(K), {"init": "zero"}),
    "econtrol_zero": (CONTROL, loops.econtrol, loops.top(K), {"eta": K / D / 2}),
    "econtrol_full": (
        [Layer("econtrol", EControl(start="full")), TOPK],
        loops.econtrol,
        loops.top(K),
        {"eta": K / D / 2, "init": "full"},
    ),
    "econtrol_compressed": (
        [Layer("econtrol", EControl(eta=0.2, start="compressed")), TOPK],
        loops.econtrol,
        loops.top(K),
        {"eta": 0.2, "init": "compressed"},
    ),
    "diana_randk": ([Layer("diana", Diana()), UNBIASED], loops.diana, random_k, {"alpha": K / D}),
    "diana_qsgd": (
        [Layer("diana", Diana()), Layer("qsgd", QSGD(levels=4, bucket=None))],
        loops.diana,
        qsgd(4),
        {"alpha": 1 / (1 + min(D / 16, math.sqrt(D) / 4))},
    ),
    "diana_alpha": (
        [Layer("diana", Diana(alpha=0.4)), Layer("qsgd", QSGD(levels=4, bucket=None))],
        loops.diana,
        qsgd(4),
        {"alpha": 0.4},
    ),
}
FORMS = [(False, "loop"), (True, "auto")]


@pytest.mark.parametrize(("partial", "batching"), FORMS, ids=["all_loop", "partial_auto"])
@pytest.mark.parametrize("name", METHODS)
def test_trajectory_equals_numpy_loop(
    name: str, partial: bool, batching: str, problem: Quadratics, tmp_path: Path
) -> None:
    layers, loop, codec, keys = METHODS[name]
    cohorts = cohorts_of(partial, problem.n)
    got = run(problem, layers, schedule=scheduled(cohorts, tmp_path), batching=batching)
    assert got.status == "finished", got.message
    want = loop(loops.Host(problem, 0.2), cohorts, start(problem), [1] * problem.n, codec, **keys)
    np.testing.assert_allclose(got.trajectory, want, rtol=FLOAT64, atol=FLOAT64)
    assert np.ptp(want, axis=0).max() > 0.1, "nothing moved: the test proves nothing"


@pytest.mark.parametrize("step", ["server", "client"])
@pytest.mark.parametrize("name", ["ec", "econtrol_full", "ef21_full"])
def test_both_forms_with_a_decaying_step(name: str, step: Any, problem: Quadratics, tmp_path: Path) -> None:
    """A stored error keeps the step of its round when clients multiply by it, else it gets the new one."""
    layers, loop, codec, keys = METHODS[name]
    cohorts = cohorts_of(True, problem.n, 25)
    rule = SGD(lr=0.2, lr_decay=0.95, step=step)
    got = run(problem, layers, len(cohorts), algorithm=rule, schedule=scheduled(cohorts, tmp_path))
    forms = {
        form: loop(loops.Host(problem, 0.2, 0.95, form), cohorts, start(problem), [1] * problem.n, codec, **keys)
        for form in ("server", "client")
    }
    np.testing.assert_allclose(got.trajectory, forms[step], rtol=FLOAT64, atol=FLOAT64)
    assert np.abs(forms["server"] - forms["client"]).max() > 1e-3, "the forms are the same: the test proves nothing"


def test_both_forms_of_ec_coincide_for_a_constant_step(problem: Quadratics) -> None:
    layers = METHODS["ec"][0]
    forms = [run(problem, layers, 25, algorithm=SGD(lr=0.2, step=step)).trajectory for step in ("server", "client")]
    np.testing.assert_allclose(*forms, rtol=FLOAT64, atol=FLOAT64)


@pytest.mark.parametrize("batching", ["auto", "loop"])
@pytest.mark.parametrize("name", ["ec", "ef21_full", "econtrol_zero", "econtrol_compressed"])
def test_around_local_steps_with_weights_by_examples(name: str, batching: str, tmp_path: Path) -> None:
    """One to seven local steps; absent clients' estimates count by their examples."""
    layers, loop, codec, keys = METHODS[name]
    problem = Unequal()
    cohorts = cohorts_of(True, problem.n, 25)
    got = run(
        problem,
        layers,
        len(cohorts),
        algorithm=FedAvg(lr=0.02),
        schedule=scheduled(cohorts, tmp_path),
        local=Local(epochs=1, batch_size=1),
        weights="examples",
        batching=batching,
    )
    host = loops.Host(problem, 0.02, step="local", k=problem.k)
    want = loop(host, cohorts, start(problem), problem.k, codec, **keys)
    np.testing.assert_allclose(got.trajectory, want, rtol=FLOAT64, atol=FLOAT64)
    assert np.ptp(want, axis=0).min() > 1e-2


LOSSLESS = {
    "ef14": EF14(),
    "ef21": EF21("zero"),
    "ef21_full": EF21("full"),
    "ef21_plus": EF21Plus(),
    "econtrol": EControl(),
    "econtrol_full": EControl(start="full"),
    "econtrol_compressed": EControl(start="compressed"),
    "diana": Diana(),
}


@pytest.mark.parametrize("inside", [(), (Layer("topk", TopK(k=D)),)], ids=["nothing", "everything"])
@pytest.mark.parametrize("name", LOSSLESS)
def test_a_codec_that_loses_nothing_is_gradient_descent(name: str, inside: Any, problem: Quadratics) -> None:
    if name == "diana":
        inside = tuple(Layer("randk", RandK(k=D, unbiased=True)) for _ in inside)  # Top-K is not known to be unbiased
    x = start(problem)
    want = [x]
    for _ in range(10):
        x = x - 0.2 * np.mean([problem.grad(i, x) for i in range(problem.n)], axis=0)
        want.append(x)
    got = run(problem, [Layer("feedback", LOSSLESS[name]), *inside], 10)
    np.testing.assert_allclose(got.trajectory, want, rtol=1e-12, atol=1e-12)  # rounding of float64 sums


def test_econtrol_without_eta_is_ef21(problem: Quadratics, tmp_path: Path) -> None:
    """Also for absent clients; and a momentum of weight 1 is none."""
    schedule = scheduled(cohorts_of(True, problem.n, 25), tmp_path)
    one, other, third = (
        run(problem, [Layer("feedback", rule), TOPK], 25, schedule=schedule).trajectory
        for rule in (EControl(eta=0.0, start="full"), EF21("full"), EF21SGDM("full", 1.0))
    )
    np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(third, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rule", [EF14(), EF21(), EF21Plus(), EControl(), EControl(start="compressed")], ids=str)
def test_feedback_makes_an_unbiased_codec_contractive(rule: Any, problem: Quadratics) -> None:
    """Unbiased Rand-K / (1 + omega) is the biased one, with the same draws; unscaled it would diverge."""
    unbiased, biased = (
        run(problem, [Layer("feedback", rule), Layer("randk", RandK(k=K, unbiased=which))], 30).trajectory
        for which in (True, False)
    )
    np.testing.assert_allclose(unbiased, biased, rtol=1e-10, atol=1e-10)
    assert np.abs(unbiased).max() < 20


def links(result: Result, i: int) -> Any:
    """What client i remembers about its link in the end."""
    _, kept = result.stores[0].read([i])
    (memory,) = kept["gradient"].values()
    return memory


@pytest.mark.parametrize("rule", [EF14(), EControl(), EControl(start="full"), EControl(eta=0.2)], ids=str)
@pytest.mark.parametrize("rounds", [1, 7, 25])
def test_virtual_iterate(rule: Any, rounds: int, problem: Quadratics) -> None:
    """y_t = x_t - gamma mean e_i(t) takes exact gradient steps; EControl's e_i sums g_i(s) - h_i(s + 1)."""
    gamma = 0.2
    result = run(problem, [Layer("feedback", rule), TOPK], rounds)
    x = result.trajectory
    errors = np.stack([links(result, i).e[0] for i in range(problem.n)])
    gradients = np.array([[problem.grad(i, x[t]) for i in range(problem.n)] for t in range(rounds)])
    want = x[0] - gamma * gradients.mean(1).sum(0)
    np.testing.assert_allclose(x[-1] - gamma * errors.mean(0), want, rtol=1e-11, atol=1e-11)
    if isinstance(rule, EControl):
        estimates = (x[:-1] - x[1:]) / gamma  # mean h_i(s + 1): the server's step
        np.testing.assert_allclose(errors.mean(0), (gradients.mean(1) - estimates).sum(0), rtol=1e-9, atol=1e-9)
    assert np.abs(errors).max() > 1e-3 or (rounds == 1 and rule == EControl(start="full"))


def test_dianas_server_remembers_the_clients_mean_shift_under_layerwise_too() -> None:
    """Where pieces of different lengths have different omegas, both ends step the shift alike, by the worst one."""
    gamma, cut = 0.1, [Layer("diana", Diana()), Layer("layerwise", Layerwise()), UNBIASED]
    both = [
        simulate(
            SGD(lr=gamma),
            data=images(),
            partition=Dirichlet(clients=4, alpha=1.0, min_samples=2),
            model=small_cnn,
            rounds=rounds,
            local=Local(steps=1, batch_size="full"),
            aggregate=Mean(weights="uniform"),
            channel=Channel(tuple(cut)),
            engine=Engine(backend="serial", dtype="float64"),
            trajectory=True,
        )
        for rounds in (2, 3)
    ]
    before, after = (np.mean([links(result, i).h[0] for i in range(4)], axis=0) for result in both)
    largest = max(p.numel() for p in both[0].model.parameters())
    alpha = K / largest  # 1 / (1 + omega) of Rand-K of the longest piece
    x = both[1].trajectory
    np.testing.assert_allclose((x[2] - x[3]) / gamma, before + (after - before) / alpha, rtol=1e-7, atol=1e-9)


def optimum(problem: Quadratics) -> np.ndarray:
    h = sum(problem.hessian(i) for i in range(problem.n))
    return np.linalg.solve(h, -sum(problem.grad(i, np.zeros(problem.d)) for i in range(problem.n)))


def distances(problem: Quadratics, x: np.ndarray) -> np.ndarray:
    """||x_t - x*||^2 for every round."""
    return np.square(x - optimum(problem)).sum(-1)


class FromOptimum(Quadratics):
    """The same clients; the run starts where it should end, so that a floor is reached without a long approach."""

    def dataset(self) -> Any:
        whole = super().dataset()
        return type(whole)(whole.name, whole.train, None, whole.task, 1, x0=optimum(self))


def test_the_floor_of_error_feedback_falls_four_times_per_halving_of_the_step() -> None:
    floors = []
    for gamma, rounds in ((0.2, 90), (0.1, 120), (0.05, 180)):
        problem = FromOptimum(n=4, m=200, d=D)
        x = run(problem, METHODS["ec"][0], rounds, algorithm=SGD(lr=gamma)).trajectory
        floors.append(distances(problem, x)[-60:].mean())
    ratios = [a / b for a, b in pairwise(floors)]
    assert all(3.5 < ratio < 4.6 for ratio in ratios), ratios
    assert floors[-1] > 1e-3


@pytest.mark.parametrize(("name", "rounds"), [("ef21_full", 120), ("econtrol_zero", 240)])
def test_control_reaches_the_optimum(name: str, rounds: int, problem: Quadratics) -> None:
    x = run(problem, METHODS[name][0], rounds, algorithm=SGD(lr=0.3)).trajectory
    assert distances(problem, x)[-1] < 1e-20


def test_error_feedback_has_no_floor_where_clients_agree(problem: Quadratics) -> None:
    shared = Quadratics(n=4, m=60, d=D)
    shared.b = np.einsum("nmd,d->nm", shared.a, np.arange(D) - 3.0)
    x = run(shared, METHODS["ec"][0], 250, algorithm=SGD(lr=0.3)).trajectory
    assert np.square(x[-1] - (np.arange(D) - 3.0)).sum() < 1e-18


def test_compression_without_feedback_does_not_converge(problem: Quadratics) -> None:
    assert distances(problem, run(problem, [TOPK], 100).trajectory)[-50:].min() > 0.1


def test_naive_control_diverges_and_says_so(problem: Quadratics) -> None:
    """eta = 1: the run is stopped, and what was recorded before is kept."""
    layers = [Layer("econtrol", EControl(eta=1.0)), TOPK]
    result = run(problem, layers, 2000, algorithm=SGD(lr=0.5), dtype="float32")
    assert result.status == "diverged"
    assert "round" in result.message
    done = result.summary["rounds"]
    assert 10 < done < 2000
    assert [record["round"] for record in result.metrics] == list(range(done + 1))
    assert result.trajectory.shape == (done + 1, D)
    assert np.isfinite(result.trajectory).all()
    assert np.isfinite([record["train/loss"] for record in result.metrics[1:]]).all()
    assert np.abs(result.trajectory[-1]).max() > 1e6


@pytest.mark.parametrize("batching", ["auto", "loop"])
def test_error_feedback_on_the_downlink(batching: str, problem: Quadratics) -> None:
    """Clients compute at what the link gave them: D = C(e + x), e <- e + x - D."""
    codec, x, e = loops.top(K), start(problem), np.zeros(D)
    want = [x]
    for t in range(ROUNDS):
        got = codec(e + x, 0, t)
        e = e + x - got
        x = x - 0.05 * np.mean([problem.grad(i, got) for i in range(problem.n)], axis=0)
        want.append(x)
    downlink = [Layer("ef14", EF14()), TOPK]
    result = run(problem, (), algorithm=SGD(lr=0.05), downlink=downlink, batching=batching)
    np.testing.assert_allclose(result.trajectory, want, rtol=FLOAT64, atol=FLOAT64)


@pytest.mark.parametrize("init", ["full", "zero"])
def test_ef21_on_the_downlink(init: Any, problem: Quadratics) -> None:
    """Clients hold the estimate G <- G + C(x - G) of the server's model and compute there."""
    codec, x, g = loops.top(K), start(problem), np.zeros(D)
    want = [x]
    for t in range(ROUNDS):
        g = x if t == 0 and init == "full" else g + codec(x - g, 0, t)
        x = x - 0.05 * np.mean([problem.grad(i, g) for i in range(problem.n)], axis=0)
        want.append(x)
    result = run(problem, (), algorithm=SGD(lr=0.05), downlink=[Layer("ef21", EF21(init)), TOPK])
    np.testing.assert_allclose(result.trajectory, want, rtol=FLOAT64, atol=FLOAT64)
