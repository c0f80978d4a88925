"""DADAO and its siblings against event loops in numpy on the run's own events; what theory says of DADAO."""

from __future__ import annotations

from math import exp, sqrt
from typing import Any

import numpy as np
import pytest
import torch
from scipy.linalg import expm

from fedsim import Engine, Evaluate, Local, Mean, simulate
from fedsim.algorithms.a2cid2 import A2CiD2
from fedsim.algorithms.ad_psgd import ADPSGD
from fedsim.algorithms.adom_plus import ADOMPlus
from fedsim.algorithms.continuized import Continuized
from fedsim.algorithms.dadao import DADAO, DADAOPeer
from fedsim.algorithms.msda import MSDA
from fedsim.data import Dataset
from fedsim.errors import InputError
from fedsim.models import linear_zero
from fedsim.partition import Iid, Natural
from fedsim.schedule import All, Events
from fedsim.topology import Complete, OnePeerExponential, Ring, Star, Topology
from tests.conftest import Quadratics, small_cnn
from tests.virtual import FULL, Irregular, finish, one_by_one, virtual

RECORD = (0.0, 2.5, 7.0, 12.0)
GRAPHS = [Ring(), Irregular()]
X0 = np.linspace(-1, 1, 4)


def curvature(data: Quadratics) -> tuple[float, float]:
    """mu and L of the worst clients."""
    values = np.stack([np.linalg.eigvalsh(data.hessian(i)) for i in range(data.n)])
    return float(values.min()), float(values.max())


def optimum(data: Quadratics) -> np.ndarray:
    """Of the mean of all losses."""
    best: np.ndarray = np.linalg.lstsq(data.a.reshape(-1, data.d), data.b.reshape(-1), rcond=None)[0]
    return best


def laplacian(run: Any) -> np.ndarray:
    """Of the run's graph, weighted by its rates."""
    lam = np.zeros((len(run.sizes),) * 2)
    (stretch,) = run.graphs.periods
    for (i, j), rate in zip(stretch.edges, stretch.rates, strict=True):
        e = np.zeros(len(lam))
        e[i], e[j] = 1, -1
        lam += rate * np.outer(e, e)
    return lam


def constants(run: Any) -> tuple[float, float]:
    """chi1 and chi2 by their definitions."""
    lam = laplacian(run)
    inverse = np.linalg.pinv(lam)
    (stretch,) = run.graphs.periods
    resistances = [inverse[i, i] + inverse[j, j] - 2 * inverse[i, j] for i, j in stretch.edges]
    return 1 / np.linalg.eigvalsh(lam)[1], max(resistances) / 2


