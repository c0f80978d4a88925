"""Servers that do not wait, against event loops in numpy; limits in which they wait after all."""

from __future__ import annotations

from dataclasses import replace
from heapq import heappop, heappush
from math import exp
from typing import Any

import numpy as np
import pytest
import torch

from fedsim import Engine, Evaluate, Local, simulate
from fedsim.aggregate import Mean, Stack
from fedsim.algorithms.fedasync import FedAsync
from fedsim.algorithms.fedavg import FedAvg
from fedsim.algorithms.fedbuff import FedBuff
from fedsim.algorithms.kit.staleness import discounts
from fedsim.assembly.assemble import assemble
from fedsim.assembly.parts import Parts
from fedsim.channel import wire
from fedsim.channel.channel import Channel
from fedsim.channel.ef14 import EF14
from fedsim.channel.onion import Layer
from fedsim.channel.topk import TopK
from fedsim.errors import Diverged, InputError
from fedsim.ground.rng import numpy_stream
from fedsim.models import linear_zero
from fedsim.partition import Natural
from fedsim.runs.arrivals import Arrivals
from fedsim.schedule.delays import Asynchronous
from tests.conftest import Quadratics

SERIAL = Engine(backend="serial", dtype="float64")
X0 = np.linspace(-1, 1, 4)
FIELDS = [FedAsync(lr=0.1, rho=0.3), FedBuff(lr=0.1, buffer=3, server_lr=0.7, server_momentum=0.4)]
SPREAD = Asynchronous(concurrency=4, step_s=0.5, speed_sigma=0.8, jitter_sigma=0.2, latency_s=0.1)


def asynchronous(
    algorithm: Any,
    schedule: Asynchronous,
    rounds: int,
    *,
    data: Quadratics | None = None,
    local: Local = Local(steps=2, batch_size="full"),  # noqa: B008
    engine: Engine = SERIAL,
    channel: Channel = Channel(),  # noqa: B008
) -> Arrivals:
    """A run before its first start; the caller closes ``run.backend``."""
    dataset = (data or Quadratics(n=9)).dataset()
    how: dict[str, Any] = {"local": local, "aggregate": Stack(), "channel": channel, "engine": engine, "seed": 5}
    assembled = assemble(Parts(algorithm, dataset, Natural(), linear_zero, rounds, schedule, **how), dataset)
    run = assembled.begin(assembled.start(), Evaluate(every=1000))
    assert isinstance(run, Arrivals)
    return run


def finish(run: Arrivals) -> np.ndarray:
    """The server's model [rounds, d] after each of its steps."""
    points: list[np.ndarray] = []
    while run.done < run.rounds:
        run.step()
        points.append(run.point().numpy())
    run.backend.close()
    return np.stack(points)


def loop(algorithm: Any, schedule: Asynchronous, rounds: int, data: Quadratics, steps: int = 2) -> np.ndarray:
    """One arrival after the other; times are distinct, so that whoever arrives is replaced at once."""
    seed, x, v, version, started = 5, X0.copy(), np.zeros(4), 0, 0
    prox = getattr(algorithm, "rho", 0.0)
    heap: list[Any] = []
    busy: set[int] = set()
    counts = dict.fromkeys(range(data.n), 0)
    buffer: list[np.ndarray] = []
    points: list[np.ndarray] = []

    def start(now: float) -> None:
        nonlocal started
        rng = numpy_stream(seed, "start", started)
        if 2 * len(busy) < data.n:
            i = int(rng.integers(data.n))
            while i in busy:
                i = int(rng.integers(data.n))
        else:
            i = int(rng.choice(sorted(set(range(data.n)) - busy)))
        y = x.copy()
        for _ in range(steps):
            y = y - algorithm.lr * (data.grad(i, y) + prox * (y - x))
        slow = exp(-schedule.speed_sigma * numpy_stream(seed, "delay.speed", i).standard_normal())
        slow *= exp(schedule.jitter_sigma * numpy_stream(seed, "delay.jitter", i, counts[i]).standard_normal())
        heappush(heap, (now + schedule.latency_s + steps * schedule.step_s * slow, started, i, version, x.copy(), y))
        busy.add(i)
        counts[i] += 1
        started += 1

    for _ in range(schedule.concurrency):
        start(0.0)
    while len(points) < rounds:
        now, _, i, began, from_x, y = heappop(heap)
        busy.remove(i)
        factor = (1 + version - began) ** -0.5
        if isinstance(algorithm, FedAsync):
            alpha = algorithm.alpha * factor
            x = (1 - alpha) * x + alpha * y
            version += 1
            points.append(x)
        else:
            buffer.append(factor * (y - from_x))
            if len(buffer) == algorithm.buffer:
                v = algorithm.server_momentum * v + np.mean(buffer, axis=0)
                x = x + algorithm.server_lr * v
                version += 1
                points.append(x)
                buffer.clear()
        start(now)
    return np.stack(points)


