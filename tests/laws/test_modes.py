"""Whatever the method, its local steps see the model in training mode, and everything is measured in evaluation mode.

A model that falls silent in evaluation mode trains to the same bits and has the loss of a model that says nothing.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedsim import Engine, Evaluate, Local, Result, simulate
from fedsim.channel.channel import Channel
from fedsim.data import Dataset
from fedsim.models import BodyHead, linear_zero
from tests.conftest import small_cnn
from tests.laws.test_catalogue import (
    ALGORITHMS,
    DOWNLINKS,
    DUAL,
    UPLINKS,
    aggregate,
    cohorts,
    everything,
    graph,
    problem,
    working,
)

CLASSES = 4


class Silent(BodyHead):
    """Gives zeros in evaluation mode."""

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        return out if self.training else out * 0.0


def silent(input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    plain: Any = small_cnn(input_shape, outputs)
    return Silent(plain.body, plain.head)


class SilentLinear(nn.Linear):
    """The same of a linear model without bias, at zero."""

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        return out if self.training else out * 0.0


def silent_linear(input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    layer = SilentLinear(input_shape[0], outputs, bias=False)
    nn.init.zeros_(layer.weight)
    return layer


def run(name: str, data: Dataset, *, mute: bool, **engine: Any) -> Result:
    dual = name in DUAL
    model = (silent_linear if mute else linear_zero) if dual else (silent if mute else small_cnn)
    return simulate(
        working(name),
        **{**problem(name, data), "model": model},
        rounds=2,
        schedule=cohorts(name),
        topology=graph(name),
        local=Local(steps=2, batch_size=8),
        aggregate=aggregate(name),
        channel=Channel(UPLINKS.get(name, ())),
        downlink=Channel(DOWNLINKS.get(name, ())),
        evaluate=Evaluate(clients=True),
        engine=Engine(backend="serial", **engine),
    )


def losses(result: Result) -> list[tuple[str, float]]:
    """Every loss over many samples that was measured."""
    found = [(tag, v) for record in result.metrics for tag, v in record.items() if tag.startswith("eval/")]
    return [(tag, v) for tag, v in found if tag == "eval/loss" or "peer_loss" in tag]


@pytest.mark.parametrize("name", ALGORITHMS)
def test_training_in_training_mode_measuring_in_evaluation_mode(name: str, squares: Dataset) -> None:
    spoken, mute = (run(name, squares, mute=m) for m in (False, True))
    for a, b in zip(everything(spoken), everything(mute), strict=True):
        assert torch.equal(a, b)
    want = losses(spoken)[0][1] if name in DUAL else math.log(CLASSES)  # these begin at zero: the same as silence
    assert losses(mute)
    for tag, got in losses(mute):
        assert got == pytest.approx(want, rel=1e-6), tag  # float32
    if mute.model is not None:
        assert not mute.model.training


@pytest.mark.parametrize("name", ["fedavg", "fedavg_ft", "fedproto", "dpsgd", "a2cid2", "fedasync"])
@pytest.mark.parametrize("engine", [{"batching": "loop"}, {"kernel": "vmap"}], ids=str)
def test_other_kernels(name: str, engine: dict[str, Any], squares: Dataset) -> None:
    spoken, mute = (run(name, squares, mute=m, **engine) for m in (False, True))
    for a, b in zip(everything(spoken), everything(mute), strict=True):
        assert torch.equal(a, b)
    for tag, got in losses(mute):
        assert got == pytest.approx(math.log(CLASSES), rel=1e-6), tag


def test_the_training_objective_too_is_measured_in_evaluation_mode(squares: Dataset) -> None:
    result = simulate(
        working("fedavg"), **{**problem("fedavg", squares), "model": silent}, rounds=1, evaluate=Evaluate(gradient=True)
    )
    for record in result.metrics:
        assert record["eval/train_loss"] == pytest.approx(math.log(CLASSES), rel=1e-6)
        assert record["eval/grad_norm2"] == 0
