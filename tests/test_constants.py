"""Frozen parameters are held once: by the copies of a worker, by the actors of a node, and to the same bits."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn

from fedsim import Engine, models
from fedsim.algorithms.fedavg import FedAvg
from fedsim.assembly.assemble import assemble
from fedsim.assembly.parts import Parts
from fedsim.ground.layout import Layout
from fedsim.models import Adapted, LoRA, cnn
from fedsim.partition import Iid
from fedsim.pool.constants import arrays, lent, put_back, without
from fedsim.pool.worker import Setup, Worker
from tests.oracles.test_trained_part import body_frozen, head_frozen, numbers, run

pytestmark = pytest.mark.xdist_group("ray")
ray = pytest.importorskip("ray")


@pytest.fixture(scope="module")
def _cluster() -> Iterator[None]:
    ray.init(address="local", num_cpus=3, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


def adapters() -> nn.Module:
    torch.manual_seed(1)
    return Adapted(cnn((2, 8, 8), 3, (4, 5), 3, 1, (9,)), lora=LoRA(rank=2), train=("body.0.*",))((2, 8, 8), 3)


def setup_of(model: nn.Module, dtype: str) -> Setup:
    parts = Parts(FedAvg(lr=0.1), numbers(), Iid(clients=3), model, 1, engine=Engine(backend="serial", dtype=dtype))
    return assemble(parts).prepared.setup


def where(model: nn.Module, *, frozen: bool) -> list[int]:
    return [p.data_ptr() for p in model.parameters() if p.requires_grad != frozen]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_copies_of_a_worker_share_them_and_nothing_else(dtype: str) -> None:
    setup = setup_of(body_frozen(), dtype)
    worker = Worker(setup)
    trained, measured = worker.oracles[0].model, worker.evaluators[0].model
    assert len(where(trained, frozen=True)) == 3
    assert where(trained, frozen=True) == where(measured, frozen=True) == where(setup.models[0], frozen=True)
    assert not set(where(trained, frozen=False)) & set(where(measured, frozen=False))


def test_a_model_travels_without_them_and_they_lie_where_they_were_put() -> None:
    model = body_frozen()
    x = torch.randn(2, 2, 8, 8)
    want, held = model(x), {name: array.copy() for name, array in arrays(model).items()}
    bare = without(model)
    assert Layout.of(bare) == Layout.of(model)
    assert all(p.numel() == 0 for p in bare.parameters() if not p.requires_grad)
    put_back(bare, held)
    assert torch.equal(bare(x), want)
    large = {name for name, array in held.items() if array.ctypes.data % 64 == 0}
    for name, p in bare.named_parameters():
        assert name not in large or p.data_ptr() == held[name].ctypes.data
    before = where(model, frozen=True)
    with lent(model, held):
        assert torch.equal(model(x), want)
    assert torch.equal(model(x), want)
    assert not {array.ctypes.data for array in held.values()} & set(where(model, frozen=True))
    assert before != where(model, frozen=True)


def test_a_model_without_frozen_parameters_is_itself() -> None:
    model = models.build(cnn, (2, 8, 8), 3, {"kernel": 3, "padding": 1}, 0)
    assert without(model) is model


def test_tied_frozen_weights_stay_tied() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2))
    model[1].weight = model[0].weight
    model = Adapted(model, freeze=("0.weight",))((3,), 2)
    bare = without(model)
    put_back(bare, arrays(model))
    assert bare.get_parameter("0.weight") is bare.get_parameter("1.weight")


@pytest.mark.usefixtures("_cluster")
@pytest.mark.parametrize("batching", ["auto", "loop"])
@pytest.mark.parametrize("make", [body_frozen, head_frozen, adapters])
def test_one_and_three_actors_give_the_serial_bits(make: Callable[[], nn.Module], batching: str) -> None:
    model, data = make(), numbers()
    serial = run(model, data, engine={"batching": batching, "jobs": 4})
    for actors in (1, 3):
        how = {"backend": "ray", "actors": actors, "batching": batching, "jobs": 4}
        pooled = run(model, data, engine=how)
        assert pooled.summary["digest"] == serial.summary["digest"]
        assert pooled.model is not None
        for a, b in zip(pooled.model.parameters(), serial.model.parameters(), strict=True):  # type: ignore[union-attr]
            assert torch.equal(a, b)


BACKBONE = """
import os, sys, torch
from pathlib import Path
from torch import nn
import ray
from fedsim import Engine, Local, simulate
from fedsim.algorithms.fedavg import FedAvg
from fedsim.callbacks.base import Callback
from fedsim.models import Adapted
from fedsim.partition import Iid
from tests.oracles.test_trained_part import numbers

WIDTH = int(sys.argv[1])

def backbone(input_shape, outputs) -> nn.Module:
    layers = nn.Sequential(nn.Flatten(), nn.Linear(128, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU())
    return nn.Sequential(layers, nn.Linear(WIDTH, outputs))

def pss():  # of this process and its actors, object store included
    total, found = 0, 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_bytes()
            mine = int(folder.name) == os.getpid() or b"_Actor" in line
            if mine:
                found += 1
                rows = (folder / "smaps_rollup").read_text().splitlines()
                total += sum(int(row.split()[1]) for row in rows if row.startswith("Pss:"))
        except OSError:
            pass
    return found, total / 1024

class Look(Callback):
    def record(self, record):
        if record["round"] == 2:
            print("PSS", *pss(), flush=True)

engine = Engine(backend="ray", actors=3, jobs=4)
simulate(FedAvg(lr=0.1), data=numbers(), partition=Iid(clients=6), model=Adapted(backbone, train=("1.*",)), rounds=2,
         engine=engine, callbacks=[Look()])
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/smaps_rollup"), reason="needs Linux's proportional sizes")
def test_a_backbone_of_50_megabytes_is_in_memory_once() -> None:
    """The driver and three actors: their memory, shared pages counted once, grows by the backbone once."""
    found = []
    for width in (16, 3620):  # 3620 * 3620 numbers of 4 bytes are 50 MB
        done = subprocess.run(
            [sys.executable, "-c", BACKBONE, str(width)], capture_output=True, text=True, check=True, timeout=600
        )
        line = next(line for line in done.stdout.splitlines() if line.startswith("PSS"))
        assert int(line.split()[1]) == 4, "this process and three actors"
        found.append(float(line.split()[2]))
    assert 45 < found[1] - found[0] < 100, found  # once it is 50, once for each process 200
