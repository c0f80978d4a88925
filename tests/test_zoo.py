"""A stranger's model trains with its own gradients, measured in its own evaluation mode, or is refused in one line.

The oracle is FedAvg written here: copies of the module, ``loss.backward()``, a weighted mean. float64 leaves rounding
of some hundred sums of numbers of order one, 1e-10.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedsim import Engine, Local, simulate
from fedsim.algorithms.fedavg import FedAvg
from fedsim.data import Dataset, Split
from fedsim.errors import ClientError, InputError
from fedsim.models import build
from fedsim.objective import Objective
from fedsim.partition import Natural
from fedsim.types import Batch, Message, Round
from tests.zoo import F_IN, LENGTH, NUMBERS, TOKENS, VOCABULARY, K, Net

SIZES, LR, ROUNDS = (7, 4, 9), 0.3, 3
RULE = FedAvg(lr=LR)
OWNER = np.repeat(np.arange(len(SIZES)), SIZES)
ZOO = {**NUMBERS, **TOKENS}
ENGINES: dict[str, dict[str, Any]] = {
    "auto": {},
    "loop": {"batching": "loop"},
    "vmap": {"kernel": "vmap"},
    "stacked": {"kernel": "stacked"},
}


def problem(name: str) -> Dataset:
    draw = np.random.default_rng(5)
    n = len(OWNER)
    x = draw.integers(0, VOCABULARY, (n, LENGTH)) if name in TOKENS else draw.normal(size=(n, F_IN))
    return Dataset("zoo", Split(x, draw.integers(0, K, n), OWNER), None, "classification", K)


def by_hand(start: nn.Module, data: Dataset) -> tuple[list[Tensor], list[float]]:
    """Parameters after the rounds, and the loss in evaluation mode before and after each."""
    x, y = torch.from_numpy(data.train.x), torch.from_numpy(data.train.y)
    values = [p.detach().double() for p in start.parameters()]
    losses = []

    def at(training: bool) -> nn.Module:
        model = copy.deepcopy(start).double()
        model.train(training)
        for p, v in zip(model.parameters(), values, strict=True):
            p.data.copy_(v)
        return model

    def measure() -> None:
        with torch.no_grad():
            losses.append(float(F.cross_entropy(at(training=False)(x), y)))

    measure()
    for _ in range(ROUNDS):
        mean = [torch.zeros_like(v) for v in values]
        for client, n in enumerate(SIZES):
            model, mine = at(training=True), torch.from_numpy(client == OWNER)
            with torch.enable_grad():
                F.cross_entropy(model(x[mine]), y[mine]).backward()
            for m, p in zip(mean, model.parameters(), strict=True):
                g = torch.zeros_like(p) if p.grad is None else p.grad.to_dense() if p.grad.is_sparse else p.grad
                m += (p.detach() - LR * g) * n / len(y)
        values = mean
        measure()
    return values, losses


def run(name: str, factory: Callable[[], nn.Module], rule: FedAvg = RULE, rounds: int = ROUNDS, **engine: Any) -> Any:
    return simulate(
        rule,
        data=problem(name),
        partition=Natural(),
        model=factory,
        rounds=rounds,
        local=Local(batch_size="full"),
        engine=Engine(backend="serial", dtype="float64", **engine),
    )


@pytest.mark.filterwarnings("ignore")  # torch warns of old hooks and of hooks that see no input gradient
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ZOO)
def test_right_or_refused(name: str, engine: str) -> None:
    factory, becomes = ZOO[name]
    before, refusal, result = torch.is_grad_enabled(), "", None
    try:
        result = run(name, factory, **ENGINES[engine])
    except InputError as error:
        refusal = str(error)
    mode = torch.is_grad_enabled()
    torch.set_grad_enabled(before)
    assert mode == before
    assert "\n" not in refusal
    if refusal and engine in ("vmap", "stacked"):
        return  # a kernel asked for, which the model has not
    if becomes != "right":
        assert becomes in refusal
        return
    assert not refusal
    data = problem(name)
    start = build(factory, data.input_shape, K, {}, 0, tokens=name in TOKENS)
    values, losses = by_hand(start, data)
    assert not result.model.training
    for p, want in zip(result.model.parameters(), values, strict=True):
        torch.testing.assert_close(p.detach(), want, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose([record["eval/loss"] for record in result.metrics], losses, rtol=1e-10)


class AtWork(Net):
    """Does something only when it meets sample 1 in training mode, which no trial at the start does."""

    def __init__(self, act: Callable[[Any], Any]) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(2))
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        if self.training and float(x.detach().abs().max()) > 50:
            self.act(self)
        return self.head(torch.tanh(self.body(x)))  # type: ignore[no-any-return]


def clip(model: Any) -> None:
    with torch.no_grad():
        model.body.weight.mul_(0.9)


ACTS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "torch": (lambda m: torch.rand(1), r"model AtWork or the algorithm draws random numbers \(torch\)"),
    "numpy": (lambda m: np.random.rand(), r"\(numpy.random\)"),  # noqa: NPY002
    "python": (lambda m: random.random(), r"\(random\)"),
    "buffer": (lambda m: m.seen.add_(1), "model AtWork changes its buffer seen"),
    "new_buffer": (lambda m: setattr(m, "seen", m.seen + 1), "changes its buffer seen"),
    "buffer_data": (lambda m: m.seen.data.add_(1), "changes its buffer seen"),
    "parameter": (clip, "writes into its parameter body.weight"),
}


@pytest.mark.parametrize("act", ACTS)
def test_what_no_trial_meets_is_seen_at_work(act: str) -> None:
    data = problem("plain_tensor")
    data.train.x[1] = 100.0
    do, message = ACTS[act]
    with pytest.raises(ClientError, match=message):
        simulate(
            RULE,
            data=data,
            partition=Natural(),
            model=lambda: AtWork(do),
            rounds=1,
            local=Local(batch_size="full"),
            engine=Engine(backend="serial", batching="loop"),
        )


RIGHT = [name for name, (_, becomes) in ZOO.items() if becomes == "right"]


@dataclass(frozen=True)
class Clips(FedAvg):
    """Sends sums of clipped gradients at x, and of differences between those at x and at x / 2."""

    def local(self, obj: Objective, client: Any, got: Message, rnd: Round) -> tuple[Message, Any]:
        x = got["x"]

        def step(carry: Tensor, batch: Batch) -> Tensor:
            return obj.clipped_sum(x, batch, 0.4) + obj.clipped_sum(x, batch, 0.1, 0.5 * x)

        return {"update": obj.run(step, x)}, ()


@dataclass(frozen=True)
class Adds(FedAvg):
    """Sends the gradient of the loss plus half the squared outputs."""

    def local(self, obj: Objective, client: Any, got: Message, rnd: Round) -> tuple[Message, Any]:
        def halves(batch: Batch) -> tuple[Tensor]:
            return (torch.full(batch.y.shape, 0.5, dtype=x.dtype),)

        x = got["x"]
        more = obj.plus(lambda out, features, y, w: w * out.square().sum(-1), halves)
        return {"update": obj.run(lambda _, batch: more.grad(x, batch), x)}, ()


def gradient(start: nn.Module, scale: float, loss: Callable[[nn.Module], Tensor]) -> Tensor:
    """By plain autograd, at ``scale`` times the model's parameters."""
    model = copy.deepcopy(start).double().train()
    for p in model.parameters():
        p.data *= scale
    with torch.enable_grad():
        loss(model).backward()  # type: ignore[no-untyped-call]
    grads = [torch.zeros_like(p) if p.grad is None else p.grad.to_dense() for p in model.parameters()]
    return torch.cat([g.reshape(-1) for g in grads])


