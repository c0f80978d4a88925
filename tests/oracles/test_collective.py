"""Methods in which all clients act as one: Adam, 1-bit Adam, PowerSGD, EC-SGD-DIANA, SGD, against numpy loops.

The loops below are written from the methods' update rules and use nothing of fedsim. Tolerances: 1e-10 is the rounding
of a few dozen float64 steps on numbers of order 10; a sign or a kept entry could flip only at a tie to 15 digits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedsim import Engine, Evaluate, Local, Mean, Result, simulate
from fedsim.algorithms.ec_sgd_diana import ECSGDDiana
from fedsim.algorithms.onebit_adam import OneBitAdam, ServerState
from fedsim.algorithms.powersgd import PowerSGD
from fedsim.algorithms.sgd import SGD
from fedsim.channel.channel import Channel
from fedsim.channel.ef14 import EF14
from fedsim.channel.onion import Layer, Onion
from fedsim.channel.randk import RandK
from fedsim.channel.sign import Sign
from fedsim.channel.topk import TopK
from fedsim.data import Dataset, Split
from fedsim.errors import InputError
from fedsim.models import linear_zero, mlp
from fedsim.partition import Iid, Natural
from fedsim.schedule import All, Bernoulli, Cohorts, Uniform
from fedsim.types import Message, Round
from tests.conftest import Quadratics
from tests.oracles.feedback_loops import top
from tests.oracles.loops import start
from tests.oracles.test_feedback import PARTIAL, distances, draws, optimum, scheduled
from tests.oracles.test_feedback import SEED as FEEDBACK_SEED

FLOAT64 = 1e-10
SEED = FEEDBACK_SEED
Vector = np.ndarray
Codec = Callable[[Vector, int, int], Vector]  # (v, client, round) -> C(v)
UP = (Layer("ef14", EF14(), ("momentum",)), Layer("sign", Sign("l2"), ("momentum",)))


def down(chunk: int | None) -> tuple[Layer, ...]:
    return (Layer("sign", Sign("l2", chunk), ("momentum",)),)


def run(
    algorithm: Any,
    problem: Any,
    rounds: int,
    *,
    channel: Sequence[Layer] = (),
    downlink: Sequence[Layer] = (),
    schedule: Any = All(),  # noqa: B008 - a frozen dataclass
    model: Any = linear_zero,
    encode: bool = False,
    local: Local = Local(steps=1, batch_size="full"),  # noqa: B008
    seed: int = SEED,
    **engine: Any,
) -> Result:
    return simulate(
        algorithm,
        data=problem.dataset(),
        partition=Natural(),
        model=model,
        rounds=rounds,
        schedule=schedule,
        local=local,
        aggregate=Mean(weights="uniform"),
        channel=Channel(tuple(channel), encode),
        downlink=Channel(tuple(downlink), encode),
        engine=Engine(**{"backend": "serial", "dtype": "float64", **engine}),
        evaluate=Evaluate(every=10**6),
        trajectory=True,
        seed=seed,
    )


def mean_grad(problem: Any, x: Vector) -> Vector:
    return np.mean([problem.grad(i, x) for i in range(problem.n)], axis=0)


def assert_follows(got: Result, want: Sequence[Vector], moved: float = 0.1) -> None:
    assert got.status == "finished", got.message
    np.testing.assert_allclose(got.trajectory, np.stack(want), rtol=FLOAT64, atol=FLOAT64)
    assert np.ptp(np.stack(want), axis=0).max() > moved, "nothing moved: the test proves nothing"


# Adam and 1-bit Adam


def signs(v: Vector, chunk: int) -> Vector:
    """DeepSpeed's one bit and a scale per chunk: the root mean square times the sign, which of 0 is +1."""
    out = np.empty_like(v)
    for at in range(0, len(v), chunk):
        part = v[at : at + chunk]
        out[at : at + chunk] = np.linalg.norm(part) / math.sqrt(len(part)) * np.where(part >= 0, 1, -1)
    return out


