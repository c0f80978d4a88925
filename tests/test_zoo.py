"""A stranger's model trains with its own gradients, measured in its own evaluation mode, or is refused in one line.

The oracle is FedAvg written here: copies of the module, ``loss.backward()``, a weighted mean. float64 leaves rounding
of some hundred sums of numbers of order one, 1e-10.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fedsim import Engine, Local, simulate
from fedsim.algorithms.fedavg import FedAvg
from fedsim.data import Dataset, Split
from fedsim.errors import InputError
from fedsim.models import build
from fedsim.partition import Natural
from tests.zoo import F_IN, LENGTH, NUMBERS, TOKENS, VOCABULARY, K

SIZES, LR, ROUNDS = (7, 4, 9), 0.3, 3
OWNER = np.repeat(np.arange(len(SIZES)), SIZES)
ZOO = {**NUMBERS, **TOKENS}
ENGINES: dict[str, dict[str, Any]] = {
    "auto": {},
    "loop": {"batching": "loop"},
    "vmap": {"kernel": "vmap"},
    "stacked": {"kernel": "stacked"},
}


def problem(name: str) -> Dataset:
    random = np.random.default_rng(5)
    n = len(OWNER)
    x = random.integers(0, VOCABULARY, (n, LENGTH)) if name in TOKENS else random.normal(size=(n, F_IN))
    return Dataset("zoo", Split(x, random.integers(0, K, n), OWNER), None, "classification", K)


def by_hand(start: nn.Module, data: Dataset) -> tuple[list[torch.Tensor], list[float]]:
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
            model, mine = at(training=True), torch.from_numpy(OWNER == client)
            with torch.enable_grad():
                F.cross_entropy(model(x[mine]), y[mine]).backward()
            for m, p in zip(mean, model.parameters(), strict=True):
                g = torch.zeros_like(p) if p.grad is None else p.grad.to_dense() if p.grad.is_sparse else p.grad
                m += (p.detach() - LR * g) * n / len(y)
        values = mean
        measure()
    return values, losses


def run(name: str, factory: Callable[[], nn.Module], **engine: Any) -> Any:
    return simulate(
        FedAvg(lr=LR),
        data=problem(name),
        partition=Natural(),
        model=factory,
        rounds=ROUNDS,
        local=Local(batch_size="full"),
        engine=Engine(backend="serial", dtype="float64", **engine),
    )


@pytest.mark.filterwarnings("ignore")  # torch warns of old hooks and of hooks that see no input gradient
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ZOO)
def test_right_or_refused(name: str, engine: str) -> None:
    factory, becomes = ZOO[name]
    before = torch.is_grad_enabled()
    try:
        result = run(name, factory, **ENGINES[engine])
    except InputError as error:
        assert "\n" not in str(error)
        if engine in ("vmap", "stacked"):
            return  # a kernel asked for, which the model has not
        assert becomes != "right", str(error)
        assert becomes in str(error)
        return
    finally:
        assert torch.is_grad_enabled() == before
        torch.set_grad_enabled(before)
    assert becomes == "right"
    data = problem(name)
    start = build(factory, data.input_shape, K, {}, 0, tokens=name in TOKENS)
    values, losses = by_hand(start, data)
    assert not result.model.training
    for p, want in zip(result.model.parameters(), values, strict=True):
        torch.testing.assert_close(p.detach(), want, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose([record["eval/loss"] for record in result.metrics], losses, rtol=1e-10)