def clipped(start: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    total = torch.zeros(())
    for i in range(len(y)):
        one = [
            gradient(start, scale, lambda m, i=i: F.cross_entropy(m(x[i : i + 1]), y[i : i + 1])) for scale in (1, 0.5)
        ]
        for g, bound in ((one[0], 0.4), (one[0] - one[1], 0.1)):
            total = total + g * min(1.0, bound / max(float(g.norm()), 1e-300))
    return total


def with_term(start: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return gradient(start, 1, lambda m: F.cross_entropy(m(x), y) + 0.5 * m(x).square().sum(1).mean())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["clipped", "term"])
@pytest.mark.parametrize("name", [name for name in RIGHT if name not in ("own_train",)])
def test_other_paths_than_a_step(name: str, kind: str) -> None:
    rule, truth = {"clipped": (Clips(lr=1.0), clipped), "term": (Adds(lr=1.0), with_term)}[kind]
    data = problem(name)
    result = run(name, ZOO[name][0], rule=rule, rounds=1)
    start = build(ZOO[name][0], data.input_shape, K, {}, 0, tokens=name in TOKENS)
    x, y = torch.from_numpy(data.train.x), torch.from_numpy(data.train.y)
    want = torch.cat([p.detach().double().reshape(-1) for p in start.parameters()])
    for client, n in enumerate(SIZES):
        mine = torch.from_numpy(client == OWNER)
        want = want + truth(start, x[mine], y[mine]) * n / len(y)
    torch.testing.assert_close(result.server.x, want, rtol=1e-9, atol=1e-9)