def onebit_loop(
    problem: Quadratics,
    rounds: int,
    warmup: int,
    *,
    lr: float,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    wd: float = 0.0,
    decay: float = 1.0,
    chunk: int = 10**6,
    floor: float = 0.01,
) -> list[Vector]:
    n, x = problem.n, start(problem)
    m, v, e, big = np.zeros_like(x), np.zeros_like(x), np.zeros((n, len(x))), np.zeros_like(x)
    out = [x]
    for t in range(rounds):
        g = [problem.grad(i, x) for i in range(n)]
        moving = np.ones(len(x), dtype=bool)
        if t < warmup:
            m = b1 * m + (1 - b1) * sum(g) / n
            v = b2 * v + (1 - b2) * (sum(g) / n) ** 2
        else:
            sent = np.zeros((n, len(x)))
            for i in range(n):
                whole = b1 * m + (1 - b1) * g[i] + e[i]
                sent[i] = signs(whole, len(x))
                e[i] = whole - sent[i]
            total = sent.mean(0) + big
            m = signs(total, chunk)
            big = total - m
            moving = np.sqrt(v) > floor * math.sqrt(np.mean(v))
        x = x - lr * decay**t * (moving * m / (np.sqrt(v) + eps) + wd * x)
        out.append(x)
    return out


PLAIN = {"lr": 0.05}
OTHER = {"lr": 0.02, "lr_decay": 0.99, "beta1": 0.7, "beta2": 0.9, "eps": 1e-3, "weight_decay": 0.1}
NAMES = {"lr_decay": "decay", "beta1": "b1", "beta2": "b2", "weight_decay": "wd"}


def as_loop(keys: dict[str, float]) -> dict[str, float]:
    return {NAMES.get(key, key): value for key, value in keys.items()}


@pytest.mark.parametrize("batching", ["loop", "auto"])
@pytest.mark.parametrize("keys", [PLAIN, OTHER], ids=["defaults", "all_keys"])
def test_adam_equals_the_loop(keys: dict[str, float], batching: str) -> None:
    problem = Quadratics(n=4, m=20, d=8)
    want = onebit_loop(problem, 50, 50, **as_loop(keys))
    assert_follows(run(OneBitAdam(**keys), problem, 50, batching=batching), want)


def test_adams_first_step_is_uncorrected() -> None:
    """m = 0.1 g and v = 0.001 g^2: the step is lr 0.1 / sqrt(0.001) sign(g), 3.16 times Adam's with correction."""
    problem = Quadratics(n=4, m=20, d=8)
    x = run(OneBitAdam(lr=0.01), problem, 1).trajectory
    want = -0.01 * 0.1 / math.sqrt(0.001) * np.sign(mean_grad(problem, x[0]))
    np.testing.assert_allclose(x[1] - x[0], want, rtol=1e-6)  # eps = 1e-8 beside roots of order 0.1


@pytest.mark.parametrize("chunk", [None, 8, 5, 1])
@pytest.mark.parametrize(("keys", "batching"), [(PLAIN, "loop"), (OTHER, "auto")], ids=["defaults", "all_keys"])
def test_onebit_adam_equals_the_loop(keys: dict[str, float], batching: str, chunk: int | None) -> None:
    """Twelve rounds of Adam, then both error memories and a scale a chunk; with and without real bytes."""
    problem = Quadratics(n=4, m=40, d=19)
    rule = OneBitAdam(**keys, warmup=12, chunk=chunk)
    want = onebit_loop(problem, 45, 12, chunk=chunk or 19, **as_loop(keys))
    for encode in (False, True):
        got = run(rule, problem, 45, channel=UP, downlink=down(chunk), batching=batching, encode=encode)
        assert_follows(got, want)
    adam = onebit_loop(problem, 45, 45, **as_loop(keys))
    assert np.abs(want[-1] - adam[-1]).max() > 1e-3, "one bit changes nothing: the test proves nothing"


@pytest.mark.parametrize("warmup", [1, 44, 45, 46])
def test_the_switch_may_fall_on_the_first_and_on_the_last_round(warmup: int) -> None:
    problem = Quadratics(n=3, m=30, d=6)
    got = run(OneBitAdam(lr=0.01, warmup=warmup), problem, 45, channel=UP, downlink=down(None))
    assert_follows(got, onebit_loop(problem, 45, warmup, lr=0.01))