@pytest.mark.parametrize("algorithm", FIELDS, ids=lambda a: type(a).__name__)
@pytest.mark.parametrize("concurrency", [1, 4, 9])
def test_servers_are_their_event_loops(algorithm: Any, concurrency: int) -> None:
    schedule, data = replace(SPREAD, concurrency=concurrency), Quadratics(n=9)
    if concurrency == 9 and isinstance(algorithm, FedBuff):
        algorithm = replace(algorithm, buffer=5)
    run = asynchronous(algorithm, schedule, 40, data=data)
    np.testing.assert_allclose(finish(run), loop(algorithm, schedule, 40, data), rtol=0, atol=1e-10)
    assert run.state.now > 0
    assert run.recent[-1]["round"] == 40


def test_a_buffer_of_all_clients_that_are_equally_fast_is_fedavg() -> None:
    """They arrive together, the server steps, they begin together: rounds, with FedAvg's minibatches."""
    data = Quadratics(n=6)
    for local in (Local(steps=2, batch_size="full"), Local(epochs=1, batch_size=3)):
        lr: dict[str, Any] = {"lr": 0.05, "server_lr": 0.8, "server_momentum": 0.5}
        run = asynchronous(FedBuff(**lr, buffer=6), Asynchronous(6, speed_sigma=0.0), 5, data=data, local=local)
        rounds = simulate(
            FedAvg(**lr),
            data=data.dataset(),
            partition=Natural(),
            model=linear_zero,
            rounds=5,
            local=local,
            aggregate=Mean("uniform"),
            engine=SERIAL,
            seed=5,
            trajectory=True,
        )
        assert rounds.trajectory is not None
        np.testing.assert_allclose(finish(run), rounds.trajectory[1:], rtol=0, atol=1e-12)
        assert run.recent[-1]["async/staleness_max"] == 0
        seconds = 5 * local.count(7)  # rounds, local steps of one second
        assert run.state.now == pytest.approx(seconds)


def test_one_client_at_a_time_without_discount_is_sequential_training() -> None:
    """alpha = 1: the server's model is the last client's."""
    data = Quadratics(n=5)
    run = asynchronous(FedAsync(lr=0.1, alpha=1.0, rho=0.0), Asynchronous(1), 6, data=data)
    x, order = X0.copy(), []
    for number in range(6):
        order.append(int(numpy_stream(5, "start", number).integers(5)))
        for _ in range(2):
            x = x - 0.1 * data.grad(order[-1], x)
    np.testing.assert_allclose(finish(run)[-1], x, rtol=0, atol=1e-12)
    assert len(set(order)) > 1


def test_discounts() -> None:
    s = torch.tensor([0.0, 3.0, 8.0], dtype=torch.float64)
    assert discounts("constant", 1.0, 1.0, s).tolist() == [1, 1, 1]
    np.testing.assert_allclose(discounts("polynomial", 0.5, 1.0, s), [1, 0.5, 1 / 3])
    np.testing.assert_allclose(discounts("hinge", 10.0, 4.0, s), [1, 1, 1 / 41])


