"""Clients of very different sizes: what a block computes is the work of those who work, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedsim import Local
from fedsim.algorithms.fedavg import FedAvg
from fedsim.algorithms.fedprox import FedProx
from fedsim.algorithms.mime_lite import MimeLite
from fedsim.algorithms.scaffold import Scaffold
from fedsim.channel.channel import Channel
from fedsim.channel.noise import Addressed
from fedsim.data import batches
from fedsim.data.batches import ClientMinibatches, Feed, Samples, lanes, work_of
from fedsim.data.losses import loss_of
from fedsim.ground.opaque import first_only, opaque
from fedsim.ground.tree import leaves, tree_map
from fedsim.kernels.oracle import ModelOracle
from fedsim.models import build, mlp
from fedsim.objective import Objective
from fedsim.pool.block import ClientSide
from fedsim.pool.plan import FULL, LIGHT, LONG, pieces, plan
from fedsim.types import Batch, Message, Round

SIZES = (40, 3, 17, 9, 9, 1, 64)
LOCALS = [
    Local(epochs=2, batch_size=4),
    Local(epochs=1.5, batch_size=7),
    Local(steps=4, batch_size=3, sampling="poisson"),
    Local(steps=2, batch_size="full"),
]
KERNELS: tuple[Any, ...] = ("stacked", "vmap")


def feed() -> Feed:
    """Clients of one to 64 samples, four classes."""
    random = np.random.default_rng(0)
    x, y = random.normal(size=(sum(SIZES), 5)), random.integers(4, size=sum(SIZES))
    return Feed(Samples(x, y, np.concatenate([[0], np.cumsum(SIZES)])), torch.device("cpu"), torch.float64)


@dataclass(frozen=True)
class Noisy(FedAvg):
    """FedAvg with noise of its own in every local step."""

    def local(self, obj: Objective, client: tuple[()], got: Message, rnd: Round) -> tuple[Message, tuple[()]]:
        """y <- y - lr (g + noise)."""
        part = iter(range(10**6))

        def step(y: Tensor, batch: Batch) -> Tensor:
            return y - self.lr * (obj.grad(y, batch) + obj.noise.at(next(part)).normal(y))

        return {"update": obj.run(step, got["x"]) - got["x"]}, client


RULES = [
    FedAvg(lr=0.1),
    FedAvg(lr=0.1, momentum=0.5, weight_decay=0.1),
    FedProx(lr=0.1, mu=1.0),
    Scaffold(lr=0.1, option=1),
    MimeLite(lr=0.1),
    Noisy(lr=0.1),
]


def work(rule: Any, local: Local, kernel: Any, clients: tuple[int, ...]) -> list[Tensor]:
    """Messages, states and losses of these clients, as one block."""
    oracle = ModelOracle(build(mlp, (5,), 4, {"hidden": (6,)}, 0).double(), loss_of("classification"), kernel)
    x = oracle.layout.flatten(oracle.model).double()
    side = ClientSide(rule, (oracle,), 0, feed(), local, Channel(()), 1)
    rnd = Round(0, tuple(range(len(SIZES))), len(SIZES))
    rows = tree_map(lambda t: t.expand(len(clients), *t.shape).clone(), (rule.init_client(x), ()))
    out = side.run(clients, rows, rule.broadcast(rule.init_server(x), rnd), rnd)
    return leaves((out.messages, out.states, torch.where(out.counted, out.losses, -1.0)))


@pytest.mark.parametrize("local", LOCALS, ids=str)
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_block_of_unequal_clients_is_each_client_alone(
    rule: Any, local: Local, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In any order of the clients: that of the plan, longest first, is the fast one only."""
    monkeypatch.setattr(batches, "LONE", 5)
    each = [work(rule, local, "loop", (i,)) for i in range(len(SIZES))]
    want = [torch.cat(found) for found in zip(*each, strict=True)]
    for order in (sorted(range(len(SIZES)), key=lambda i: -SIZES[i]), list(range(len(SIZES)))):
        for found, alone in zip(work(rule, local, kernel, tuple(order)), want, strict=True):
            torch.testing.assert_close(found, alone[order], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("lone", [10, 20])
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("rule", [RULES[0], RULES[-1]], ids=["FedAvg", "Noisy"])
def test_nothing_is_computed_for_clients_that_have_ended(
    rule: Any, kernel: str, lone: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradients and random numbers are as many as the clients have steps.

    Who is alone for long at the end is computed by the module itself, for a few steps beside another.
    """
    monkeypatch.setattr(batches, "LONE", lone)
    local = Local(epochs=2, batch_size=4)
    order = tuple(sorted(range(len(SIZES)), key=lambda i: -SIZES[i]))
    steps = [local.count(SIZES[i]) for i in order]
    found = {"alone": 0, "together": 0, "drawn": 0}
    alone, together, drawn = ModelOracle._alone, ModelOracle._together, torch.randn

    def one(oracle: ModelOracle, x: Tensor, *more: Any) -> Any:
        found["alone"] += 1
        return alone(oracle, x, *more)

    def many(oracle: ModelOracle, x: Tensor, *more: Any) -> Any:
        found["together"] += len(x)
        return together(oracle, x, *more)

    def normal(*shape: Any, **options: Any) -> Tensor:
        found["drawn"] += 1
        return drawn(*shape, **options)

    monkeypatch.setattr(ModelOracle, "_alone", one)
    monkeypatch.setattr(ModelOracle, "_together", many)
    monkeypatch.setattr(torch, "randn", normal)
    work(rule, local, kernel, order)
    last = steps[0] - steps[1]
    assert last == 12
    assert found["alone"] == (last if lone < last else 0)
    whole = sum(steps) + (0 if lone < last else last)
    assert found["alone"] + found["together"] == whole
    assert found["drawn"] == (whole if isinstance(rule, Noisy) else 0)


def test_only_steps_at_which_a_working_client_has_padding_have_a_mask() -> None:
    sizes, local = [13, 8, 4], Local(epochs=1, batch_size=4)
    samples = Samples(np.zeros((25, 1)), np.zeros(25, dtype=np.int64), np.array([0, 13, 21, 25]))
    data = Feed(samples, torch.device("cpu"), torch.float64)
    drawn = work_of((0, 1, 2), 0, data, local, 0)
    masked = []

    def look(lane: dict[str, Tensor]) -> Tensor:
        mine = ClientMinibatches(data, drawn, lane, alone=False)
        masked.extend(k for k in range(mine.length) if mine(k).mask is not None)
        return lane["steps"]

    assert torch.func.vmap(look)(lanes(data, drawn)).tolist() == [-(-n // 4) for n in sizes]
    assert masked == [3]  # the longest client's last minibatch has one sample; those of the others are full


def both(x: Tensor) -> tuple[Tensor, Tensor]:
    return 2 * x, x.sum(-1)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_the_first_clients_alone(count: int) -> None:
    """Their results are those of all, the others' are zeros, below a vmap inside too; one client is one client."""
    x = torch.arange(1.0, 13.0).view(4, 3)
    shapes: list[tuple[int, ...]] = []

    def seen(name: str, x: Tensor) -> tuple[Tensor, Tensor]:
        shapes.append((name == "alone", *x.shape))
        return both(x)

    def run(x: Tensor) -> Any:
        with first_only(count):
            outer = opaque(lambda x: seen("alone", x), lambda x: seen("together", x), x)
            inner = torch.func.vmap(lambda s: opaque(both, both, s * x))(torch.tensor([1.0, 3.0]))
        return *outer, *inner, opaque(both, both, x)[1]

    doubled, total, doubles, totals, after = torch.func.vmap(run)(x)
    here = (torch.arange(4) < count).to(x.dtype)[:, None]
    assert torch.equal(doubled, 2 * x * here)
    assert torch.equal(total, (x * here).sum(1))
    assert torch.equal(doubles, torch.stack([2 * x * here, 6 * x * here], 1))
    assert torch.equal(totals, torch.stack([(x * here).sum(1), 3 * (x * here).sum(1)], 1))
    assert torch.equal(after, x.sum(1)), "what comes afterwards is of all clients again"
    assert shapes == [(True, 3) if count == 1 else (False, count, 3)]


def test_outside_vmap_there_is_one_client() -> None:
    with first_only(1):
        assert opaque(both, both, torch.ones(3))[1] == 3


@given(st.lists(st.integers(1, 5000), max_size=60), st.integers(LONG, 5000))
def test_light_models_share_blocks_whatever_the_steps(others: list[int], longest: int) -> None:
    """A step saved is worth more than a client: one block a job, and no job below FULL times the longest work."""
    steps = [longest, *others]
    cut = plan(range(len(steps)), steps, LIGHT, "auto")
    assert all(len(job) == 1 for job in cut.jobs)
    assert len(cut.jobs) == 1 or sum(steps) >= FULL * max(steps) * len(cut.jobs)


@given(st.integers(1, 2000), st.integers(2, 300), st.integers(1, 50))
def test_equal_clients_are_cut_by_their_number_alone(count: int, block: int, steps: int) -> None:
    assert len(plan(range(count), [steps] * count, block, "auto").jobs) == pieces(count, block, "auto")


@given(st.lists(st.integers(1, LONG - 1), min_size=1, max_size=60))
def test_short_rounds_are_cut_as_those_of_heavy_models(steps: list[int]) -> None:
    light, heavy = (plan(range(len(steps)), steps, block, "auto") for block in (LIGHT, LIGHT - 1))
    assert light == heavy


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=60), st.integers(1, 16))
def test_jobs_that_are_asked_for_are_made(steps: list[int], jobs: int) -> None:
    assert len(plan(range(len(steps)), steps, LIGHT, jobs).jobs) == pieces(len(steps), LIGHT, jobs)


def test_random_numbers_of_the_first_clients_are_theirs() -> None:
    """Whether all clients draw or some, each has the same numbers."""

    def draw(client: Tensor, count: int | None) -> Tensor:
        with first_only(count):
            return Addressed(0, "local", 0, client).normal(torch.zeros(3))

    clients = torch.arange(4)
    some, everyone = (torch.func.vmap(lambda c, n=n: draw(c, n))(clients) for n in (2, None))
    assert torch.equal(some[:2], everyone[:2])
    assert not some[2:].any()