class Silent(Quadratics):
    """Entries 2 and 5 have no gradient, entry 7 nearly none."""

    def __init__(self) -> None:
        super().__init__(n=3, m=30, d=9)
        self.a[:, :, [2, 5]] = 0
        self.a[:, :, 7] *= 1e-3


def test_entries_without_a_gradient_stay_after_the_warm_up() -> None:
    problem = Silent()
    want = onebit_loop(problem, 60, 10, lr=0.01)
    got = run(OneBitAdam(lr=0.01, warmup=10), problem, 60, channel=UP, downlink=down(None))
    assert_follows(got, want)
    x = got.trajectory
    np.testing.assert_array_equal(x[:, [2, 5]], np.broadcast_to(x[0, [2, 5]], (61, 2)))
    assert np.ptp(x[:10, 7]) > 0
    np.testing.assert_array_equal(x[10:, 7], np.full(51, x[10, 7]))
    free = run(OneBitAdam(lr=0.01, warmup=10, floor=0.0), problem, 60, channel=UP, downlink=down(None))
    assert_follows(free, onebit_loop(problem, 60, 10, lr=0.01, floor=0.0))
    assert np.ptp(free.trajectory[10:, 7]) > 10, "the floor is not needed here: the test proves nothing"


def field(name: str, shape: Sequence[int], itemsize: int = 4) -> int:
    """Bytes of a dense field: length of the name, name, dtype, counts, dimensions of four bytes, values."""
    return 1 + len(name) + 2 + 4 * len(shape) + math.prod(shape) * itemsize


