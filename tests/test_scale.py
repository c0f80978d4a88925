"""Many clients: what is drawn, measured and checked for all of them together is what it is for each alone."""

from __future__ import annotations

import math
import runpy
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch

from fedsim import Local, simulate
from fedsim.aggregate import Mean
from fedsim.algorithms.dpsgd import DPSGD
from fedsim.algorithms.fedavg import FedAvg
from fedsim.algorithms.scaffold import Scaffold
from fedsim.assembly.divide import require_population
from fedsim.callbacks import Callback
from fedsim.data.augment import Augment
from fedsim.data.batches import Feed, Samples, work_of
from fedsim.data.dataset import Dataset, Split
from fedsim.errors import InputError
from fedsim.ground import addresses, rng
from fedsim.ground.later import Later
from fedsim.partition import Iid, Population
from fedsim.partition.population import bundle
from fedsim.runs.measured import consensus
from fedsim.schedule import All, Uniform
from fedsim.topology import Ring

SIZES = (5, 3, 5, 1, 8, 3, 5)


def feed(augment: Augment | None = None) -> Feed:
    start = np.concatenate([[0], np.cumsum(SIZES)])
    x = np.arange(start[-1] * 12, dtype=np.float32).reshape(-1, 3, 2, 2)
    return Feed(Samples(x, np.zeros(start[-1], np.int64), start, augment=augment), torch.device("cpu"), torch.float32)


def test_streams_are_those_of_their_addresses_one_after_the_other() -> None:
    drawn = [torch.randn(3, generator=g).tolist() for g in rng.streams(3, addresses.BATCHES, 2, last=[7, 0, 123456])]
    assert drawn == [torch.randn(3, generator=rng.stream(3, addresses.BATCHES, 2, i)).tolist() for i in (7, 0, 123456)]


@pytest.mark.parametrize(
    "local", [Local(epochs=2, batch_size=2), Local(steps=5, batch_size=3), Local(epochs=0.5, batch_size=2)]
)
def test_shuffles_by_hand(local: Local) -> None:
    clients = (6, 0, 3, 4, 1)
    work, start = work_of(clients, 4, feed(), local, seed=1), feed().start
    assert work.rows is not None
    for b, i in enumerate(clients):
        n, size, steps = SIZES[i], local.batch(SIZES[i]), local.count(SIZES[i])
        generator, batches = torch.Generator().manual_seed(rng.key(1, "batches", 4, i)), []
        while len(batches) < steps:
            order = (int(start[i]) + torch.randperm(n, generator=generator)).tolist()
            batches += [order[a : a + size] for a in range(0, n, size)]
        counts = work.counts[b].tolist()
        assert counts == [len(batch) for batch in batches[:steps]] + [0] * (work.counts.shape[1] - steps)
        assert [work.rows[b, k, : counts[k]].tolist() for k in range(steps)] == batches[:steps]


@pytest.mark.parametrize("sampling", ["shuffle", "poisson"])
@pytest.mark.parametrize("augment", [None, Augment(flip=0.5)])
def test_a_clients_minibatches_are_its_own_whoever_shares_its_block(sampling: str, augment: Augment | None) -> None:
    local = Local(steps=4, batch_size=2, sampling=sampling)  # type: ignore[arg-type]
    clients = (4, 2, 0, 3, 5, 6, 1)
    together = work_of(clients, 0, feed(augment), local, seed=0)
    for b, i in enumerate(clients):
        alone = work_of((i,), 0, feed(augment), local, seed=0)
        assert alone.rows is not None
        assert together.rows is not None
        assert alone.counts[0].tolist() == together.counts[b].tolist()
        for k, n in enumerate(alone.counts[0].tolist()):
            assert alone.rows[0, k, :n].equal(together.rows[b, k, :n])
            if augment is not None:
                assert alone.draws is not None
                assert together.draws is not None
                assert alone.draws[0, k, :n].equal(together.draws[b, k, :n])


