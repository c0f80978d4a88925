"""What algorithms and data of all kinds may ask of the engine, and what it refuses."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedsim import Engine, Evaluate, Local, Result, simulate
from fedsim.algorithms.fedavg import FedAvg, FedAvgServer
from fedsim.assembly.assemble import assemble
from fedsim.assembly.parts import Parts
from fedsim.data import Dataset, Split
from fedsim.data.augment import Augment
from fedsim.errors import ClientError, InputError
from fedsim.models import cnn, mlp
from fedsim.objective import Objective
from fedsim.partition import Natural, Population
from fedsim.types import Message, Round

SIZES = (40, 16, 9, 33, 2, 1, 17, 28)
KERNELS: list[dict[str, Any]] = [{"batching": "loop"}, {"kernel": "stacked"}, {"kernel": "vmap"}]


def ragged(shape: tuple[int, ...] = (6,), sizes: tuple[int, ...] = SIZES, **more: Any) -> Dataset:
    """Clients of very different sizes: noise, four classes; bytes where the shape is an image's."""
    random = np.random.default_rng(0)
    y = random.integers(4, size=sum(sizes))
    x = random.normal(size=(len(y), *shape))
    if len(shape) == 3:
        x, more = (
            (60 * x + 128).clip(0, 255).astype(np.uint8),
            {"mean": (0.5,) * shape[0], "std": (0.3,) * shape[0], **more},
        )
    return Dataset("ragged", Split(x, y, np.repeat(np.arange(len(sizes)), sizes)), None, "classification", 4, **more)


def run(rule: Any, data: Dataset, local: Local, model: Any = mlp, rounds: int = 2, **engine: Any) -> Result:
    return simulate(
        rule,
        data=data,
        partition=Natural(),
        model=model,
        rounds=rounds,
        local=local,
        engine=Engine(**{"backend": "serial", "dtype": "float64", **engine}),
        seed=3,
    )


