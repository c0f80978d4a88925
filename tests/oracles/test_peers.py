"""Every decentralized method against its numpy loop, the identities between them, and where they converge to."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pytest
from scipy import sparse

from fedsim import Engine, Evaluate, Local, Mean, Result, simulate
from fedsim.algorithms.beer import Beer
from fedsim.algorithms.choco_sgd import ChocoSGD
from fedsim.algorithms.dcd_psgd import DCDPSGD
from fedsim.algorithms.deepsqueeze import DeepSqueeze
from fedsim.algorithms.dfedavg import DFedAvg
from fedsim.algorithms.dfedsam import DFedSAM
from fedsim.algorithms.dpsgd import DPSGD
from fedsim.algorithms.fedavg import FedAvg
from fedsim.algorithms.gradient_tracking import GradientTracking
from fedsim.algorithms.sgp import SGP
from fedsim.channel.channel import Channel
from fedsim.channel.onion import Layer
from fedsim.channel.topk import TopK
from fedsim.data import Dataset, Split
from fedsim.errors import InputError
from fedsim.models import linear, linear_zero
from fedsim.partition import Natural
from fedsim.schedule import All, Cohorts
from fedsim.topology import Complete, Mixing, OnePeerExponential, RandomRegular, Ring, Star, weigh
from fedsim.topology import Path as Line
from fedsim.topology.mixing import checked
from tests.conftest import Quadratics
from tests.oracles import peer_loops as loops
from tests.oracles.feedback_loops import top
from tests.oracles.loops import start
from tests.oracles.test_federated import Unequal

TIGHT = 1e-10  # float64 through a few dozen steps
LONG = 1e-8  # fifty rounds of feedback on numbers of order 10; Top-K could flip only at a tie to 15 digits
COHORTS = [[0, 1, 2], [1, 4], [3], [0, 2, 3, 4], [2], [0, 1, 2, 3, 4]]
EVERYBODY = [list(range(5))] * len(COHORTS)
ROUNDS = len(COHORTS)
TOP2 = (Layer("topk", TopK(k=2)),)
SGD: dict[str, Any] = {"lr": 0.2, "lr_decay": 0.9}
OPTIONS: dict[str, Any] = {"momentum": 0.6, "weight_decay": 0.05, "clip": 1.5}
NP: dict[str, Any] = {"lr": 0.2, "decay": 0.9}
NP_OPTIONS: dict[str, Any] = {"momentum": 0.6, "wd": 0.05, "clip": 1.5}

METHODS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "dfedavg": (DFedAvg(**SGD), loops.dfedavg, {}),
    "dfedavgm": (DFedAvg(**SGD, **OPTIONS, gossip_steps=2), loops.dfedavg, {**NP_OPTIONS, "gossip_steps": 2}),
    "dfedsam": (DFedSAM(**SGD, rho=0.3), loops.dfedavg, {"rho": 0.3}),
    "dfedsam_mgs": (
        DFedSAM(**SGD, **OPTIONS, rho=0.3, gossip_steps=4),
        loops.dfedavg,
        {**NP_OPTIONS, "rho": 0.3, "gossip_steps": 4},
    ),
    "dpsgd": (DPSGD(**SGD, weight_decay=0.05), loops.dpsgd, {"wd": 0.05}),
    "diging": (GradientTracking(**SGD), loops.tracking, {"form": "diging"}),
    "dsgt": (GradientTracking(**SGD, form="dsgt"), loops.tracking, {"form": "dsgt"}),
    "sgp": (SGP(**SGD, weight_decay=0.05), loops.sgp, {"wd": 0.05}),
    "choco": (ChocoSGD(**SGD, gamma=0.4), loops.choco, {"gamma": 0.4}),
    "choco_model": (ChocoSGD(**SGD, gamma=0.4, copies="model"), loops.choco, {"gamma": 0.4, "copies": "model"}),
    "choco_options": (ChocoSGD(**SGD, **OPTIONS, gamma=0.4), loops.choco, {"gamma": 0.4, **NP_OPTIONS}),
    "deepsqueeze": (DeepSqueeze(**SGD, gamma=0.4), loops.deepsqueeze, {"gamma": 0.4}),
    "dcd": (DCDPSGD(**SGD, weight_decay=0.05), loops.dcd, {"wd": 0.05}),
    "beer": (Beer(**SGD, gamma=0.4), loops.beer, {"gamma": 0.4}),
}
EVERYONE = ("diging", "dsgt", "beer")
STATIC = ("choco", "choco_model", "choco_options", "dcd", "beer")


@dataclass(frozen=True)
class Given:
    """Any W, the same in every round."""

    w: Any  # [n, n] array

    def mixing(self, n: int, index: int, seed: int) -> Mixing:
        graph = nx.from_numpy_array((self.w - np.diag(np.diag(self.w)) > 0).astype(float).T, create_using=nx.DiGraph)
        rows, columns = (np.allclose(self.w.sum(axis), 1, rtol=0, atol=1e-12) for axis in (1, 0))
        return checked(graph, sparse.csr_matrix(self.w), 1, rows=rows, columns=columns)


def shares(arcs: Sequence[tuple[int, int]], n: int) -> np.ndarray:
    """Column j: what j keeps and what it sends, in equal parts."""
    w = np.eye(n)
    for sender, receiver in arcs:
        w[receiver, sender] = 1
    return w / w.sum(axis=0)


def metropolis(edges: Any, n: int) -> np.ndarray:
    degree = [sum(i in edge for edge in edges) for i in range(n)]
    w = np.zeros((n, n))
    for i, j in edges:
        w[i, j] = w[j, i] = 1 / (1 + max(degree[i], degree[j]))
    return w + np.diag(1 - w.sum(axis=1))


def ring(n: int) -> np.ndarray:
    return sum(np.roll(np.eye(n), shift, axis=1) for shift in (-1, 0, 1)) / 3


STAR = metropolis([(0, i) for i in range(1, 5)], 5)
ONE_WAY = shares([(i, (i + 1) % 5) for i in range(5)] + [(0, 2), (0, 3)], 5)


class Logistic:
    """Peers with logistic losses on labels that lean to another class on each; parameters: weights, then the bias."""

    n, d, m = 5, 4, 9

    def __init__(self) -> None:
        random = np.random.default_rng(7)
        self.a = random.normal(size=(self.n, self.m, self.d - 1))
        lean = np.linspace(-2, 2, self.n)[:, None]
        self.y = (self.a.sum(axis=2) + lean + random.normal(size=(self.n, self.m)) > 0).astype(np.int64)

    def grad(self, i: int, x: np.ndarray) -> np.ndarray:
        a = np.concatenate([self.a[i], np.ones((self.m, 1))], axis=1)
        return a.T @ (1 / (1 + np.exp(-a @ x)) - self.y[i]) / self.m

    def dataset(self) -> Dataset:
        rows = np.repeat(np.arange(self.n), self.m)
        split = Split(self.a.reshape(-1, self.d - 1), self.y.reshape(-1), rows)
        return Dataset("logistic", split, None, "classification", 2, x0=start(self))


def run(problem: Any, algorithm: Any, topology: Any, rounds: int, **options: Any) -> Result:
    given = {"local": Local(steps=3, batch_size="full"), "schedule": All(), "layers": ()} | options
    result = simulate(
        algorithm,
        data=problem.dataset(),
        partition=Natural(),
        model=linear if isinstance(problem, Logistic) else linear_zero,
        rounds=rounds,
        schedule=given["schedule"],
        topology=topology,
        local=given["local"],
        channel=Channel(given["layers"]),
        aggregate=Mean(weights="uniform"),
        engine=Engine(backend="serial", dtype="float64", jobs=1),
        evaluate=Evaluate(every=10**6),
        trajectory=True,
        seed=5,
    )
    assert result.status == "finished", result.message
    return result


def models(problem: Any, algorithm: Any, topology: Any, rounds: int, **options: Any) -> np.ndarray:
    """[rounds + 1, n, d]."""
    found = run(problem, algorithm, topology, rounds, **options).trajectory
    assert found is not None
    return found


def scheduled(cohorts: Sequence[Sequence[int]], folder: Path) -> Cohorts:
    file = folder / "cohorts.json"
    file.write_text(json.dumps(cohorts))
    return Cohorts(path=str(file))


@pytest.mark.parametrize("name", METHODS)
def test_trajectory_equals_numpy_loop(name: str, quadratics: Quadratics) -> None:
    """On a star, whose W is far from a circulant; SGP on a directed graph whose rows do not sum to 1."""
    rule, loop, keys = METHODS[name]
    w, graph = (ONE_WAY, Given(ONE_WAY)) if name == "sgp" else (STAR, Star())
    got = models(quadratics, rule, graph, ROUNDS)
    want = loop(quadratics, lambda t: w, EVERYBODY, [3] * 5, **NP, **keys)
    np.testing.assert_allclose(got, want, rtol=TIGHT, atol=TIGHT)
    assert np.ptp(want, axis=0).min() > 1e-2, "nothing moved: the test proves nothing"


@pytest.mark.parametrize("name", [name for name in METHODS if name not in EVERYONE])
def test_some_compute_and_all_mix(name: str, quadratics: Quadratics, tmp_path: Path) -> None:
    rule, loop, keys = METHODS[name]
    got = models(quadratics, rule, Ring(), ROUNDS, schedule=scheduled(COHORTS, tmp_path))
    want = loop(quadratics, lambda t: ring(5), COHORTS, [3] * 5, **NP, **keys)
    np.testing.assert_allclose(got, want, rtol=TIGHT, atol=TIGHT)


@pytest.mark.parametrize("name", METHODS)
def test_unequal_steps_and_sizes_equal_numpy_loop(name: str) -> None:
    """An epoch of batch size 1 gives peers 1 to 7 local steps."""
    rule, loop, keys = METHODS[name]
    problem = Unequal()
    got = models(problem, rule, Ring(), ROUNDS, local=Local(epochs=1, batch_size=1))
    want = loop(problem, lambda t: ring(5), EVERYBODY, problem.k, **NP, **keys)
    np.testing.assert_allclose(got, want, rtol=TIGHT, atol=TIGHT)


@pytest.mark.parametrize("name", ["dpsgd", "diging", "sgp", "dcd", "beer"])
def test_one_gradient_a_round_is_that_of_all_its_minibatches(name: str, quadratics: Quadratics) -> None:
    """All at the same x: an epoch of single rows gives the full gradient."""
    rule, loop, keys = METHODS[name]
    got = models(quadratics, rule, Ring(), 3, local=Local(epochs=1, batch_size=1))
    want = loop(quadratics, lambda t: ring(5), EVERYBODY[:3], [1] * 5, **NP, **keys)
    np.testing.assert_allclose(got, want, rtol=TIGHT, atol=TIGHT)


def test_beer_starts_from_the_full_gradient(quadratics: Quadratics) -> None:
    """Whatever the minibatches of the first round are."""
    x = models(quadratics, Beer(lr=0.2), Ring(), 1, local=Local(steps=1, batch_size=2))
    np.testing.assert_allclose(x[1], x[0] - 0.2 * loops.gradients(quadratics, x[0], range(5)), rtol=TIGHT, atol=TIGHT)


@pytest.mark.parametrize("name", ["dfedavg", "dfedsam_mgs", "dpsgd", "dsgt", "sgp", "choco", "beer"])
def test_logistic_regression_equals_numpy_loop(name: str) -> None:
    rule, loop, keys = METHODS[name]
    problem = Logistic()
    w = metropolis(list(pairwise(range(5))), 5)
    got = models(problem, rule, Line(), ROUNDS)
    want = loop(problem, lambda t: w, EVERYBODY, [3] * 5, **NP, **keys)
    np.testing.assert_allclose(got, want, rtol=TIGHT, atol=TIGHT)
    assert np.ptp(want, axis=0).min() > 1e-3, "nothing moved: the test proves nothing"


@pytest.mark.parametrize("name", [name for name in METHODS if name not in STATIC])
def test_changing_graphs_equal_numpy_loop(name: str, quadratics: Quadratics) -> None:
    """One-way shifts by 1, 2, 4 where that is what the method is for, else a random cycle for every round."""
    rule, loop, keys = METHODS[name]
    if name in ("sgp", "dsgt"):
        graph: Any = OnePeerExponential()
        ws = [(np.eye(5) + np.roll(np.eye(5), 2 ** (t % 3), axis=0)) / 2 for t in range(ROUNDS)]
    else:
        graph = RandomRegular(2)
        ws = [metropolis(graph.mixing(5, t, 5).edges.tolist(), 5) for t in range(ROUNDS)]
    assert len({w.tobytes() for w in ws}) > 2
    got = models(quadratics, rule, graph, ROUNDS)
    want = loop(quadratics, ws.__getitem__, EVERYBODY, [3] * 5, **NP, **keys)
    np.testing.assert_allclose(got, want, rtol=TIGHT, atol=TIGHT)


COMPRESSED: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "dfedavg": (DFedAvg(lr=0.1), loops.dfedavg, {}),
    "choco": (ChocoSGD(lr=0.1, gamma=0.3), loops.choco, {"gamma": 0.3}),
    "choco_model": (ChocoSGD(lr=0.1, gamma=0.3, copies="model"), loops.choco, {"gamma": 0.3, "copies": "model"}),
    "deepsqueeze": (DeepSqueeze(lr=0.1, gamma=0.2), loops.deepsqueeze, {"gamma": 0.2}),
    "dcd": (DCDPSGD(lr=0.1), loops.dcd, {}),
    "beer": (Beer(lr=0.05, gamma=0.2), loops.beer, {"gamma": 0.2}),
}


SHORT = [name for name in COMPRESSED if name != "choco_model"]


@pytest.mark.parametrize("name", [*SHORT, pytest.param("choco_model", marks=pytest.mark.slow)])
def test_fifty_rounds_of_top_k_equal_numpy_loop(name: str) -> None:
    rule, loop, keys = COMPRESSED[name]
    problem = Quadratics(n=6, m=60, d=8)
    got = models(problem, rule, Ring(), 50, layers=TOP2, local=Local(steps=2, batch_size="full"))
    want = loop(problem, lambda t: ring(6), [range(6)] * 50, [2] * 6, lr=rule.lr, codec=top(2), **keys)
    np.testing.assert_allclose(got, want, rtol=LONG, atol=LONG)
    assert np.abs(want).max() < 1e3, "a run that explodes proves little"


ONE_STEP = Local(steps=1, batch_size="full")
IDENTITIES: dict[str, tuple[Any, Any]] = {
    "dfedsam_rho0_is_dfedavg": (DFedSAM(**SGD, rho=0.0), DFedAvg(**SGD)),
    "dcd_without_loss_is_dpsgd": (DCDPSGD(**SGD), DPSGD(**SGD)),
    "choco_without_loss_is_dfedavg": (ChocoSGD(**SGD, gamma=1.0), DFedAvg(**SGD)),
    "deepsqueeze_without_loss_is_dfedavg": (DeepSqueeze(**SGD, gamma=1.0), DFedAvg(**SGD)),
}


@pytest.mark.parametrize("name", IDENTITIES)
def test_identities(name: str, quadratics: Quadratics, tmp_path: Path) -> None:
    """With partial participation, a decaying lr and three local steps."""
    schedule = scheduled(COHORTS, tmp_path)
    one, other = (models(quadratics, rule, Star(), ROUNDS, schedule=schedule) for rule in IDENTITIES[name])
    np.testing.assert_allclose(one, other, rtol=TIGHT, atol=TIGHT)


def test_sgp_with_doubly_stochastic_w_is_dfedavg_of_one_step(quadratics: Quadratics) -> None:
    one, other = (models(quadratics, rule, Star(), ROUNDS, local=ONE_STEP) for rule in (SGP(**SGD), DFedAvg(**SGD)))
    np.testing.assert_allclose(one, other, rtol=TIGHT, atol=TIGHT)


def test_one_step_of_dfedavg_and_of_dpsgd_are_not_the_same(quadratics: Quadratics) -> None:
    """W (X - lr G(X)) and W X - lr G(X)."""
    one, other = (models(quadratics, rule, Ring(), 6, local=ONE_STEP) for rule in (DFedAvg(lr=0.3), DPSGD(lr=0.3)))
    x, y = loops.begin(quadratics), loops.begin(quadratics)
    for t in range(6):
        x = ring(5) @ (x - 0.3 * loops.gradients(quadratics, x, range(5)))
        y = ring(5) @ y - 0.3 * loops.gradients(quadratics, y, range(5))
        np.testing.assert_allclose(one[t + 1], x, rtol=TIGHT, atol=TIGHT)
        np.testing.assert_allclose(other[t + 1], y, rtol=TIGHT, atol=TIGHT)
    assert np.abs(one[1:] - other[1:]).max(axis=(1, 2)).min() > 0.1


@pytest.mark.parametrize("rule", [DFedAvg(**SGD), DFedSAM(**SGD, rho=0.0), ChocoSGD(**SGD, gamma=1.0)], ids=str)
def test_on_a_complete_graph_it_is_fedavg_with_everybody(rule: Any, quadratics: Quadratics) -> None:
    got = models(quadratics, rule, Complete(), ROUNDS)
    want = run(quadratics, FedAvg(**SGD), None, ROUNDS).trajectory
    assert want is not None
    np.testing.assert_allclose(got, np.broadcast_to(want[:, None], got.shape), rtol=TIGHT, atol=TIGHT)


@pytest.mark.parametrize("rule", [DFedAvg(lr=0.5), SGP(lr=0.5), Beer(lr=0.5)], ids=lambda rule: type(rule).__name__)
def test_isolated_peers_go_to_their_own_optima(rule: Any) -> None:
    problem = Quadratics(n=6, m=60, d=8)
    x = models(problem, rule, Given(np.eye(6)), 50)[-1]
    own = np.stack([problem.optimum(i) for i in range(6)])
    np.testing.assert_allclose(x, own, rtol=0, atol=1e-3)  # the slowest mode, (1 - 0.5 * 0.4)^50, is 1e-5 of some units


def test_several_exchanges_are_one_with_the_power_of_w(quadratics: Quadratics) -> None:
    cubed = Given(np.linalg.matrix_power(ring(5), 3))
    three = models(quadratics, DFedSAM(**SGD, rho=0.2, gossip_steps=3), Ring(), ROUNDS)
    np.testing.assert_allclose(
        three, models(quadratics, DFedSAM(**SGD, rho=0.2), cubed, ROUNDS), rtol=TIGHT, atol=TIGHT
    )


KEEPERS = [
    *(DFedAvg(lr=0.2), DFedSAM(lr=0.2, rho=0.0, gossip_steps=2), DPSGD(lr=0.2)),
    *(ChocoSGD(lr=0.2, gamma=0.3), DeepSqueeze(lr=0.2, gamma=0.2)),
]


@pytest.mark.parametrize("rule", KEEPERS, ids=lambda rule: type(rule).__name__)
def test_mixing_leaves_the_mean_where_the_gradients_put_it(rule: Any, quadratics: Quadratics) -> None:
    """mean x <- mean x - lr mean gradient, exactly; compressed gossip too, whatever Top-K loses."""
    layers = TOP2 if hasattr(rule, "gamma") else ()
    x = models(quadratics, rule, Star(), 10, layers=layers, local=ONE_STEP)
    for before, after in pairwise(x):
        step = loops.gradients(quadratics, before, range(5)).mean(axis=0)
        np.testing.assert_allclose(after.mean(axis=0), before.mean(axis=0) - 0.2 * step, rtol=0, atol=1e-12)
    assert np.ptp(x[-1], axis=0).min() > 1e-2, "a consensus would prove nothing"


@pytest.mark.parametrize("rule", [Beer(lr=0.05, gamma=0.2), GradientTracking(lr=0.1)], ids=str)
def test_trackers_keep_the_sum_of_gradients(rule: Any, quadratics: Quadratics) -> None:
    layers = TOP2 if isinstance(rule, Beer) else ()
    result = run(quadratics, rule, Star(), 10, layers=layers, local=ONE_STEP)
    peers = [result.client(i) for i in range(5)]
    tracked = np.stack([(peer.v if isinstance(rule, Beer) else peer.y).numpy() for peer in peers]).mean(axis=0)
    np.testing.assert_allclose(tracked, np.mean([peer.g.numpy() for peer in peers], axis=0), rtol=0, atol=1e-12)


def minimiser(problem: Quadratics) -> np.ndarray:
    h = sum(problem.hessian(i) for i in range(problem.n))
    return np.linalg.solve(h, -sum(problem.grad(i, np.zeros(problem.d)) for i in range(problem.n)))


def dfedavg_limit(problem: Quadratics, w: np.ndarray, lr: float, k: int) -> np.ndarray:
    """X = W (A X + C): y_i = A_i x_i + c_i is where k steps lead, A_i = (I - lr H_i)^k, from any x_i."""
    n, d = problem.n, problem.d
    a, c = np.zeros((n, d, d)), np.zeros((n, d))
    for i in range(n):
        a[i] = np.linalg.matrix_power(np.eye(d) - lr * problem.hessian(i), k)
        c[i] = (np.eye(d) - a[i]) @ problem.optimum(i)
    system = np.einsum("ij,jab->iajb", w, a).reshape(n * d, n * d)
    return np.linalg.solve(np.eye(n * d) - system, (w @ c).reshape(-1)).reshape(n, d)


def spread(x: np.ndarray) -> float:
    return float(np.linalg.norm(x - x.mean(axis=-2, keepdims=True)))


def test_dfedavg_has_its_closed_form_limit(quadratics: Quadratics) -> None:
    """Neither the optimum nor a consensus; the spread falls with the number of exchanges."""
    spreads = []
    local = Local(steps=4, batch_size="full")
    for q in (1, 2, 4):
        want = dfedavg_limit(quadratics, np.linalg.matrix_power(ring(5), q), 0.5, 4)
        x = models(quadratics, DFedAvg(lr=0.5, gossip_steps=q), Ring(), 40, local=local)[-1]
        np.testing.assert_allclose(x, want, rtol=TIGHT, atol=TIGHT)
        assert np.linalg.norm(x.mean(axis=0) - minimiser(quadratics)) > 1e-2
        spreads.append(spread(x))
    assert spreads[0] > 1.5 * spreads[1] > 3 * spreads[2] > 0.0
    everywhere = dfedavg_limit(quadratics, np.full((5, 5), 0.2), 0.5, 4)
    x = models(quadratics, DFedAvg(lr=0.5), Complete(), 40, local=local)[-1]
    np.testing.assert_allclose(x, everywhere, rtol=TIGHT, atol=TIGHT)


EXACT = {
    "diging": (GradientTracking(lr=0.1), (), 200),
    "dsgt": (GradientTracking(lr=0.2, form="dsgt"), (), 100),
    "beer": (Beer(lr=0.15, gamma=0.7), TOP2, 160),
}


@pytest.mark.parametrize("name", ["dsgt", "beer", pytest.param("diging", marks=pytest.mark.slow)])
def test_trackers_reach_the_optimum_of_the_mean(name: str) -> None:
    rule, layers, rounds = EXACT[name]
    problem = Quadratics(n=6, m=60, d=8)
    x = models(problem, rule, Ring(), rounds, layers=layers, local=ONE_STEP)[-1]
    np.testing.assert_allclose(x, np.tile(minimiser(problem), (6, 1)), rtol=1e-6, atol=1e-6)  # linear, still falling


@pytest.mark.parametrize(
    ("rule", "layers"),
    [
        (ChocoSGD, TOP2),
        pytest.param(DPSGD, (), marks=pytest.mark.slow),
        pytest.param(DFedAvg, (), marks=pytest.mark.slow),
        pytest.param(SGP, (), marks=pytest.mark.slow),
        pytest.param(DeepSqueeze, TOP2, marks=pytest.mark.slow),
    ],
    ids=lambda part: getattr(part, "__name__", ""),
)
def test_without_tracking_a_constant_rate_has_a_floor(rule: Any, layers: Any) -> None:
    """The spread of heterogeneous peers is not zero, and falls about in proportion to the rate."""
    problem = Quadratics(n=6, m=60, d=8)
    found = []
    for lr in (0.05, 0.025):
        chosen = rule(lr=lr, **({"gamma": 0.3} if layers else {}))
        x = models(problem, chosen, Ring(), 100, layers=layers, local=ONE_STEP)
        found.append(spread(x[-20:].mean(axis=0)))
    assert found[0] > 0.1
    assert 0.4 < found[1] / found[0] < 0.7


def test_choco_gossip_finds_the_mean_linearly() -> None:
    """f_i = 1/2 ||x - b_i||^2 and lr 1 put peer i at b_i in round 0; the lr vanishes, and only gossip remains."""
    problem = Quadratics(n=6, m=6, d=6)
    problem.a = np.tile(np.eye(6), (6, 1, 1))
    rule = ChocoSGD(lr=1.0, lr_decay=1e-200, gamma=0.6)
    x = models(problem, rule, Ring(), 80, layers=TOP2, local=ONE_STEP)
    mean = problem.b.mean(axis=0)
    np.testing.assert_allclose(x[1].mean(axis=0), mean, rtol=0, atol=1e-12)
    np.testing.assert_allclose(x[-1], np.tile(mean, (6, 1)), rtol=0, atol=1e-6)
    logs = np.log([spread(one) for one in x[10:]])
    line = np.polyfit(np.arange(len(logs)), logs, 1)
    assert line[0] < -0.1
    assert np.abs(logs - np.polyval(line, np.arange(len(logs)))).max() < 1.5, "not a straight line"


def test_push_sum_finds_the_mean_where_plain_gossip_does_not() -> None:
    """The same consensus problem on a directed graph whose W is not doubly stochastic."""
    problem = Quadratics(n=5, m=4, d=4)
    problem.a = np.tile(np.eye(4), (5, 1, 1))
    once: dict[str, Any] = {"lr": 1.0, "lr_decay": 1e-200}
    pushed = models(problem, SGP(**once), Given(ONE_WAY), 60, local=ONE_STEP)[-1]
    np.testing.assert_allclose(pushed, np.tile(problem.b.mean(axis=0), (5, 1)), rtol=TIGHT, atol=TIGHT)
    rows = ONE_WAY / ONE_WAY.sum(axis=1, keepdims=True)
    plain = models(problem, DFedAvg(**once), Given(rows), 60, local=ONE_STEP)[-1]
    assert spread(plain) < 1e-8
    assert np.abs(plain[0] - problem.b.mean(axis=0)).max() > 0.1


@pytest.mark.parametrize("name", [name for name in METHODS if name in STATIC])
def test_neighbours_copies_need_a_graph_that_stays(name: str, quadratics: Quadratics) -> None:
    with pytest.raises(InputError, match="topology must not change with the round for"):
        run(quadratics, METHODS[name][0], RandomRegular(2), 2)


@pytest.mark.parametrize("name", EVERYONE)
def test_trackers_need_everybody(name: str, quadratics: Quadratics, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="schedule must let all 5 clients take part in every round"):
        run(quadratics, METHODS[name][0], Ring(), ROUNDS, schedule=scheduled(COHORTS, tmp_path))


def test_push_sum_is_refused_where_rows_are_needed_and_the_other_way_round(quadratics: Quadratics) -> None:
    rows = weigh(nx.path_graph(5), "uniform", 1)
    assert not rows.column_stochastic
    for rule, w in ((DFedAvg(lr=0.1), ONE_WAY), (SGP(lr=0.1), rows.w.toarray())):
        with pytest.raises(InputError, match=r"topology.weights must give (rows|columns) that sum to 1 for"):
            run(quadratics, rule, Given(w), 1)


@pytest.mark.parametrize(
    ("rule", "vectors"),
    [
        *((rule(lr=0.1), 1) for rule in (DFedAvg, DPSGD, SGP, ChocoSGD, DeepSqueeze, DCDPSGD)),
        *((rule(lr=0.1), 2) for rule in (GradientTracking, Beer)),
        (DFedSAM(lr=0.1, gossip_steps=4), 4),
    ],
    ids=lambda part: type(part).__name__,
)
def test_communication_in_vectors_of_the_models_size(rule: Any, vectors: int) -> None:
    record = run(Quadratics(n=5, m=2, d=100), rule, Star(), 1).metrics[-1]
    numbers = record["comm/edge_bytes"] / 8 / 8  # eight arcs, float64; headers and a scalar: less than ten numbers each
    assert vectors * 100 <= numbers < vectors * 110


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ChocoSGD(lr=0.1, gamma=0.0), r"gamma must be in \(0, 1\], got 0.0"),
        (lambda: DeepSqueeze(lr=0.1, gamma=1.5), r"gamma must be in \(0, 1\], got 1.5"),
        (lambda: Beer(lr=0.1, gamma=-1.0), r"gamma must be in \(0, 1\], got -1.0"),
        (lambda: DFedAvg(lr=0.1, gossip_steps=0), "gossip_steps must be >= 1, got 0"),
        (lambda: DFedSAM(lr=0.1, rho=-0.1), "rho must be >= 0, got -0.1"),
    ],
)
def test_wrong_numbers_are_refused(make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()
