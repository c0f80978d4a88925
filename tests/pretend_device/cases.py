"""What a GPU asks of the engine, on the pretend one: ``tests/test_pretend_device.py`` runs these in a process."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedsim import Engine, Evaluate, Local, Result, simulate
from fedsim.aggregate import Mean, Stack
from fedsim.algorithms.dp_sgd import PrivateSGD
from fedsim.algorithms.fedasync import FedAsync
from fedsim.algorithms.fedavg import FedAvg
from fedsim.algorithms.fedavg_ft import FedAvgFT
from fedsim.assembly.assemble import assemble
from fedsim.assembly.parts import Parts
from fedsim.channel.channel import Channel
from fedsim.channel.lowrank import LowRank
from fedsim.channel.onion import Layer
from fedsim.channel.qsgd import QSGD
from fedsim.channel.randk import RandK
from fedsim.channel.topk import TopK
from fedsim.data import Dataset, Split
from fedsim.errors import ClientError
from fedsim.models import Adapted, mlp
from fedsim.partition import Iid
from fedsim.schedule import All
from fedsim.schedule.delays import Asynchronous
from tests.conftest import images, small_cnn
from tests.pretend_device import Counts

RULES = {"fedavg": FedAvg(lr=0.1), "dp_sgd": PrivateSGD(lr=0.1, clip=1.0, noise_multiplier=1.0)}


def rows(n: int, d: int = 20, tests: int = 40) -> Dataset:
    random = np.random.default_rng(0)
    x, y = random.normal(size=(n + tests, d)).astype(np.float32), random.integers(2, size=n + tests)
    return Dataset("rows", Split(x[:n], y[:n]), Split(x[n:], y[n:]), "classification", 2)


def wide(input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    """A hidden layer that makes an update longer than what is summed at once on the CPU."""
    return mlp(input_shape, outputs, hidden=(1000,))


def counted(
    counts: Counts, *, clients: int = 8, steps: int = 2, rule: str = "fedavg", model: Any = mlp, **more: Any
) -> tuple[int, int]:
    """Launches of the second round of a run, and how often it waits for the device."""
    engine = Engine(backend="serial", device="cuda", **more.pop("engine", {}))
    data = rows(10 * clients, tests=more.pop("tests", 40))
    local, mean = Local(steps=steps, batch_size=5), Mean(weights="uniform")
    parts = Parts(RULES[rule], data, Iid(clients=clients), model, 5, All(), local, mean, engine=engine)
    assembled = assemble(replace(parts, **more), data)
    backend = assembled.start()
    run = assembled.begin(backend, Evaluate(every=100))
    run.step()
    counts.reset()
    run.step()
    found = counts.launches, counts.waits
    counts.reset()
    run.evaluate()
    backend.close()
    return found


def test_a_round_is_one_job_that_is_waited_for_once(counts: Counts) -> None:
    assert {counted(counts, clients=n)[1] for n in (4, 8, 16)} == {1}


@pytest.mark.parametrize("rule", RULES)
def test_local_steps_and_blocks_are_not_waited_for(counts: Counts, rule: str) -> None:
    assert counted(counts, rule=rule, steps=1)[1] == counted(counts, rule=rule, steps=4)[1] == 1
    assert counted(counts, rule=rule, engine={"block": 2})[1] == 1


@pytest.mark.parametrize("rule", RULES)
def test_launches_do_not_grow_with_the_clients_of_a_block(counts: Counts, rule: str) -> None:
    assert counted(counts, rule=rule, clients=4)[0] == counted(counts, rule=rule, clients=16)[0]


def test_launches_do_not_grow_with_the_parameters(counts: Counts) -> None:
    small = counted(counts, model=lambda input_shape, outputs: mlp(input_shape, outputs, hidden=(10,)))
    assert counted(counts, model=wide) == small


@pytest.mark.parametrize(
    "layer", [TopK(ratio=0.1), LowRank(), RandK(ratio=0.1), QSGD()], ids=lambda x: type(x).__name__
)
def test_layers_take_all_clients_at_once(counts: Counts, layer: Any) -> None:
    link = Channel((Layer("one", layer),))
    few, many = (counted(counts, clients=n, channel=link, model=wide) for n in (4, 16))
    assert few[0] == many[0]
    waits = 1 + 3 * isinstance(layer, LowRank)  # for what a factorisation says of itself
    assert few[1] <= waits >= many[1]


def test_an_evaluation_is_waited_for_once_however_many_samples(counts: Counts) -> None:
    counted(counts, tests=40)
    few = counts.launches, counts.times("d2h")
    counted(counts, tests=2000)
    assert (counts.launches, counts.times("d2h")) == few == (few[0], 1)


def test_what_is_small_travels_in_pinned_memory_and_nobody_waits(counts: Counts) -> None:
    counted(counts)
    assert counts.times("h2d-wait") == 0


def run(rule: Any, model: Any, data: Dataset, *, device: str = "cuda", **more: Any) -> Result:
    engine = Engine(backend="serial", device=device, **more.pop("engine", {}))  # type: ignore[arg-type]
    given = {"partition": Iid(clients=6), "schedule": All(), "local": Local(steps=2, batch_size=5), "rounds": 2} | more
    return simulate(rule, data=data, model=model, engine=engine, **given)


def test_numbers_are_those_of_the_cpu() -> None:
    here, there = (run(FedAvg(lr=0.1), small_cnn, images(60), device=d) for d in ("cpu", "cuda"))
    torch.testing.assert_close(here.server.x, there.server.x, rtol=1e-5, atol=1e-6)
    for a, b in zip(here.metrics, there.metrics, strict=True):
        timeless = {name: value for name, value in b.items() if not name.startswith("time/")}
        assert {name: a[name] for name in timeless} == pytest.approx(timeless, rel=1e-4)


def test_noise_is_by_address_whoever_shares_a_block() -> None:
    rule, more = PrivateSGD(lr=0.1, clip=1.0, noise_multiplier=1.0), {"aggregate": Mean(weights="uniform")}
    one, other = (run(rule, mlp, rows(60), engine={"block": b}, **more) for b in (2, 6))
    alone = run(rule, mlp, rows(60), engine={"batching": "loop"}, **more)
    for result in (other, alone):
        torch.testing.assert_close(one.server.x, result.server.x, rtol=1e-5, atol=1e-6)
    assert run(rule, mlp, rows(60), engine={"block": 2}, **more).summary["digest"] == one.summary["digest"]


class Normed(nn.Module):
    """A model with statistics as buffers."""

    def __init__(self, input_shape: tuple[int, ...], outputs: int) -> None:
        super().__init__()
        self.norm, self.head = nn.BatchNorm1d(input_shape[0]), nn.Linear(input_shape[0], outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(x))  # type: ignore[no-any-return]


class Constant(nn.Module):
    """A model with a buffer that nobody writes."""

    def __init__(self, input_shape: tuple[int, ...], outputs: int) -> None:
        super().__init__()
        self.head = nn.Linear(input_shape[0], outputs)
        self.register_buffer("scale", torch.full(input_shape, 0.5))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x * self.scale)  # type: ignore[no-any-return]


class Plain(Constant):
    """The same, as tensors that torch knows nothing of."""

    def __init__(self, input_shape: tuple[int, ...], outputs: int) -> None:
        nn.Module.__init__(self)
        self.head = nn.Linear(input_shape[0], outputs)
        self.scale, self.others = torch.full(input_shape, 0.5), {"shift": [torch.zeros(input_shape)]}

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x * self.scale + self.others["shift"][0])  # type: ignore[no-any-return]


@pytest.mark.parametrize("model", [Constant, Adapted(Normed((20,), 2), batchnorm="frozen")], ids=["constant", "frozen"])
def test_an_asynchronous_server_and_a_model_with_buffers(model: Any) -> None:
    more = {"schedule": Asynchronous(concurrency=3), "aggregate": Stack()}
    assert run(FedAsync(lr=0.1), model, rows(60), **more).status == "finished"


@pytest.mark.parametrize("engine", [{}, {"kernel": "vmap"}, {"batching": "loop"}], ids=str)
def test_tensors_as_plain_attributes_come_along(engine: dict[str, Any]) -> None:
    one, other = (run(FedAvg(lr=0.1), model, rows(60), engine=engine) for model in (Constant, Plain))
    torch.testing.assert_close(one.server.x, other.server.x)


FAR = torch.full((20,), 0.5)


class Elsewhere(Constant):
    """A model that reads a tensor of its file, which nobody can find."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x * FAR)  # type: ignore[no-any-return]


def test_a_tensor_that_nobody_can_find_is_named_in_a_line() -> None:
    with pytest.raises(ClientError, match="register_buffer") as error:
        run(FedAvg(lr=0.1), Elsewhere, rows(60), engine={"batching": "loop"})
    assert "\n" not in str(error.value)


def test_each_client_with_a_model_of_its_own_and_divergence() -> None:
    assert run(FedAvgFT(lr=0.1), mlp, rows(60), evaluate=Evaluate(clients=True)).status == "finished"
    assert run(FedAvg(lr=1e30), wide, rows(60), rounds=9, engine={"block": 2}).status == "diverged"
