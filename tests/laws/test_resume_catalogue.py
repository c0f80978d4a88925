"""Four rounds are two rounds, a checkpoint, and two more in a fresh run: to the bit, for every algorithm and layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import nn

from fedsim import Evaluate, Local
from fedsim.assembly.assemble import assemble
from fedsim.assembly.parts import Parts
from fedsim.data import Dataset
from fedsim.models import mlp
from fedsim.record.checkpoint import Checkpointing, Checkpoints
from tests.laws import test_catalogue as algorithms
from tests.laws import test_channel_catalogue as channels
from tests.laws.test_catalogue import ALGORITHMS, Channel
from tests.test_checkpoint import same


def small(input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    return mlp(input_shape, outputs, (8,))


def fresh(name: str, data: Dataset, channel: Channel, downlink: Channel) -> Any:
    """A run of four rounds, before the first."""
    given = algorithms.problem(name, data, small)
    parts = Parts(
        algorithms.working(name),
        **given,
        rounds=4,
        schedule=algorithms.cohorts(name),
        local=Local(steps=2, batch_size=8),
        aggregate=algorithms.aggregate(name),
        topology=algorithms.graph(name),
        channel=channel,
        downlink=downlink,
        seed=1,
    )
    assembled = assemble(parts, given["data"])
    return assembled.begin(assembled.start(), Evaluate(every=4))


def rounds(run: Any, count: int) -> list[dict[str, float]]:
    """What so many rounds recorded, times left out."""
    records = [run.step() for _ in range(count)]
    return [{k: v for k, v in record.items() if k == "time/virtual_s" or k[:5] != "time/"} for record in records]


def check(first: Any, second: Any, folder: Path, after: int = 2) -> None:
    rounds(first, after)
    checkpoints = Checkpoints(folder, Checkpointing(seconds=0))
    assert checkpoints.save(first.done, first.snapshot(), {})
    found = checkpoints.newest()
    assert found is not None
    before = second.snapshot()
    second.restore(found.into(before))
    assert not same(first.snapshot(), before)
    assert rounds(second, 2) == rounds(first, 2)
    assert same(second.snapshot(), first.snapshot())
    assert second.digest() == first.digest()


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_goes_on_to_the_same_bits(name: str, squares: Dataset, tmp_path: Path) -> None:
    up, down = (Channel(layers.get(name, ())) for layers in (algorithms.UPLINKS, algorithms.DOWNLINKS))
    check(fresh(name, squares, up, down), fresh(name, squares, up, down), tmp_path)


@pytest.mark.parametrize("name", ["powersgd", "diff2_bvr", "onebit_adam"])
def test_methods_whose_rounds_take_turns_go_on_from_the_middle(name: str, squares: Dataset, tmp_path: Path) -> None:
    up, down = (Channel(layers.get(name, ())) for layers in (algorithms.UPLINKS, algorithms.DOWNLINKS))
    check(fresh(name, squares, up, down), fresh(name, squares, up, down), tmp_path, after=1)


@pytest.mark.parametrize("name", [name for name in channels.STACKS if name in channels.INSIDE or "+" in name])
def test_every_layer_that_remembers_goes_on_to_the_same_bits(name: str, squares: Dataset, tmp_path: Path) -> None:
    up = channels.channel(name)
    check(fresh("fedavg", squares, up, up), fresh("fedavg", squares, up, up), tmp_path)
