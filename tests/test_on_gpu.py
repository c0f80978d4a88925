"""What is decided and computed for a GPU, as far as it shows on the CPU; the rest is ``test_pretend_device``'s."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from fedsim import Engine
from fedsim.channel.lowrank import low_rank_factors
from fedsim.channel.topk import largest_of_many, largest_positions
from fedsim.ground import by_key
from fedsim.ground.rng import key
from fedsim.ground.transfer import fetched, sent
from fedsim.kernels.kernel import ON_GPU, clients_on_gpu, numbers_kept, samples_on_gpu
from fedsim.models import cnn, moved, resnet18_gn_cifar

KEYS = torch.tensor([key(0, "on_gpu", client) for client in range(200)])


def test_a_gpu_gets_one_job_unless_told_otherwise() -> None:
    assert Engine().pieces == Engine(backend="serial").pieces == "auto"
    assert Engine(device="cuda").pieces == Engine(device="cuda", actors=7).pieces == 1
    assert Engine(device="cuda", jobs=8).pieces == 8
    assert "engine.jobs=2" in Engine(device="cuda").without_effect[0]
    assert not Engine(device="cuda", jobs=2).without_effect
    assert not Engine(jobs=1).without_effect


@pytest.mark.parametrize("actors", [1, 2, 3, 4, 7, 8, 30, 64])
@pytest.mark.parametrize("gpus", [1, 2, 3, 8])
def test_actors_spread_over_all_gpus_and_find_room(actors: int, gpus: int) -> None:
    share_of_gpu = pytest.importorskip("fedsim.pool.ray_pool").share_of_gpu
    units = round(10_000 * share_of_gpu(actors, gpus))  # as Ray counts
    each = 10_000 // units  # actors of one GPU
    assert each * gpus >= actors
    assert (each - 1) * gpus < actors  # no GPU has two actors more than it must


@pytest.mark.slow
@pytest.mark.xdist_group("ray gpus")
@pytest.mark.parametrize(("actors", "gpus", "each"), [(4, 2, [2, 2]), (2, 3, [1, 1]), (3, 1, [3])])
def test_ray_places_actors_so(actors: int, gpus: int, each: list[int], ray_with: Any) -> None:
    ray, pool = ray_with(gpus)
    share = pool.share_of_gpu(actors, gpus)
    places = pool._reserve(Engine(actors=actors, device="cuda", jobs=actors), share)
    where = pool.PlacementGroupSchedulingStrategy(places)

    class Asked:
        def gpus(self) -> list[int]:
            return [int(number) for number in ray.get_gpu_ids()]

    remote = ray.remote(num_cpus=1, num_gpus=share, scheduling_strategy=where)(Asked)
    living = [remote.remote() for _ in range(actors)]
    found = Counter(number for mine in ray.get([one.gpus.remote() for one in living]) for number in mine)
    assert sorted(found.values()) == each


@pytest.fixture
def ray_with() -> Iterator[Any]:
    """A Ray of this machine that believes in so many GPUs."""
    ray = pytest.importorskip("ray")
    pool = pytest.importorskip("fedsim.pool.ray_pool")
    quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}

    def begin(gpus: int) -> Any:
        ray.init(address="local", num_cpus=4, num_gpus=gpus, **quiet)
        return ray, pool

    yield begin
    ray.shutdown()


def test_blocks_are_sized_by_what_a_minibatch_keeps() -> None:
    sample, model = torch.zeros(1, 3, 32, 32), resnet18_gn_cifar((3, 32, 32), 10)
    one, many = clients_on_gpu(model, sample, 10), clients_on_gpu(model, sample, 50)
    assert one // 5 - 1 <= many <= one // 5 + 1
    assert many * 50 * numbers_kept(model, sample) <= ON_GPU
    assert clients_on_gpu(model, sample, 10**9) == 2
    assert samples_on_gpu(model, sample, 512) == max(512, ON_GPU // numbers_kept(model, sample))
    assert samples_on_gpu(cnn((1, 16, 16), 10), torch.zeros(1, 1, 16, 16), 512) == 8192


def test_what_a_pass_keeps_is_counted() -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4))
    assert (
        numbers_kept(model, torch.zeros(1, 6)) == 6 + 5
    )  # the first layer's input and tanh's output, which the second shares


def test_tensors_of_plain_attributes_move_and_nothing_else_changes() -> None:
    class Held(nn.Linear):
        def __init__(self) -> None:
            super().__init__(2, 2)
            self.shift, self.deep, self.name = torch.ones(2), {"a": [torch.ones(1), 3]}, "held"

    model = moved(nn.Sequential(Held()), torch.device("meta"), torch.float32)
    held = model[0]
    assert {held.shift.device.type, held.deep["a"][0].device.type, held.weight.device.type} == {"meta"}
    assert (held.deep["a"][1], held.name) == (3, "held")
    model = Held()
    before = dict(vars(model))
    assert all(vars(moved(model, torch.device("cpu"), torch.float32))[name] is value for name, value in before.items())


@pytest.mark.parametrize("shape", [(4, 50), (3, 7), (2, 1000)])
@pytest.mark.parametrize("kind", ["normal", "ties", "nan", "zeros"])
def test_the_largest_of_many_are_those_of_each(shape: tuple[int, int], kind: str) -> None:
    v = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    if kind == "ties":
        v = v.round()
    if kind == "nan":
        v[:, ::5] = math.nan
        v[0, 1] = -math.inf
    if kind == "zeros":
        v.zero_()
    for k in {1, 2, shape[1] // 3, shape[1] - 1}:
        each = torch.stack([largest_positions(row, k) for row in v])
        assert torch.equal(largest_of_many(v, k), each)


def test_low_rank_factors_of_many_are_those_of_each() -> None:
    g = torch.Generator().manual_seed(2)
    a = torch.randn(3, 9, 8, generator=g, dtype=torch.float64)
    start = torch.randn(3, 8, 2, generator=g, dtype=torch.float64)
    a[1] = 0
    each = torch.stack([low_rank_factors(*one, 1) for one in zip(a, start, strict=True)])
    torch.testing.assert_close(low_rank_factors(a, start, 1), each, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("draw", [by_key.normal, by_key.uniform])
@pytest.mark.parametrize("shape", [(), (1,), (7,), (4, 5)])
def test_each_client_draws_by_its_key_alone(draw: Any, shape: tuple[int, ...]) -> None:
    found = draw(KEYS[:5], shape)
    assert found.shape == (5, *shape)
    for i in range(5):
        assert torch.equal(draw(KEYS[i : i + 1], shape)[0], found[i])


def fits(values: Tensor, law: str) -> float:
    """The probability that numbers of this law lie as far from it."""
    return float(stats.kstest(values.double().numpy().ravel(), law).pvalue)


def test_numbers_have_their_law() -> None:
    n = 20_000
    normal, uniform = by_key.normal(KEYS[:20], (n,)), by_key.uniform(KEYS[:20], (n,))
    # Twenty tests each: the smallest of as many probabilities is below 1e-4 once in 500 seeds, and this seed is fixed.
    assert min(fits(row, "norm") for row in normal) > 1e-4
    assert min(fits(row, "uniform") for row in uniform) > 1e-4
    assert fits(by_key.normal(KEYS, (1,)), "norm") > 1e-3  # one number of each client
    assert uniform.min() >= 0
    assert uniform.max() < 1
    several = torch.cat([normal, normal.roll(1, 1)[:1], normal[:, torch.arange(n).roll(n // 2)][:1]])
    correlated = torch.corrcoef(several) - torch.eye(len(several))
    assert correlated.abs().max() < 5 / math.sqrt(n)  # of clients, and of a client's numbers with the next and paired
    assert (normal[0].square()[: n // 2] - 1).mul(normal[0].square()[n // 2 :] - 1).mean().abs() < 10 / math.sqrt(n)
    assert float(normal.abs().max()) > 4.5


def test_subsets_are_drawn_without_replacement_and_alike() -> None:
    found = by_key.subset(KEYS, 3, 10)
    assert all(len(set(row)) == 3 and row == sorted(row) for row in found.tolist())
    times = np.bincount(found.flatten().numpy(), minlength=10)
    assert stats.chisquare(times).pvalue > 1e-3
    assert by_key.subset(KEYS[:2], 10, 10).tolist() == [list(range(10))] * 2


def test_transfers_bring_what_they_were_given() -> None:
    given = [torch.ones(3), torch.zeros(0), torch.tensor(4), torch.tensor([True])]
    for moved_there in (sent(given, torch.device("cpu")), fetched(given)):
        assert all(torch.equal(a, b) for a, b in zip(moved_there, given, strict=True))
