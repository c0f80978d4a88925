"""Users' own code is computed every time it is called, wherever it stands: it may do another thing each time.

Such a part is not what fedsim asks for (a loss, a method and a layer are functions of what they are given), but a
recording of it would go on with what it did once, without a word.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch.nn.functional as F
from torch import Tensor

from fedsim import Engine, Result, simulate
from fedsim.algorithms.fedavg import FedAvg
from fedsim.algorithms.relaxed import Relaxed
from fedsim.channel.channel import Channel
from fedsim.channel.onion import Layer
from fedsim.channel.topk import TopK
from fedsim.data import Dataset, Split
from fedsim.data.losses import Task
from fedsim.kernels import oracle
from fedsim.local import Local
from fedsim.models import mlp
from fedsim.objective import Objective
from fedsim.partition import Blocks
from fedsim.pool.block import ClientSide
from fedsim.schedule import All
from fedsim.types import Message, Round

calls = 0
QUIET = 40
"""Calls of the loss in which nothing changes: those before the run, which compare kernels, and the first ones in it."""


def other(quiet: int = 5) -> float:
    """Grows by a tenth every fourth call, from some call on."""
    global calls
    calls += 1
    return 1 + 0.1 * (max(0, calls - quiet) // 4)


def annealed(outputs: Tensor, y: Tensor) -> Tensor:
    each = F.cross_entropy(outputs.flatten(0, -2), y.flatten(), reduction="none")
    return other(QUIET) * each.view(y.shape)


@dataclass(frozen=True)
class Own(FedAvg):
    def local(self, obj: Objective, client: tuple[()], got: Message, rnd: Round) -> tuple[Message, tuple[()]]:
        message, client = super().local(obj, client, got, rnd)
        return {"update": other() * message["update"]}, client


@dataclass(frozen=True)
class Loud(TopK):
    traits: ClassVar[Any] = TopK.traits

    def __call__(self, v: Tensor, link: tuple[()], noise: Any, send: Any) -> Any:
        return super().__call__(other() * v, link, noise, send)


def run(**more: Any) -> Result:
    global calls
    calls = 0
    random = np.random.default_rng(0)
    x, y = random.normal(size=(42, 5)).astype(np.float32), random.integers(3, size=42)
    given: dict[str, Any] = {"algorithm": FedAvg(lr=0.1), "task": "classification"} | more
    return simulate(
        given.pop("algorithm"),
        data=Dataset("rows", Split(x, y), None, given.pop("task"), 3),
        partition=Blocks(clients=7),
        model=mlp,
        rounds=12,
        schedule=All(),
        local=Local(epochs=2, batch_size=3),
        engine=Engine(backend="serial", jobs=1),
        seed=1,
        **given,
    )


OWN: dict[str, Callable[[], dict[str, Any]]] = {
    "loss": lambda: {"task": Task(annealed)},
    "method": lambda: {"algorithm": Own(lr=0.1)},
    "method in a wrapper": lambda: {"algorithm": Relaxed(Own(lr=0.1))},
    "layer": lambda: {"channel": Channel((Layer("loud", Loud(ratio=0.5)),))},
}


@pytest.mark.parametrize("part", OWN)
def test_own_code_that_counts_its_calls_has_the_numbers_of_each_call(
    part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(**OWN[part]())  # what is tried before a run is remembered by some tests' sessions: both others find it so
    monkeypatch.setattr(oracle, "STEPS", 3)
    found = run(**OWN[part]())
    monkeypatch.setattr(ClientSide, "replays", property(lambda self: False, lambda self, value: None), raising=False)
    monkeypatch.setattr(oracle, "STEPS", 10**9)
    plain = run(**OWN[part]())
    assert calls > (QUIET if part == "loss" else 5) + 4, "it did another thing now and then"
    assert found.summary["digest"] == plain.summary["digest"]