@pytest.mark.parametrize(("n", "d"), [(1, 1), (3, 7), (700, 33), (41, 1000), (5, 20_000), (2, 100_000)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_distances_of_peers_together_are_those_one_by_one_to_the_bit(n: int, d: int, dtype: torch.dtype) -> None:
    models = torch.randn(n, d, generator=torch.Generator().manual_seed(0)).to(dtype)
    mean = torch.from_numpy(models.numpy().mean(axis=0, dtype=np.float64))
    total = sum(float((model.double() - mean).square().sum()) for model in models)
    assert consensus(models) == math.sqrt(total / n)


def test_a_bundle_is_what_each_client_owns_ascending() -> None:
    samples, owners = np.array([5, 1, 9, 0, 7, 3]), np.array([2, 0, 2, 0, 3, 2])
    assert [rows.tolist() for rows in bundle(samples, owners, 5)] == [[0, 1], [], [3, 5, 9], [7], []]


@pytest.mark.parametrize("given", [[0, 1], (2, 3), np.array([4, 5], np.int32), np.array([6, 7]), range(8, 10)])
def test_samples_of_every_kind_become_the_same_and_cannot_be_written(given: object) -> None:
    population = Population((np.array([0, 1]), given), ())  # type: ignore[arg-type]
    assert [rows.dtype for rows in population.train] == [np.int64, np.int64]
    assert population.train[1].tolist() == list(given)  # type: ignore[call-overload]
    assert not any(rows.flags.writeable for rows in population.train)


class Own:
    """A partition of somebody's own."""


@pytest.mark.parametrize(
    ("train", "said"),
    [
        (([0, 1], [5, 4], [], [7, 1, 8]), None),
        (([0, 1], [2], [3, 12, 5], [-1]), r"samples 0\.\.11 of data\.train, got 3\.\.12 for client 2"),
        (([0, 1], [], [-3, 4], [12]), r"got -3\.\.4 for client 2"),
        (([0, 1], [1, 0], [6, 5, 6, 5, 7], [8, 8]), "got sample 5 more than once for client 2"),
    ],
)
def test_the_first_client_with_wrong_samples_is_named(train: tuple[list[int], ...], said: str | None) -> None:
    data = Dataset("toy", Split(np.zeros((12, 2), np.float32), np.arange(12) % 2), None, "classification", 2)
    population = Population(tuple(map(np.array, train)), ())
    if said is None:
        require_population(population, data, Own())  # type: ignore[arg-type]
        return
    with pytest.raises(InputError, match=said):
        require_population(population, data, Own())  # type: ignore[arg-type]


class Logistic(torch.nn.Linear):
    def __init__(self, input_shape: Sequence[int], outputs: int):
        super().__init__(math.prod(input_shape), outputs)


class Calls(Callback):
    """Counts the calls of functions, Python's and others, from one record to the next."""

    def __init__(self) -> None:
        self.rounds: list[int] = []
        self.seen = 0

    def heard(self, frame: FrameType, event: str, arg: Any) -> None:
        self.seen += event in ("call", "c_call")

    def record(self, record: Mapping[str, float]) -> None:
        sys.setprofile(None)
        self.rounds.append(self.seen)
        self.seen = 0
        sys.setprofile(self.heard)


def calls_in_a_round(algorithm: Any, n: int, **parts: Any) -> int:
    """Of n clients with a sample each, once every client or none of these has been heard of before."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n + 50, 4)).astype(np.float32)
    y = (x[:, 0] > 0).astype(np.int64)
    data = Dataset("scale", Split(x[:n], y[:n]), Split(x[n:], y[n:]), "classification", 2)
    local, calls, before = Local(steps=1, batch_size=32), Calls(), sys.getprofile()
    run: dict[str, Any] = {"data": data, "partition": Iid(clients=n), "model": Logistic, "rounds": 3, "local": local}
    try:
        simulate(algorithm, **run, callbacks=[calls], **parts)
    finally:
        sys.setprofile(before)
    return min(calls.rounds[2:])


def test_a_round_makes_as_many_calls_whatever_the_population() -> None:
    some = {"schedule": Uniform(cohort=20)}
    assert calls_in_a_round(FedAvg(lr=0.1), 2_000, **some) == calls_in_a_round(FedAvg(lr=0.1), 500, **some)
    some["aggregate"] = Mean(weights="uniform")  # type: ignore[assignment]
    few, many = (calls_in_a_round(Scaffold(lr=0.1), n, **some) for n in (500, 2_000))
    assert many <= 1.02 * few  # of clients whose state was seen before there are more among few


@pytest.mark.parametrize(
    ("algorithm", "parts", "most"), [(FedAvg(lr=0.1), {}, 14), (DPSGD(lr=0.1), {"topology": Ring()}, 18)]
)
def test_a_client_more_costs_a_round_few_calls(algorithm: Any, parts: dict[str, Any], most: int) -> None:
    few, many = (calls_in_a_round(algorithm, n, schedule=All(), **parts) for n in (500, 1_000))
    assert (many - few) / 500 <= most  # most of them draw its minibatch, from a stream of its own


def test_the_exponent_of_a_curve() -> None:
    script = runpy.run_path(str(Path(__file__).parents[1] / "scripts/scale.py"))
    ns = [10**3, 10**4, 10**6]
    assert script["exponent"](ns, [3 * n**0.5 for n in ns]) == pytest.approx(0.5)
    assert script["exponent"](ns, [2.0] * 3) == pytest.approx(0)
    figures = dict.fromkeys(script["COLUMNS"], 0.25) | {"start_s": 1.5}
    found = [
        {"kind": kind, "clients": n, **figures} for kind, n in (("clients", 1000), ("clients", 2000), ("peers", 10))
    ]
    assert [list(column.cells) for column in script["table_of"](found).columns[:3]] == [
        ["clients", "clients", "exponent", "peers"],
        ["1,000", "2,000", "", "10"],
        ["1.5", "1.5", "0.00", "1.5"],
    ]


def test_a_module_is_imported_when_it_is_asked_for() -> None:
    assert Later("math").pi == math.pi
    with pytest.raises(AttributeError):
        Later("math").no_such_name  # noqa: B018
