"""Ray gives the bits of the serial backend, with any number of actors, and after losing one."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fedsim import Engine, Evaluate, Local, Result, simulate
from fedsim.aggregate import Stack
from fedsim.algorithms.fedavg import FedAvg, FedAvgServer
from fedsim.algorithms.fedgh import FedGH
from fedsim.data import Dataset
from fedsim.errors import ClientError, InputError
from fedsim.models import cnn, mlp
from fedsim.objective import Objective
from fedsim.partition import Dirichlet
from fedsim.schedule import Uniform
from fedsim.types import Message, Round
from tests.laws import test_channel_catalogue as channels
from tests.laws.test_catalogue import ALGORITHMS, run

pytestmark = pytest.mark.xdist_group("ray")  # one worker starts one Ray for the file
ray = pytest.importorskip("ray")
ray_start = pytest.importorskip("fedsim.pool.ray_start")


@pytest.fixture(scope="module", autouse=True)
def _cluster() -> Iterator[None]:
    """One local Ray for the file, so that each test pays for its actors only."""
    ray.init(address="local", num_cpus=3, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


FEW = ("fedavg", "scaffold", "fedspeed")  # no state, state with two fields of messages, state with two gradients a step
MANY = [pytest.param(name, marks=[] if name in FEW else pytest.mark.slow) for name in ALGORITHMS]


@pytest.mark.parametrize("name", MANY)
def test_one_and_three_actors_equal_serial(name: str, squares: Dataset) -> None:
    serial = run(name, squares, jobs=4)
    for actors in (1, 3):
        pooled = run(name, squares, backend="ray", actors=actors, jobs=4)
        assert pooled.summary["digest"] == serial.summary["digest"]
        for a, b in zip(pooled.metrics, serial.metrics, strict=True):
            timeless = [{k: v for k, v in r.items() if not k.startswith("time/")} for r in (a, b)]
            assert timeless[0] == timeless[1]


@pytest.mark.parametrize("actors", [pytest.param(1, marks=pytest.mark.slow), 3])
@pytest.mark.parametrize("name", ["econtrol", pytest.param("qsgd", marks=pytest.mark.slow)])
def test_layers_of_the_channel_give_the_serial_bits(name: str, actors: int) -> None:
    serial, pooled = (channels.run(name, jobs=3, **how) for how in ({}, {"backend": "ray", "actors": actors}))
    assert pooled.summary["digest"] == serial.summary["digest"]
    assert channels.sent(pooled) == channels.sent(serial)
    for a, b in zip(channels.everything(pooled), channels.everything(serial), strict=True):
        assert torch.equal(a, b)


def test_several_architectures_give_the_serial_bits(squares: Dataset) -> None:
    """FedGH: three bodies, one shape of head; the server trains on every client's own message, in client order."""
    bodies = [
        functools.partial(cnn, channels=(3, 4), kernel=3, hidden=(8,)),
        functools.partial(mlp, hidden=(9, 8)),
        functools.partial(cnn, channels=(2, 5), kernel=3, hidden=(8,)),
    ]

    def result(**engine: Any) -> Result:
        return simulate(
            FedGH(lr=0.1, header_lr=0.1),
            data=squares,
            partition=Dirichlet(clients=8, alpha=0.5, min_samples=2),
            model=bodies,
            rounds=3,
            schedule=Uniform(cohort=6),
            local=Local(epochs=1, batch_size=8),
            aggregate=Stack(),
            engine=Engine(jobs=4, **engine),
        )

    serial = result(backend="serial")
    for actors in (1, 3):
        pooled = result(backend="ray", actors=actors)
        assert pooled.summary["digest"] == serial.summary["digest"]
        assert torch.equal(pooled.server.head, serial.server.head)
        for a, b in zip(pooled.metrics, serial.metrics, strict=True):
            timeless = [{k: v for k, v in r.items() if not k.startswith("time/")} for r in (a, b)]
            assert timeless[0] == timeless[1]


@dataclass(frozen=True)
class Fragile(FedAvg):
    """FedAvg that ends its whole process in round 2 unless the marker exists; it leaves the marker if it can."""

    marker: str = ""

    def local(self, obj: Objective, client: tuple[()], got: Message, rnd: Round) -> tuple[Message, tuple[()]]:
        marker = Path(self.marker)
        if rnd.index == 1 and not marker.exists() and "ray" in Path(sys.argv[0]).parts:  # in an actor, not rehearsed
            if marker.parent.exists():
                marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().local(obj, client, got, rnd)


@dataclass(frozen=True)
class Dots(FedAvg):
    """FedAvg whose server divides by sums over all coordinates, whose bits depend on the number of threads."""

    def server(self, server: FedAvgServer, received: Message, rnd: Round) -> FedAvgServer:
        u = received["update"]
        return FedAvgServer(server.x + u / (u @ u + u.sum()), server.v)


@dataclass(frozen=True)
class Locked(FedAvg):
    """FedAvg that cannot be pickled."""

    lock: Any = None


