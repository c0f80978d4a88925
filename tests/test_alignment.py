"""Bits that are promised do not depend on where or how tensors lie in memory.

Which processors round differently for memory that begins elsewhere is theirs to know (AMD's were seen to), so beside
shifting inputs by every number of elements, the tests look at what reaches the code that does matrix products.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import vmap

from fedsim import Engine, Local, Mean
from fedsim.algorithms.powersgd import PowerSGD
from fedsim.algorithms.scaffold import Scaffold
from fedsim.assembly.assemble import assemble
from fedsim.assembly.parts import Parts
from fedsim.channel.channel import Channel
from fedsim.channel.one_by_one import one_by_one
from fedsim.channel.onion import Layer
from fedsim.channel.topk import TopK
from fedsim.data import Dataset
from fedsim.evaluate import Evaluate
from fedsim.ground.layout import ALIGNMENT, aligned
from fedsim.ground.tree import leaves, tree_map
from fedsim.objective import Objective
from fedsim.partition import Iid
from fedsim.pool.worker import Worker
from fedsim.traits import Traits
from fedsim.types import Message, Round
from tests.channel.test_compressors import LAYERS, Noise, counted, draws
from tests.conftest import small_cnn


def shifted(tensor: Tensor, by: int) -> Tensor:
    """The same values, ``by`` elements further on in memory."""
    there = torch.empty(tensor.numel() + by, dtype=tensor.dtype)[by:].view(tensor.shape)
    return there.copy_(tensor)


def well(tensor: Tensor) -> bool:
    return tensor.is_contiguous() and tensor.data_ptr() % ALIGNMENT == 0


def test_aligned_copies_only_what_lies_elsewhere() -> None:
    t = torch.arange(40.0).view(8, 5)
    assert aligned(t) is t
    for other in (shifted(t, 1), t.t(), t[1:], t[:, 2], t[0].expand(3, 5), shifted(t, 3)[2]):
        assert not well(other)
        assert well(aligned(other))
        assert torch.equal(aligned(other), other)


def test_code_for_one_client_sees_aligned_memory_alone_and_among_others() -> None:
    seen: list[bool] = []

    def alone(a: Tensor, b: Tensor) -> Tensor:
        seen.extend((well(a), well(b)))
        return a @ b

    a, b = torch.randn(3, 5, 7), torch.randn(5, 3, 7)  # clients first, clients in the middle
    together = vmap(lambda x, y: one_by_one(alone, x, y.t()), in_dims=(0, 1))(a, b)
    each = [one_by_one(alone, shifted(a[i], i), b[:, i].t()) for i in range(3)]
    assert len(seen) == 12
    assert all(seen)
    assert torch.equal(together, torch.stack(each))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_a_compressor_gives_the_same_bits_wherever_its_vector_lies(layer: Any, dtype: torch.dtype) -> None:
    for d in (37, 200):
        v = torch.randn(d, generator=torch.Generator().manual_seed(d), dtype=dtype)
        noise = Noise(*(t[0] for t in draws(1, d, dtype=dtype)))
        first, _, _ = layer(v, (), noise, counted)
        for by in range(1, 17):
            moved = Noise(shifted(noise.u, by), shifted(noise.z, by), noise.order, noise.s)
            assert torch.equal(layer(shifted(v, by), (), moved, counted)[0], first)
        rows = torch.stack([v] * 17)  # of 17 equal clients every one begins elsewhere
        many = [t.expand(17, *t.shape) for t in noise]
        together = vmap(lambda x, *ts: layer(x, (), Noise(*ts), counted)[0])(rows, *many)
        assert all(torch.equal(row, first) for row in together)


SPARSE = Channel((Layer("topk", TopK(k=40)),))


def prepared(
    kernel: Any, data: Dataset, dtype: Any = "float32", algorithm: Any = None, channel: Channel = SPARSE
) -> Any:
    how = {"batching": "loop"} if kernel == "loop" else {"kernel": kernel}
    parts = Parts(
        algorithm or Scaffold(lr=0.1),
        data,
        partition=Iid(clients=5),
        model=small_cnn,
        rounds=2,
        local=Local(steps=2, batch_size=8),
        aggregate=Mean(weights="uniform"),
        channel=channel,
        engine=Engine(backend="serial", dtype=dtype, jobs=1, **how),
        seed=1,
    )
    return assemble(parts, data)


def moved_array(array: np.ndarray, by: int) -> np.ndarray:
    """The same values, ``by`` elements further on than torch's memory begins."""
    return shifted(torch.from_numpy(np.ascontiguousarray(array)), by).numpy()


