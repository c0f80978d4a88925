"""Users' own code is computed every time it is called, wherever it stands: it may do another thing each time.

Such a part is not what fedsim asks for (a loss, a method and a layer are functions of what they are given), but a
recording of it would go on with what it did once, without a word.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import CellType, FunctionType
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fedsim import Engine, Result, simulate
from fedsim.algorithms.dpsgd import DPSGD
from fedsim.algorithms.fedavg import FedAvg
from fedsim.algorithms.relaxed import Relaxed
from fedsim.callbacks import Callback
from fedsim.channel.channel import Channel
from fedsim.channel.onion import Layer
from fedsim.channel.topk import TopK
from fedsim.data import Dataset, Split
from fedsim.data.losses import TASKS, Task
from fedsim.ground.own_code import all_built_in
from fedsim.kernels import oracle
from fedsim.local import Local
from fedsim.models import mlp
from fedsim.objective import Objective
from fedsim.partition import Blocks
from fedsim.pool.block import ClientSide
from fedsim.schedule import All
from fedsim.topology import Ring
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


class Annealed:
    def compute(self, outputs: Tensor, y: Tensor) -> Tensor:
        return annealed(outputs, y)


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
    given: dict[str, Any] = {"algorithm": FedAvg(lr=0.1), "task": "classification", "model": mlp, "schedule": All()}
    given |= {"local": Local(epochs=2, batch_size=3)} | more
    return simulate(
        given.pop("algorithm"),
        data=Dataset("rows", Split(x, y), None, given.pop("task"), 3),
        partition=Blocks(clients=7),
        rounds=12,
        engine=Engine(backend="serial", jobs=1),
        seed=1,
        **given,
    )


OWN: dict[str, Callable[[], dict[str, Any]]] = {
    "loss": lambda: {"task": Task(annealed)},
    "bound method as a loss": lambda: {"task": Task(Annealed().compute)},
    "part of a bound method as a loss": lambda: {"task": Task(partial(Annealed().compute))},
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
    assert calls > (QUIET if part.endswith("loss") else 5) + 4, "it did another thing now and then"
    assert found.summary["digest"] == plain.summary["digest"]


def test_what_is_known_to_be_fedsims_is_looked_into() -> None:
    class Mine(torch.nn.Module):
        pass

    def around(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return loss

    made = FunctionType((lambda: around).__code__, {"__name__": "fedsim.made"}, closure=(CellType(around),))
    for part in (
        FedAvg(lr=0.1),
        Relaxed(FedAvg(lr=0.1)),
        torch.nn.CrossEntropyLoss(),
        torch.nn.Sequential(torch.nn.ReLU()),
        F.cross_entropy,
        partial(F.cross_entropy, reduction="none"),
        *(task for task in TASKS.values()),
    ):
        assert all_built_in(part), part
    for part in (Mine(), torch.nn.Sequential(Mine()), around, partial(around), Annealed().compute, made, {"x": [Mine]}):
        assert not all_built_in(part), part


class Scaled(torch.nn.Module):
    """A frozen parameter of which something is computed."""

    def __init__(self, input_shape: tuple[int, ...], outputs: int):
        super().__init__()
        self.layer = torch.nn.Linear(input_shape[0], outputs)
        self.p = torch.nn.Parameter(torch.zeros(outputs), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x) * self.p.exp()
        return out


@dataclass
class Writes(Callback):
    """Writes into every such parameter there is, from a round on."""

    first: int = 8

    def begin(self, run: Any) -> None:
        """Nothing."""

    def record(self, record: Mapping[str, float]) -> None:
        for model in [one for one in gc.get_objects() if type(one) is Scaled]:
            with torch.no_grad():
                model.p.fill_(0.1 * max(0, record["round"] - self.first))

    def end(self, summary: Mapping[str, Any]) -> None:
        """Nothing."""


@pytest.mark.parametrize("batch_size", ["full", 3])
def test_what_somebody_writes_into_a_constant_is_seen(batch_size: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"algorithm": DPSGD(lr=0.1), "topology": Ring(), "local": Local(epochs=1, batch_size=batch_size)}
    monkeypatch.setattr(oracle, "STEPS", 3)
    found = run(model=Scaled, callbacks=[Writes()], **given)
    gc.collect()
    monkeypatch.setattr(ClientSide, "replays", property(lambda self: False, lambda self, value: None), raising=False)
    monkeypatch.setattr(oracle, "STEPS", 10**9)
    plain = run(model=Scaled, callbacks=[Writes()], **given)
    assert found.summary["digest"] == plain.summary["digest"]


@dataclass(frozen=True)
class Counting(All):
    """Everybody, but for every fifth time that it is asked."""

    asked: list[int] = field(default_factory=list)

    def clients(self, index: int, population: int, seed: int) -> tuple[int, ...]:
        self.asked.append(index)
        return tuple(range(population - (len(self.asked) % 5 == 0)))


def test_a_schedule_is_asked_once_for_each_round_in_their_order() -> None:
    schedule = Counting()
    run(algorithm=DPSGD(lr=0.1), topology=Ring(), local=Local(steps=1, batch_size="full"), schedule=schedule)
    assert schedule.asked[-12:] == list(range(12))
    assert schedule.asked.count(11) == schedule.asked[:-12].count(11) + 1