def varint(n: int) -> int:
    return max(1, -(-n.bit_length() // 7))


@pytest.mark.parametrize("chunk", [None, 500])
def test_onebit_adam_counts_every_byte(chunk: int | None) -> None:
    """float32: d floats in the warm-up, then a bit an entry and a scale a chunk; x travels until momenta do."""
    d, n, warmup = 4000, 3, 3
    problem = Quadratics(n=n, m=2, d=d)
    got = run(
        OneBitAdam(lr=1e-3, warmup=warmup, chunk=chunk),
        problem,
        6,
        channel=UP,
        downlink=down(chunk),
        dtype="float32",
        encode=True,
    )
    one = 1 + field("momentum", [1]) + 1 + varint(d) + d // 8
    chunks = 1 if chunk is None else d // chunk
    back = 1 + field("momentum", [chunks]) + 1 + varint(d) + d // 8
    up = [record["comm/uplink_bytes"] for record in got.metrics[1:]]
    assert up == [n * (1 + field("gradient", [d]))] * warmup + [n * one] * (6 - warmup)
    received = [record["comm/downlink_bytes"] for record in got.metrics[1:]]
    assert received == [n * (1 + field("x", [d]))] * (warmup + 1) + [n * back] * (6 - warmup - 1)
    assert up[0] / up[-1] > 29  # 32 but for the headers
    assert received[0] / received[-1] > (29 if chunk is None else 27)  # and seven more scales


def test_all_clients_must_take_part(tmp_path: Path) -> None:
    problem = Quadratics(n=3)
    some = [Uniform(cohort=2), Bernoulli(rate=0.9), scheduled([[0, 1, 2], [0, 1]] * 2, tmp_path)]
    for rule in (OneBitAdam(lr=0.1), PowerSGD(lr=0.1)):
        for schedule in some:
            must = f"^schedule must let all 3 clients take part in every round for {type(rule).__name__}, .*schedule=all"
            with pytest.raises(InputError, match=must) as caught:  # and before Ray is started
                run(rule, problem, 2, schedule=schedule, backend="ray", actors=1)
            assert "\n" not in str(caught.value)
        for every in (Uniform(cohort=3), Bernoulli(rate=1.0), scheduled([[0, 1, 2]] * 2, tmp_path)):
            assert run(rule, problem, 2, schedule=every).status == "finished"


WRONG: list[tuple[Any, dict[str, Any], str]] = [
    (OneBitAdam, {"lr": 0.0}, "lr must be > 0, got 0.0"),
    (OneBitAdam, {"lr_decay": 1.1}, r"lr_decay must be in \(0, 1\]"),
    (OneBitAdam, {"beta1": 1.0}, r"beta1 must be in \[0, 1\), got 1.0"),
    (OneBitAdam, {"beta2": -0.1}, r"beta2 must be in \[0, 1\)"),
    (OneBitAdam, {"eps": 0.0}, "eps must be > 0"),
    (OneBitAdam, {"weight_decay": -1.0}, "weight_decay must be >= 0"),
    (OneBitAdam, {"warmup": 0}, "warmup must be >= 1, or null for Adam, got 0"),
    (OneBitAdam, {"chunk": 0}, "chunk must be >= 1, or null for one scale, got 0"),
    (OneBitAdam, {"floor": -0.1}, "floor must be >= 0"),
    (PowerSGD, {"lr": -1.0}, "lr must be > 0"),
    (PowerSGD, {"rank": 0}, "rank must be >= 1, got 0"),
    (PowerSGD, {"lr_decay": 0.0}, r"lr_decay must be in \(0, 1\]"),
    (PowerSGD, {"momentum": 1.0}, r"momentum must be in \[0, 1\)"),
    (ECSGDDiana, {"lr": 0.0}, "lr must be > 0"),
    (ECSGDDiana, {"alpha": 0.0}, r"alpha must be in \(0, 1\], got 0.0"),
    (ECSGDDiana, {"lr_decay": 2.0}, r"lr_decay must be in \(0, 1\]"),
    (SGD, {"lr": 0.0}, "lr must be > 0"),
    (SGD, {"lr_decay": 0.0}, r"lr_decay must be in \(0, 1\]"),
    (SGD, {"sigma": -0.5}, "sigma must be >= 0, got -0.5"),
]


@pytest.mark.parametrize(("kind", "keys", "message"), WRONG)
def test_wrong_options_are_refused(kind: Any, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        kind(**{"lr": 0.1, **keys})


# The bar of 1-bit Adam: a small net on dense standardised inputs


class WithoutMemory(OneBitAdam):
    """The server forgets what it did not send."""

    @property
    def onion(self) -> Onion:
        return Onion("momentum", (Layer("sign", Sign("l2", self.chunk)),))


class MovingVariance(OneBitAdam):
    """The variance goes on from one-bit momenta."""

    def server(self, server: ServerState, received: Message, rnd: Round) -> ServerState:
        new = super().server(server, received, rnd)
        v = new.v if self.warm(rnd) else self.beta2 * new.v + (1 - self.beta2) * new.m.square()
        return new._replace(v=v)


def teacher(seed: int) -> Dataset:
    """Four classes of dense Gaussian inputs, told apart by a random network with one hidden layer."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(1600, 24)).astype(np.float32)
    scores = np.tanh(x @ random.normal(size=(24, 16))) @ random.normal(size=(16, 4))
    return Dataset("teacher", Split(x, scores.argmax(1)), None, "classification", 4)


def curve(rule: Any, seed: int, channel: Sequence[Layer], downlink: Sequence[Layer], rounds: int = 240) -> Result:
    return simulate(
        rule,
        data=teacher(seed),
        partition=Iid(clients=8),
        model=two_layers,
        rounds=rounds,
        local=Local(steps=1, batch_size=32),
        aggregate=Mean(weights="uniform"),
        channel=Channel(tuple(channel)),
        downlink=Channel(tuple(downlink)),
        engine=Engine(backend="serial"),
        evaluate=Evaluate(every=10**6),
        seed=seed,
    )


def two_layers(input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    return mlp(input_shape, outputs, hidden=(96,))


def late_loss(result: Result, last: int = 60) -> float:
    """Mean training loss of the last rounds, or infinite."""
    if result.status != "finished":
        return math.inf
    return float(np.mean([record["train/loss"] for record in result.metrics[-last:]]))