class Cumulates(nn.Module):
    """A module without stacked kernels."""

    def __init__(self, outputs: int):
        super().__init__()
        self.first, self.last = nn.Linear(144, 17), nn.Linear(17, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.last(torch.cumsum(torch.tanh(self.first(x.flatten(1))), dim=1))
        return out


class Broken(FedAvg):
    """FedAvg with a bug in its local step that one client alone, as in the rehearsal, does not meet."""

    def local(self, obj: Objective, client: tuple[()], got: Message, rnd: Round) -> tuple[Message, tuple[()]]:
        if len(rnd.clients) == 1:
            return {"update": torch.zeros_like(got["x"])}, client
        return {"update": got["x"] @ torch.zeros(3)}, client


def simple(rule: Any, data: Dataset, model: Any = mlp, **engine: Any) -> Result:
    return simulate(
        rule,
        data=data,
        partition=Dirichlet(clients=6, alpha=1.0),
        model=model,
        rounds=3,
        schedule=Uniform(cohort=4),
        local=Local(batch_size=8),
        engine=Engine(**{"backend": "ray", "actors": 2, **engine}),
        evaluate=Evaluate(clients=True),
    )


@pytest.mark.parametrize(
    ("model", "local", "engine"),
    [
        (Cumulates, Local(batch_size=7), {"kernel": "vmap", "jobs": 3}),
        (mlp, Local(batch_size="full", steps=2), {"batching": "loop", "dtype": "float64"}),  # views of the data set
        (mlp, Local(batch_size="full", steps=2), {"block": 3, "jobs": 2}),
    ],
)
def test_every_way_to_compute_gives_the_serial_bits(
    squares: Dataset, model: Any, local: Local, engine: dict[str, Any]
) -> None:
    def digest(**backend: Any) -> str:
        split, all_of_them = Dirichlet(clients=7, alpha=0.5, min_samples=2), Engine(**backend, **engine)
        result = simulate(
            FedAvg(lr=0.1), data=squares, partition=split, model=model, rounds=2, local=local, engine=all_of_them
        )
        return str(result.summary["digest"])

    assert digest(backend="ray", actors=2) == digest(backend="serial")


def test_the_servers_step_has_the_threads_of_the_run(squares: Dataset) -> None:
    torch.set_num_threads(2)
    big = functools.partial(mlp, hidden=(1000,))  # sums of more than 2^15 numbers are divided over the threads
    serial, pooled = (simple(Dots(lr=0.1), squares, model=big, actors=1, backend=b) for b in ("serial", "ray"))
    assert pooled.summary["digest"] == serial.summary["digest"]
    assert torch.get_num_threads() == 2


def test_actors_that_find_no_cpu_are_refused(squares: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """They would wait in silence for as long as others hold the CPUs."""
    other = ray.util.placement_group([{"CPU": 2}])
    assert other.wait(30)
    monkeypatch.setattr("fedsim.pool.ray_pool.PATIENCE_S", 0.2)
    with pytest.raises(InputError, match=r"engine.actors must be at most the free ones of .* 3 CPUs, got 2"):
        simple(FedAvg(lr=0.1), squares)
    ray.util.remove_placement_group(other)
    with pytest.raises(InputError, match=r"engine.actors must be at most the 3 CPUs of the Ray cluster, got 4"):
        simple(FedAvg(lr=0.1), squares, actors=4)


def test_what_cannot_reach_the_actors_is_refused(squares: Dataset) -> None:
    with pytest.raises(InputError, match=r"must be picklable for engine=ray, got cannot pickle .*lock.*engine=serial"):
        simple(Locked(lr=0.1, lock=threading.Lock()), squares)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "nonsense"])
def test_an_address_where_nobody_listens_is_refused_at_once(address: str) -> None:
    with pytest.raises(InputError, match=r"engine.address must be a running Ray cluster, got '.*ray start --head"):
        ray_start.begin_ray(Engine(address=address), 0)


def test_a_lost_actor_changes_no_bit(squares: Dataset, tmp_path: Path) -> None:
    marker = tmp_path / "killed"
    wounded = simple(Fragile(lr=0.1, marker=str(marker)), squares)
    assert marker.exists(), "no actor was killed: the test proves nothing"
    healthy = simple(FedAvg(lr=0.1), squares, backend="serial")
    assert wounded.status == "finished"
    assert wounded.summary["digest"] == healthy.summary["digest"]


def test_a_client_that_fails_is_named(squares: Dataset) -> None:
    with pytest.raises(
        ClientError, match=r"Broken failed in round 1 for clients \(.*\): RuntimeError: .*engine=serial"
    ):
        simple(Broken(lr=0.1), squares)


def test_a_poisonous_client_is_not_retried_for_ever(squares: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ClientError, match="lost their actor 2 times"):
        simple(Fragile(lr=0.1, marker=str(tmp_path / "no" / "such" / "folder")), squares, retries=1)


def test_no_process_is_left_behind() -> None:
    """A run starts a Ray of its own, whatever others run here, and stops it: nothing with its environment is left."""
    code = """
        from fedsim import Engine, simulate
        from fedsim.algorithms.fedavg import FedAvg, FedAvgServer
        from fedsim.models import mlp
        from fedsim.partition import Iid
        from tests.conftest import images
        result = simulate(FedAvg(lr=0.1), data=images(), partition=Iid(clients=4), model=mlp, rounds=1,
                          engine=Engine(backend="ray", actors=1))
        print(result.status)
    """
    mark = f"FEDSIM_TEST_RUN={uuid.uuid4()}"
    name, _, value = mark.partition("=")
    out = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent.parent,
        env=os.environ | {name: value, "RAY_ADDRESS": "127.0.0.1:1"},
        check=False,
    )
    assert out.stdout.split() == ["finished"], out.stderr
    for _ in range(50):  # daemons get five seconds to end after their parent
        left = [p for p in Path("/proc").glob("[0-9]*") if mark.encode() in _environment(p)]
        if not left:
            break
        time.sleep(0.1)
    assert [(p / "cmdline").read_bytes() for p in left] == []


def _environment(process: Path) -> bytes:
    try:
        return (process / "environ").read_bytes()
    except OSError:  # it ended, or belongs to someone else
        return b""