@pytest.mark.parametrize("kernel", ["stacked", "vmap", "loop"])
def test_a_clients_result_has_the_same_bits_wherever_its_inputs_lie(kernel: str, squares: Dataset) -> None:
    """Its state, the broadcast, the samples."""
    found = prepared(kernel, squares).prepared
    setup, samples = found.setup, found.setup.train
    generator = torch.Generator().manual_seed(0)
    rows = tree_map(lambda t: torch.randn(3, *t.shape, generator=generator), found.rows[0])
    got = setup.algorithm.broadcast(setup.algorithm.init_server(found.x0), Round(1, (0, 2, 3), 5))
    outcomes = []
    for by in (0, 1, 3, 8):
        train = replace(samples, x=moved_array(samples.x, by), y=moved_array(samples.y, by))
        worker = Worker(replace(setup, train=train, models=copy.deepcopy(setup.models)))
        mine, told = tree_map(lambda t, by=by: shifted(t, by), (rows, got))
        outcomes.append(worker.blocks[0].run((0, 2, 3), mine, told, Round(1, (0, 2, 3), 5)))
    for other in outcomes[1:]:
        for a, b in zip(leaves(tuple(outcomes[0])), leaves(tuple(other)), strict=True):
            assert torch.equal(a, b)


SEEN: list[bool] = []


class Both(NamedTuple):
    """A model, and numbers that nobody's memory would align."""

    x: Tensor
    odd: Tensor


@dataclass(frozen=True)
class Looking:
    """Sends and keeps vectors that begin anywhere, and notes how what it gets lies in memory."""

    traits = Traits(uniform=True)

    def init_server(self, x0: Tensor) -> Both:
        return Both(x0, torch.zeros(7, 3, dtype=x0.dtype))

    def init_client(self, x0: Tensor) -> Tensor:
        return x0[1:8]

    def broadcast(self, server: Both, rnd: Round) -> Message:
        SEEN.extend(map(well, server))
        return {"x": server.x, "odd": server.odd}

    def local(self, obj: Objective, client: Tensor, got: Message, rnd: Round) -> tuple[Message, Tensor]:
        SEEN.extend(map(well, (client, got["x"], got["odd"])))
        return {"x": got["x"] + 1, "odd": got["odd"].t() + 1}, got["x"][3:10]

    def server(self, server: Both, received: Message, rnd: Round) -> Both:
        SEEN.extend(map(well, received.values()))
        return Both(received["x"], received["odd"].t())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_what_an_algorithm_gets_is_aligned(dtype: Any, squares: Dataset) -> None:
    """On the server's side as on the clients', whose rows of a block begin anywhere."""
    assembled = prepared("loop", squares, dtype, Looking())
    run = assembled.begin(assembled.start(), Evaluate(every=2))
    SEEN.clear()
    for _ in range(2):
        run.step()
    assert len(SEEN) == 2 * (2 + 2) + 2 * 5 * 3
    assert all(SEEN)
    assert all(well(leaf) for leaf in leaves(run.snapshot()["server"]))


def test_the_servers_state_lies_as_a_resumed_run_has_it(squares: Dataset) -> None:
    """PowerSGD's factors come out of a QR column by column; a checkpoint holds them row by row."""
    assembled = prepared("auto", squares, "float64", PowerSGD(lr=0.1, rank=1), Channel())
    run = assembled.begin(assembled.start(), Evaluate(every=2))
    for _ in range(2):
        run.step()
        assert all(well(leaf) for leaf in leaves(run.server))