def test_links_take_the_time_of_their_bytes_and_bytes_are_counted() -> None:
    """Equally fast clients without computing time: what remains are the links."""
    plain = wire.encoded_size({"update": torch.zeros(4, dtype=torch.float64)})
    down = wire.encoded_size({"x": torch.zeros(4, dtype=torch.float64)})
    schedule = Asynchronous(3, step_s=0.0, downlink_mbps=2.0, uplink_mbps=0.5, latency_s=0.25)
    run = asynchronous(FedBuff(lr=0.1, buffer=3), schedule, 4)
    finish(run)
    assert run.state.now == pytest.approx(4 * (0.25 + 8e-6 * (down / 2 + plain / 0.5)))
    assert run.traffic.totals == {"comm/uplink_total_bytes": 12 * plain, "comm/downlink_total_bytes": 12 * down}
    sparse = Channel((Layer("ef14", EF14()), Layer("topk", TopK(k=1))))
    small = asynchronous(FedBuff(lr=0.1, buffer=3), schedule, 4, channel=sparse)
    finish(small)
    size = small.traffic.totals["comm/uplink_total_bytes"] // 12
    assert size < plain
    assert small.traffic.totals["comm/uplink_total_bytes"] == 12 * size
    assert small.state.now == pytest.approx(4 * (0.25 + 8e-6 * (down / 2 + size / 0.5)))
    assert small.recent[-1]["comm/uplink_ratio"] == pytest.approx(plain / size)


def test_links_remember_with_error_feedback() -> None:
    """Top-K of all entries loses nothing; of one entry, it gets nearer to the exact run with EF14's memory."""
    schedule, data = replace(SPREAD, concurrency=3), Quadratics(n=4)
    rule = FedBuff(lr=0.05, buffer=2, discount="constant")
    layers: list[tuple[Layer, ...]] = [(), (Layer("topk", TopK(k=4)),), (Layer("topk", TopK(k=1)),)]
    layers.append((Layer("ef14", EF14()), Layer("topk", TopK(k=1))))
    exact, whole, lossy, remembered = (
        finish(asynchronous(rule, schedule, 25, data=data, channel=Channel(each)))[-1] for each in layers
    )
    np.testing.assert_allclose(whole, exact, rtol=0, atol=1e-12)
    assert np.linalg.norm(remembered - exact) < 0.5 * np.linalg.norm(lossy - exact)


def test_a_snapshot_is_all_that_later_steps_depend_on() -> None:
    """Taken while clients are at work, some of them computed and some not."""
    sparse = Channel((Layer("ef14", EF14()), Layer("topk", TopK(k=1))))
    rule, local = FedBuff(lr=0.05, buffer=3), Local(epochs=1, batch_size=3)
    whole = asynchronous(rule, SPREAD, 12, local=local, channel=sparse)
    points = finish(whole)
    half = asynchronous(rule, SPREAD, 12, local=local, channel=sparse)
    for _ in range(5):
        half.step()
    half.backend.close()
    assert {flight.ready for flight in half.state.flights} == {True, False}
    rest = asynchronous(rule, SPREAD, 12, local=local, channel=sparse)
    fresh = rest.snapshot()
    rest.restore(half.snapshot())
    np.testing.assert_array_equal(finish(rest), points[5:])
    assert rest.digest() == whole.digest()
    assert rest.traffic == whole.traffic
    assert len(fresh["flights"].ids) == 0


@pytest.mark.parametrize("algorithm", FIELDS, ids=lambda a: type(a).__name__)
def test_where_nobody_says_how_many_work_at_once_all_of_few_do(algorithm: Any) -> None:
    all_of_them, unsaid = replace(SPREAD, concurrency=9), replace(SPREAD, concurrency="auto")
    points = [finish(asynchronous(algorithm, schedule, 10)) for schedule in (all_of_them, unsaid)]
    np.testing.assert_array_equal(*points)


def test_what_cannot_be() -> None:
    with pytest.raises(InputError, match="concurrency"):
        Asynchronous(10).check(9, 1)
    for wrong in ({"concurrency": 0}, {"step_s": -1.0}, {"uplink_mbps": 0.0}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            Asynchronous(**({"concurrency": 1} | wrong))
    for made in (
        lambda: FedAsync(lr=0.1, alpha=2.0),
        lambda: FedBuff(lr=0.1, buffer=0),
        lambda: FedBuff(lr=0.1, a=0.0),
    ):
        with pytest.raises(InputError):
            made()
    run = asynchronous(FedAsync(lr=1e200), SPREAD, 50)
    with pytest.raises(Diverged):
        finish(run)
    run.backend.close()


@pytest.mark.slow
def test_actors_give_the_bits_of_one_process() -> None:
    digests = set()
    for engine in (SERIAL, replace(SERIAL, backend="ray", actors=2)):
        run = asynchronous(FedBuff(lr=0.05, buffer=3), SPREAD, 8, local=Local(epochs=1, batch_size=3), engine=engine)
        finish(run)
        digests.add(run.digest())
    assert len(digests) == 1