def small_images(input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    return cnn(input_shape, outputs, channels=(4, 4), kernel=3)


LOCALS = [Local(epochs=e, batch_size=b) for e, b in product((0.3, 1.5), (3, 7))]
LOCALS += [Local(epochs=1.5, batch_size="full"), Local(steps=5, batch_size=16), Local(steps=3, batch_size="full")]


@pytest.mark.parametrize("local", LOCALS, ids=str)
@pytest.mark.parametrize("augmented", [False, True])
def test_blocks_change_rounding_only_whatever_the_local_work(local: Local, augmented: bool) -> None:
    """Sizes, fractions of epochs and augmentation: who shares a block with whom must not matter."""
    data = ragged((3, 10, 10), augment=Augment(crop_pad=2)) if augmented else ragged()
    model = small_images if augmented else mlp
    alone = run(FedAvg(lr=0.1), data, local, model, batching="loop")
    for kernel, block in (("stacked", 3), ("vmap", 8)):
        together = run(FedAvg(lr=0.1), data, local, model, kernel=kernel, block=block, jobs=2)
        # float64 through at most 200 steps of numbers of order 1
        torch.testing.assert_close(together.server.x, alone.server.x, rtol=0, atol=1e-10)
        losses = [[record.get("train/loss", 0.0) for record in r.metrics] for r in (together, alone)]
        np.testing.assert_allclose(*losses, rtol=0, atol=1e-10)


class Diary(NamedTuple):
    """What a client remembers."""

    count: Tensor  # scalar int64
    seen: Tensor  # [3] sum of its sizes
    last: Tensor  # [2] its size, and its steps + 100 * round


@dataclass(frozen=True)
class Remembers(FedAvg):
    """FedAvg whose clients keep a diary."""

    def init_client(self, x0: Tensor) -> Any:
        return Diary(torch.zeros((), dtype=torch.int64), torch.zeros(3), torch.full((2,), -1.0))

    def local(self, obj: Objective, client: Any, got: Message, rnd: Round) -> tuple[Message, Any]:
        message, _ = super().local(obj, (), got, rnd)
        last = torch.stack([obj.examples.float(), obj.steps + 100.0 * rnd.index])
        return message, Diary(client.count + 1, client.seen + obj.examples, last)


class Turns:
    """Cohorts of 1, 2, ... clients, somewhere in the population."""

    def check(self, population: int, rounds: int) -> None:
        pass

    def expected(self, population: int) -> int:
        return population // 2

    def clients(self, index: int, population: int, seed: int) -> tuple[int, ...]:
        chosen = np.random.default_rng(index).choice(population, size=index % population + 1, replace=False)
        return tuple(sorted(chosen.tolist()))


@pytest.mark.parametrize("options", [*KERNELS, {"block": 3, "jobs": 5}, {"block": 2, "jobs": 1}], ids=str)
def test_each_client_gets_back_its_own_state(options: dict[str, Any]) -> None:
    """The plan sorts clients by work and pads lonely ones; the store must not notice."""
    data, engine, local = ragged(), Engine(backend="serial", **options), Local(batch_size=8)
    n, turns = len(SIZES), Turns()
    parts = Parts(Remembers(lr=0.05), data, Natural(), mlp, 99, turns, local, engine=engine)
    assembled = assemble(parts, data)
    backend = assembled.start()
    run = assembled.begin(backend, Evaluate(every=99))
    count, last = np.zeros(n, dtype=np.int64), np.full((n, 2), -1.0)
    for t in range(2 * n + 3):
        run.step()
        for i in turns.clients(t, n, 0):
            count[i] += 1
            last[i] = SIZES[i], -(-SIZES[i] // 8) + 100 * t
    backend.close()
    diary = run.stores[0].read(range(n))[0]
    np.testing.assert_array_equal(diary.count, count)
    np.testing.assert_array_equal(diary.seen, (count * np.array(SIZES))[:, None].repeat(3, 1))
    np.testing.assert_array_equal(diary.last, last)


@dataclass(frozen=True)
class ManyFields(FedAvg):
    """FedAvg that sends fields of every kind and keeps their means in the server's v."""

    def local(self, obj: Objective, client: Any, got: Message, rnd: Round) -> tuple[Message, Any]:
        message, _ = super().local(obj, client, got, rnd)
        kinds = {"n": obj.examples, "flag": obj.examples > 10, "same": torch.arange(4), "half": obj.examples.half() / 2}
        return {**message, **kinds, "matrix": obj.examples * torch.ones(2, 3), "nothing": torch.zeros(0)}, ()

    def server(self, server: FedAvgServer, received: Message, rnd: Round) -> FedAvgServer:
        parts = [received[k].reshape(-1) for k in ("n", "flag", "same", "half", "matrix", "nothing")]
        return FedAvgServer(server.x, torch.cat(parts))


@pytest.mark.parametrize("options", KERNELS, ids=str)
def test_messages_may_have_fields_of_every_kind(options: dict[str, Any]) -> None:
    n = np.array(SIZES)
    weighted = [(n * value).sum() / n.sum() for value in (n, n > 10)]
    want = [*weighted, 0, 1, 2, 3, weighted[0] / 2, *[weighted[0]] * 6]
    got = run(ManyFields(lr=0.1), ragged(), Local(), rounds=1, **options).server.v
    np.testing.assert_allclose(got, want, rtol=1e-14)  # float64 sums of eight small integers


@dataclass(frozen=True)
class ManyPoints(FedAvg):
    """Steps on the mean of the gradients at three points, taken in a loop or by the algorithm's own vmap."""

    vmap: bool = False

    def local(self, obj: Objective, client: Any, got: Message, rnd: Round) -> tuple[Message, Any]:
        x = got["x"]
        scales = torch.tensor([0.5, 1.0, 2.0], dtype=x.dtype)

        def step(y: Tensor, batch: Any) -> Tensor:
            def one(s: Tensor) -> Tensor:
                return obj.grad(y * s, batch) * obj.value(y * s, batch)

            g = torch.func.vmap(one)(scales) if self.vmap else torch.stack([one(s) for s in scales])
            return y - self.lr * g.mean(0)

        return {"update": obj.run(step, x) - x}, ()


@pytest.mark.parametrize("options", KERNELS, ids=str)
def test_an_algorithm_may_use_vmap_itself(options: dict[str, Any]) -> None:
    one_by_one, at_once = (
        run(ManyPoints(lr=0.05, vmap=v), ragged(), Local(batch_size=8), **options) for v in (False, True)
    )
    torch.testing.assert_close(at_once.server.x, one_by_one.server.x, rtol=0, atol=1e-12)  # float64, 10 steps
    assert at_once.metrics[-1]["eval/loss"] != at_once.metrics[0]["eval/loss"]


@dataclass(frozen=True)
class Differentiates(FedAvg):
    def local(self, obj: Objective, client: Any, got: Message, rnd: Round) -> tuple[Message, Any]:
        x = got["x"]
        return {"update": obj.run(lambda y, b: torch.func.grad(lambda z: obj.value(z, b))(y), x)}, ()


@dataclass(frozen=True)
class WritesInPlace(FedAvg):
    def local(self, obj: Objective, client: Any, got: Message, rnd: Round) -> tuple[Message, Any]:
        x, before = got["x"], got["x"].clone()
        return {"update": obj.run(lambda y, b: y.sub_(obj.grad(y, b)), x) - before}, ()


@dataclass(frozen=True)
class SendsATensor(FedAvg):
    def local(self, obj: Objective, client: Any, got: Message, rnd: Round) -> tuple[Any, Any]:
        return super().local(obj, client, got, rnd)[0]["update"], ()


@dataclass(frozen=True)
class Drifts(FedAvg):
    """Its client state starts as ``before`` and becomes ``after``."""

    before: Any = ()
    after: Any = ()

    def init_client(self, x0: Tensor) -> Any:
        return self.before

    def local(self, obj: Objective, client: Any, got: Message, rnd: Round) -> tuple[Message, Any]:
        return super().local(obj, (), got, rnd)[0], self.after


@dataclass(frozen=True)
class CountsOnTheServer(FedAvg):
    def server(self, server: FedAvgServer, received: Message, rnd: Round) -> Any:
        return FedAvgServer(server.x, rnd.index)  # type: ignore[arg-type]


@pytest.mark.parametrize("options", KERNELS, ids=str)
@pytest.mark.parametrize(
    ("rule", "error", "says"),
    [
        (Differentiates(0.1), ClientError, "cannot be differentiated"),
        (WritesInPlace(0.1), ClientError, "must not write|inplace arithmetic"),
        (SendsATensor(0.1), InputError, "must return a message of tensors by name"),
        (Drifts(0.1, before=(torch.zeros(3),), after=(torch.zeros(1),)), InputError, r"float32\[3\].*float32\[1\]"),
        (Drifts(0.1, before=(torch.tensor(0),), after=(torch.tensor(0.5),)), InputError, r"int64\[\].*float32\[\]"),
        (Drifts(0.1, before=(torch.zeros(3),)), InputError, "client state like the one it got"),
        (Drifts(0.1, before=None), InputError, "init_client of an algorithm must return .*got NoneType"),
        (Drifts(0.1, before=(0.0,)), InputError, "init_client of an algorithm must return .*got float"),
        (CountsOnTheServer(0.1), InputError, "server of an algorithm must return .*got int"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, FedAvg) else None,
)
def test_what_would_give_wrong_numbers_is_refused(
    rule: Any, error: type[Exception], says: str, options: dict[str, Any]
) -> None:
    with pytest.raises(error, match=says):
        run(rule, ragged(), Local(batch_size=8), **options)


class Spoils(nn.Module):
    """Centres its input in place: harmless on a copy, but a full batch is the data set itself."""

    def __init__(self, outputs: int):
        super().__init__()
        self.layer = nn.Linear(6, outputs)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x.sub_(1.0))
        return out


def test_a_model_that_writes_into_its_input_is_refused() -> None:
    with pytest.raises(InputError, match="writes into its input"):
        run(FedAvg(lr=0.1), ragged(), Local(batch_size="full"), model=Spoils)


class Given:
    """A partition from lists."""

    def __init__(self, *train: range, test: tuple[range, ...] = ()):
        self.train, self.test = train, test

    def split(self, data: Dataset, seed: int) -> Population:
        lists = ([np.array(rows, dtype=np.int64) for rows in part] for part in (self.train, self.test))
        return Population(*map(tuple, lists))


def evaluated(data: Dataset, partition: Given) -> dict[str, float]:
    result = simulate(
        FedAvg(lr=0.1), data=data, partition=partition, model=mlp, rounds=1, evaluate=Evaluate(clients=True)
    )
    return {k: v for k, v in result.metrics[-1].items() if k.startswith("eval/")}


def test_clients_without_test_samples_do_not_count() -> None:
    data = ragged()
    data = dataclasses.replace(data, test=Split(data.train.x[:9], data.train.y[:9]))
    own = (range(0), range(5), range(0), range(5, 7), range(0))  # samples 7 and 8 are nobody's
    some = evaluated(data, Given(*(range(i, i + 3) for i in range(5)), test=own))
    one = evaluated(data, Given(*(range(i, i + 3) for i in range(5)), test=(*own[:3], range(0), range(0))))
    two = evaluated(data, Given(*(range(i, i + 3) for i in range(5)), test=(range(0), range(0), *own[2:])))
    mean = (one["eval/client_accuracy_mean"] + two["eval/client_accuracy_mean"]) / 2
    assert some["eval/client_accuracy_mean"] == pytest.approx(mean, abs=1e-15)
    nobody = evaluated(data, Given(range(4), range(4, 9), test=(range(0), range(0))))
    assert set(nobody) == {"eval/loss", "eval/accuracy"}


@pytest.mark.parametrize(
    ("change", "partition", "says"),
    [
        ({}, Given(range(5), range(0)), "training sample, got none for client 1"),
        (
            {"test": Split(np.empty((0, 6)), np.empty(0, dtype=np.int64))},
            Given(range(5)),
            "data.test must hold samples",
        ),
    ],
)
def test_nothing_to_train_or_evaluate_on(change: dict[str, Any], partition: Given, says: str) -> None:
    with pytest.raises(InputError, match=says):
        evaluated(dataclasses.replace(ragged(), **change), partition)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_workers_can_use_the_samples_where_they_lie(dtype: Any) -> None:
    """In the run's dtype and aligned, so that no worker makes a copy of the data set for itself."""
    data, engine = ragged((37,)), Engine(backend="serial", dtype=dtype)
    prepared = assemble(Parts(FedAvg(lr=0.1), data, Natural(), mlp, 1, engine=engine)).prepared
    worker: Any = prepared.start(engine)
    x = prepared.setup.train.x
    assert x.dtype == dtype
    assert worker._worker.train_feed.x.data_ptr() == x.ctypes.data
    worker.close()


def test_settings_of_actors_that_a_run_without_actors_has_are_said_to_have_no_effect(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert Engine(backend="ray", actors=4, retries=0).without_effect == Engine(backend="serial").without_effect == ()
    said = Engine(backend="serial", actors=4, timeout_s=None).without_effect
    assert [line.split()[0] for line in said] == ["engine.actors=4", "engine.timeout_s=None"]
    run: dict[str, Any] = {"data": ragged(), "partition": Natural(), "model": mlp, "rounds": 1}
    result = simulate(FedAvg(lr=0.1), **run, engine=Engine(backend="serial", actors=4), progress=True)
    assert result.status == "finished"
    assert "engine.actors=4 has no effect: engine=serial computes in this process" in capsys.readouterr().err