@pytest.mark.parametrize("graph", GRAPHS, ids=lambda g: type(g).__name__)
@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_dadao_is_its_event_loop(graph: Topology, decay: float) -> None:
    data = Quadratics(n=10, m=9)
    mu, smooth = (bound + decay for bound in curvature(data))
    given = (mu, smooth) if decay else (0.0, 0.0)  # or computed
    run = virtual(DADAO(*given, decay), graph, data, Events(12.0, RECORD))
    nu = mu / 2
    q = sqrt(nu / smooth)
    chi1, chi2 = constants(run)
    assert chi1 * chi2 == pytest.approx(0.5, rel=1e-9)
    x, xt, y, yt, z, zt = np.eye(6)  # rows of the flow as the paper writes them
    flow = np.stack(
        [
            q / 8 * (xt - x),
            q / 8 * (x - xt),
            q / 4 * (yt - y),
            -(nu * xt + y + z) / (2 * q),
            q / 4 * (zt - z),
            q / 8 * (z - zt),
        ]
    )

    def compute(i: int, s: np.ndarray) -> np.ndarray:
        x, xt, y, yt, z, zt = s
        u = data.grad(i, x) + decay * x - nu * x - yt
        return np.stack([x - u / (4 * smooth), xt - u / (4 * sqrt(smooth * nu)), y, yt + (q / 4 + 1) * u, z, zt])

    def meet(one: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        m = (one[2] + one[4]) - (other[2] + other[4])
        step = np.zeros((6, len(m)))
        step[4], step[5] = m / 2, 2 * chi1 / q * m
        return one - step, other + step

    start = np.zeros((10, 6, 4))
    start[:, :2] = X0
    expected = one_by_one(run, start, lambda s, dt: expm(flow * dt) @ s, compute, meet)
    found = finish(run)
    # hundreds of events in float64, numbers of order 1 to 10
    for k in range(len(RECORD)):
        np.testing.assert_allclose(found[k], expected[k][:, 0], rtol=0, atol=1e-10)
    final: DADAOPeer = run.stores[0].rows[0]
    np.testing.assert_allclose(torch.stack(final, 1).numpy(), expected[-1], rtol=0, atol=1e-9)
    for dual in (final.z, final.z_tilde):  # edges take from one end what they give to the other
        assert dual.abs().max() > 1e-3
        np.testing.assert_allclose(dual.sum(0), 0, atol=1e-11)


def test_dadao_stays_at_its_fixed_point() -> None:
    data = Quadratics(n=10, m=9)
    mu, smooth = curvature(data)
    run = virtual(DADAO(mu, smooth), Irregular(), data, Events(8.0))
    best = optimum(data)
    y = np.stack([data.grad(i, best) for i in range(10)]) - mu / 2 * best
    x, z = np.tile(best, (10, 1)), -mu / 2 * best - y
    run.state = run.state._replace(states=DADAOPeer(*(torch.from_numpy(v.copy()) for v in (x, x, y, y, z, z))))
    finish(run)
    for found, was in zip(run.stores[0].rows[0], (x, x, y, y, z, z), strict=True):
        np.testing.assert_allclose(found, was, rtol=0, atol=1e-11)


@pytest.mark.parametrize("graph", GRAPHS, ids=lambda g: type(g).__name__)
@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_a2cid2_is_its_event_loop(graph: Topology, momentum: float) -> None:
    data = Quadratics(n=10, m=9)
    run = virtual(A2CiD2(lr=0.1, momentum=momentum, weight_decay=0.2), graph, data, Events(12.0, RECORD))
    chi1, chi2 = constants(run)
    eta = 1 / (2 * sqrt(chi1 * chi2))

    def flow(s: np.ndarray, dt: float) -> np.ndarray:
        mean, half = (s[0] + s[1]) / 2, (s[0] - s[1]) / 2 * exp(-2 * eta * dt)
        return np.stack([mean + half, mean - half, s[2]])

    def compute(i: int, s: np.ndarray) -> np.ndarray:
        v = momentum * s[2] + data.grad(i, s[0]) + 0.2 * s[0]
        return np.stack([s[0] - 0.1 * v, s[1] - 0.1 * v, v])

    def meet(one: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        m = one[0] - other[0]
        step = np.stack([m / 2, m / 2 * sqrt(chi1 / chi2), 0 * m])
        return one - step, other + step

    start = np.tile(np.stack([X0, X0, 0 * X0]), (10, 1, 1))
    expected = one_by_one(run, start, flow, compute, meet)
    for found, loop in zip(finish(run), expected, strict=True):
        np.testing.assert_allclose(found, loop[:, 0], rtol=0, atol=1e-11)


def test_ad_psgd_is_its_event_loop() -> None:
    data = Quadratics(n=10, m=9)
    run = virtual(ADPSGD(lr=0.1, momentum=0.5, weight_decay=0.2), Irregular(), data, Events(12.0, RECORD))

    def compute(i: int, s: np.ndarray) -> np.ndarray:
        x, began, v = s
        v = 0.5 * v + data.grad(i, began) + 0.2 * began
        return np.stack([x - 0.1 * v, x - 0.1 * v, v])

    def meet(one: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        mean = (one[0] + other[0]) / 2
        return np.stack([mean, *one[1:]]), np.stack([mean, *other[1:]])

    start = np.tile(np.stack([X0, X0, 0 * X0]), (10, 1, 1))
    expected = one_by_one(run, start, lambda s, dt: s, compute, meet)
    for found, loop in zip(finish(run), expected, strict=True):
        np.testing.assert_allclose(found, loop[:, 0], rtol=0, atol=1e-11)


@pytest.mark.parametrize("steps", [1, 3])
def test_adom_plus_is_its_matrix_form_and_finds_the_optimum(steps: int) -> None:
    """Written for all peers at once, as the paper does, with the gossip matrix I - W^Q."""
    data = conditioned(6, 4.0)
    w = np.linalg.matrix_power(Ring().mixing(6, 0, 0).w.toarray(), steps)
    gap = 1 - np.sort(np.abs(np.linalg.eigvalsh(Ring().mixing(6, 0, 0).w.toarray())))[-2]
    mu, smooth, decay, rounds = 1.3, 4.3, 0.3, 100
    result = simulate(
        ADOMPlus(mu, smooth, gap, decay, steps),
        data=data.dataset(),
        partition=Natural(),
        model=linear_zero,
        rounds=rounds,
        topology=Ring(),
        local=FULL,
        aggregate=Mean("uniform"),
        engine=Engine(backend="serial", dtype="float64"),
        evaluate=Evaluate(every=rounds),
        trajectory=True,
    )
    assert result.trajectory is not None
    chi, nu = 1 / (1 - (1 - gap) ** (2 * steps)), mu / 2
    tau1, tau2 = 1 / (sqrt(smooth / mu) + 0.5), sqrt(mu / smooth)
    sigma2 = tau2 / (16 * chi)
    sigma1 = 1 / (1 / sigma2 + 0.5)
    eta, alpha, beta, delta = 1 / (smooth * tau2), mu / 2, 1 / (2 * smooth), 1 / (17 * smooth)
    gamma, theta, zeta = nu / (14 * sigma2 * chi**2), nu / (4 * sigma2), 0.5
    x = x_f = np.tile(X0, (6, 1))
    y = y_f = z = z_f = m = np.zeros((6, 4))
    gossip = np.eye(6) - w
    for t in range(30):
        x_g, y_g = tau1 * x + (1 - tau1) * x_f, sigma1 * y + (1 - sigma1) * y_f
        z_g = sigma1 * z + (1 - sigma1) * z_f
        g = np.stack([data.grad(i, x_g[i]) for i in range(6)]) + (decay - nu) * x_g
        # two linear equations in (x, y) of the next round
        system = np.array([[1 + eta * alpha, -eta], [theta, 1 + theta * beta]])
        right = np.stack([x + eta * alpha * x_g - eta * g, y + theta * beta * g - theta / nu * (y_g + z_g)])
        new_x, new_y = np.einsum("ij,jnd->ind", np.linalg.inv(system), right)
        x_f, y_f = x_g + tau2 * (new_x - x), y_g + sigma2 * (new_y - y)
        q = gamma / nu * (y_g + z_g) + m
        z, m, z_f = z + gamma * delta * (z_g - z) - gossip @ q, q - gossip @ q, z_g - zeta * gossip @ (y_g + z_g)
        x, y = new_x, new_y
        np.testing.assert_allclose(result.trajectory[t + 1], x, rtol=0, atol=1e-10)
    hessian = sum(data.hessian(i) for i in range(6)) + 6 * decay * np.eye(4)
    best = np.linalg.solve(hessian, sum(data.a[i].T @ data.b[i] for i in range(6)))
    start, end = np.linalg.norm(result.trajectory[[0, -1]] - best, axis=(1, 2))
    assert end < 0.25 * start


def conjugate(data: Quadratics, i: int, y: np.ndarray, decay: float) -> np.ndarray:
    """Where the gradient of f_i(x) + decay / 2 ||x||^2 is y."""
    best: np.ndarray = np.linalg.solve(data.hessian(i) + decay * np.eye(data.d), y + data.a[i].T @ data.b[i])
    return best


def regularized(data: Quadratics, decay: float) -> np.ndarray:
    """Optimum of the mean of all losses with weight decay."""
    hessian = sum(data.hessian(i) for i in range(data.n)) + data.n * decay * np.eye(data.d)
    best: np.ndarray = np.linalg.solve(hessian, sum(data.a[i].T @ data.b[i] for i in range(data.n)))
    return best


@pytest.mark.parametrize(("graph", "decay"), [(Ring(), 0.0), (Star(), 0.3), (Complete(), 0.0)], ids=str)
def test_msda_is_its_matrix_form_and_finds_the_optimum(graph: Topology, decay: float) -> None:
    """Written for all peers at once, as the paper's Algorithm 2, with the gossip matrix I - W."""
    n, rounds = 10, 60
    data = Quadratics(n=n, m=9)
    mu, smooth = (bound + decay for bound in curvature(data))
    result = simulate(
        MSDA(weight_decay=decay),
        data=data.dataset(),
        partition=Natural(),
        model=linear_zero,
        rounds=rounds,
        topology=graph,
        local=Local(steps=1, batch_size=2),  # dual methods take all samples
        aggregate=Mean("uniform"),
        engine=Engine(backend="serial", dtype="float64"),
        evaluate=Evaluate(every=rounds),
        trajectory=True,
    )
    assert result.trajectory is not None
    mixing = graph.mixing(n, 0, 0)
    gossip = np.eye(n) - mixing.w.toarray()
    gap = 1 - np.sort(np.abs(np.linalg.eigvalsh(np.eye(n) - gossip)))[-2]
    largest, gamma = 2 - gap, gap / (2 - gap)
    exchanges = {"Ring": 3, "Star": 4, "Complete": 1}[type(graph).__name__]
    c1, c3 = (1 - sqrt(gamma)) / (1 + sqrt(gamma)), 2 / ((1 + gamma) * largest)
    c2 = 1e3 if gamma > 1 - 1e-9 else (1 + gamma) / (1 - gamma)  # infinite for one exchange, where it cancels
    assert 1 / sqrt(gamma) - 1 < exchanges <= 1 / sqrt(gamma) + 1e-9
    c1 **= exchanges
    eta, kappa = mu * (1 + c1**2) / (1 + c1) ** 2, smooth / mu
    momentum = ((1 + c1) * sqrt(kappa) - 1 + c1) / ((1 + c1) * sqrt(kappa) + 1 - c1)

    def accelerated(theta: np.ndarray) -> np.ndarray:
        a, b = 1.0, c2
        p, q = theta, c2 * (theta - c3 * gossip @ theta)
        for _ in range(exchanges - 1):
            a, b = b, 2 * c2 * b - a
            p, q = q, 2 * c2 * (q - c3 * gossip @ q) - p
        left: np.ndarray = theta - q / b
        return left

    x = y = np.zeros((n, 4))
    for t in range(30):
        theta = np.stack([conjugate(data, i, x[i], decay) for i in range(n)])
        np.testing.assert_allclose(result.trajectory[t + 1], theta, rtol=0, atol=1e-10)
        new = x - eta * accelerated(theta)
        x, y = (1 + momentum) * new - momentum * y, new
    for final in (result.client(i) for i in range(n)):
        assert final.x.abs().max() > 1e-3
    np.testing.assert_allclose(sum(result.client(i).x for i in range(n)), 0, atol=1e-11)
    best = regularized(data, decay)
    middle, end = np.linalg.norm(result.trajectory[[20, 60]] - best, axis=(1, 2))
    assert end < 1e-2 * middle < 1e-2 * np.linalg.norm(result.trajectory[1] - best)
    assert [r["comm/edges"] for r in result.metrics[1:]] == [exchanges * len(mixing.edges)] * rounds


@pytest.mark.parametrize(("graph", "decay"), [(Ring(), 0.0), (Irregular(), 0.3)], ids=str)
def test_continuized_is_its_event_loop_and_finds_the_optimum(graph: Topology, decay: float) -> None:
    data = Quadratics(n=10, m=9)
    mu, smooth = (bound + decay for bound in curvature(data))
    record = (0.0, 3.0, 9.0, 24.0)
    run = virtual(Continuized(weight_decay=decay), graph, data, Events(24.0, record))
    drawn = virtual(DADAO(weight_decay=decay), graph, data, Events(24.0, record))
    drawn.backend.close()
    for mine, theirs in zip(run.events, drawn.events, strict=True):  # the same meetings, and nothing else
        np.testing.assert_array_equal(mine, theirs[drawn.events.j >= 0])
    chi1, chi2 = constants(run)
    eta, gamma_t = sqrt(mu / (2 * chi1 * chi2 * smooth)), sqrt(smooth * mu * chi1 / (4 * chi2))

    def flow(s: np.ndarray, dt: float) -> np.ndarray:
        mean, half = (s[1] + s[2]) / 2, (s[1] - s[2]) / 2 * exp(-2 * eta * dt)
        return np.stack([s[0], mean + half, mean - half, s[3]])

    def compute(i: int, s: np.ndarray) -> np.ndarray:
        raise AssertionError("peers have no clocks of their own")

    def meet(one: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        one, other = one.copy(), other.copy()
        for s in (one, other):
            s[0] = conjugate(data, int(s[3, 0]), s[1], decay)
        step = np.outer([0, mu / 2, gamma_t, 0], one[0] - other[0])
        return one - step, other + step

    start = np.stack([[X0, 0 * X0, 0 * X0, np.full(4, i)] for i in range(10)])
    expected, found = one_by_one(run, start, flow, compute, meet), finish(run)
    for models, loop in zip(found, expected, strict=True):  # hundreds of events in float64
        np.testing.assert_allclose(models, loop[:, 0], rtol=0, atol=1e-10)
    final = run.stores[0].rows[0]
    np.testing.assert_allclose(torch.stack(final, 1).numpy(), expected[-1][:, :3], rtol=0, atol=1e-10)
    for dual in (final.y, final.y_tilde):
        assert dual.abs().max() > 1e-3
        np.testing.assert_allclose(dual.sum(0), 0, atol=1e-11)
    early, late = (float(np.linalg.norm(models - regularized(data, decay))) for models in found[2:])
    assert late < 0.1 * early


def test_dual_methods_want_least_squares_and_one_symmetric_graph(squares: Dataset) -> None:
    def refused(match: str, **parts: Any) -> None:
        given = {"data": Quadratics(n=8).dataset(), "partition": Natural(), "model": linear_zero, "rounds": 1}
        with pytest.raises(InputError, match=match):
            simulate(**{"algorithm": MSDA(), "topology": Ring(), "schedule": All(), **given, **parts})

    for algorithm, schedule in ((MSDA(mu=1.0, smooth=2.0), All()), (Continuized(mu=1.0, smooth=2.0), Events(2.0))):
        name = type(algorithm).__name__
        images = {"data": squares, "partition": Iid(clients=8), "model": small_cnn}
        match = f"data must be least squares with a linear model without bias for {name}, .* algorithm=dadao"
        refused(match, algorithm=algorithm, schedule=schedule, **images)
    refused("algorithm.mu must be > 0", data=Quadratics(n=8, m=2).dataset())
    refused(
        "topology must not change with the round for MSDA, which is made for one graph", topology=OnePeerExponential()
    )
    refused("topology.weights must give a symmetric W for MSDA", topology=Star(weights="uniform"))


def conditioned(n: int, ratio: float) -> Quadratics:
    """Clients with L = ratio and mu = 1 each, in directions of their own."""
    data = Quadratics(n=n, m=4)
    random = np.random.default_rng(1)
    scales = np.sqrt(np.geomspace(1, ratio, 4))
    data.a = np.stack([scales[:, None] * np.linalg.qr(random.normal(size=(4, 4)))[0] for _ in range(n)])
    return data


def error(run: Any, data: Quadratics) -> list[float]:
    """Mean over peers of the squared distance to the optimum at each recorded time."""
    best = optimum(data)
    return [float(np.square(models - best).sum(1).mean()) for models in finish(run)]


@pytest.mark.slow
def test_dadao_decays_alike_on_every_graph_at_its_minimal_rates() -> None:
    """The error decays like exp(-c sqrt(mu / L) t), c = 0.135 to 0.157 as measured by others on the public code.

    The logarithm's slope between t = 60 and 240, over three seeds; the noise of a fit is about 10 %.
    """
    data, found = conditioned(10, 25.0), []
    for graph in (Ring(), Complete()):
        slopes = []
        for seed in range(3):
            early, late = error(virtual(DADAO(1.0, 25.0), graph, data, Events(240.0, (60.0, 240.0)), seed=seed), data)
            slopes.append(np.log(early / late) / 180 / sqrt(1 / 25))
        found.append(np.mean(slopes))
    assert all(0.11 < c < 0.20 for c in found), found
    assert abs(np.log(found[0] / found[1])) < 0.25, found


def test_dadao_diverges_at_half_of_its_minimal_rates() -> None:
    """chi1 chi2 <= 1/2 is sharp: at half of the rates it is 2."""
    data = conditioned(6, 4.0)
    minimal = virtual(DADAO(1.0, 4.0), Ring(), data, Events(40.0, (4.0, 40.0)))
    rate = float(minimal.graphs.periods[0].rates[0])
    before, after = error(minimal, data)
    assert after < before / 10
    before, after = error(virtual(DADAO(1.0, 4.0), Ring(rates=rate / 2), data, Events(40.0, (4.0, 40.0))), data)
    assert after > 10 * before
