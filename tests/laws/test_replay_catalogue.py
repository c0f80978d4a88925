"""Every algorithm of the catalogue: replayed local work has the bits of local work done with Python in each round."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from fedsim import Engine, Local, Result, simulate
from fedsim.channel.channel import Channel
from fedsim.data import Dataset, Split
from fedsim.kernels import oracle, replaying
from fedsim.models import linear_zero, mlp
from fedsim.partition import Blocks
from fedsim.pool import recurring
from fedsim.pool.block import ClientSide
from fedsim.schedule import All, Uniform
from tests.laws.test_catalogue import (
    ALGORITHMS,
    DOWNLINKS,
    DUAL,
    UPLINKS,
    aggregate,
    cohorts,
    everything,
    graph,
    working,
)

ROUNDS = 8
"""Three until a recording, one that is compared, three that are replayed; peers begin to count in the second round."""


MINIBATCHES = {
    "full": Local(steps=2, batch_size="full"),  # the same in every round: whole local loops are replayed
    "shuffled": Local(epochs=2, batch_size=3),  # others of the same shape: whole local loops too
    "padded": Local(epochs=2, batch_size=4),  # six samples in minibatches of four and two: gradients are replayed
}


SERIAL = Engine(backend="serial", jobs=1)


def run(name: str, minibatches: str = "full", rounds: int = ROUNDS, engine: Engine = SERIAL, **more: Any) -> Result:
    """Seven clients of six samples, all in every round; padded ones with another learning rate in each round."""
    random = np.random.default_rng(0)
    x = random.normal(size=(42, 5)).astype(np.float32)
    least = name in DUAL
    y = random.normal(size=42).astype(np.float32) if least else random.integers(3, size=42)
    data = Dataset("rows", Split(x, y), None, "least_squares" if least else "classification", 1 if least else 3)
    schedule, rule = cohorts(name), working(name)
    if minibatches == "padded" and hasattr(rule, "lr_decay"):
        rule = replace(rule, lr_decay=0.9)
    return simulate(
        rule,
        data=data,
        partition=Blocks(clients=7),
        model=linear_zero if least else mlp,
        rounds=rounds,
        schedule=All() if isinstance(schedule, Uniform) else schedule,
        topology=graph(name),
        local=MINIBATCHES[minibatches],
        aggregate=aggregate(name),
        channel=Channel(UPLINKS.get(name, ())),
        downlink=Channel(DOWNLINKS.get(name, ())),
        engine=engine,
        seed=1,
        **more,
    )


@pytest.mark.parametrize("minibatches", MINIBATCHES)
@pytest.mark.parametrize("name", ALGORITHMS)
def test_replayed_work_has_the_bits_of_work_with_python(
    name: str, minibatches: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    replayed: dict[type, list[bool]] = {}
    call = replaying.Replay.__call__

    def counted(self: replaying.Replay, *given: Any) -> Any:
        replayed.setdefault(type(self), []).append(self.trusted)
        return call(self, *given)

    monkeypatch.setattr(replaying.Replay, "__call__", counted)
    monkeypatch.setattr(oracle, "STEPS", 3)
    found = run(name, minibatches)
    monkeypatch.setattr(ClientSide, "replays", property(lambda self: False, lambda self, value: None), raising=False)
    monkeypatch.setattr(oracle, "STEPS", 10**9)
    seen = {kind: list(trusted) for kind, trusted in replayed.items()}
    plain = run(name, minibatches)
    assert found.summary["digest"] == plain.summary["digest"]
    for one, other in zip(everything(found), everything(plain), strict=True):
        assert torch.equal(one, other)
    losses = [[record.get("train/loss") for record in result.metrics] for result in (found, plain)]
    assert losses[0] == losses[1]
    if name in ("dpsgd", "dfedavg", "fedavg", "gradient_tracking", "scaffold"):
        kind = replaying.Replay if minibatches == "padded" else recurring.RoundReplay
        assert seen[kind][-3:] == [True] * 3, "it is fast"
