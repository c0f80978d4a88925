"""The objective and its oracle: every kernel gives the numbers of plain autograd, padding changes nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from fedsim.data.batches import ClientMinibatches, Feed, Samples, lanes, work_of
from fedsim.data.losses import loss_of
from fedsim.ground.layout import Layout
from fedsim.ground.rng import stream
from fedsim.kernels.oracle import ModelOracle
from fedsim.local import Local
from fedsim.models import build, mlp
from fedsim.objective import Objective
from fedsim.types import Batch

B, M, F_IN, K = 3, 5, 6, 4
KERNELS = ["stacked", "vmap"]


@pytest.fixture
def model() -> nn.Module:
    return build(mlp, (F_IN,), K, {}, 0).double()


@pytest.fixture
def blocks(model: nn.Module) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    d = Layout.of(model).d
    return {
        "x": 0.3 * torch.randn(B, d, generator=g, dtype=torch.float64),
        "inputs": torch.randn(B, M, F_IN, generator=g, dtype=torch.float64),
        "y": torch.randint(K, (B, M), generator=g),
        "mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]], dtype=torch.float64),
    }


def truth(
    model: nn.Module, x: torch.Tensor, inputs: torch.Tensor, y: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradient and loss of one client by functional_call on exactly its own examples."""
    layout = Layout.of(model)
    leaf = x.clone().requires_grad_()
    loss = F.cross_entropy(functional_call(model, layout.views(leaf), (inputs,)), y)
    (grad,) = torch.autograd.grad(loss, leaf)
    return grad, loss.detach()


@pytest.mark.parametrize("kernel", KERNELS)
def test_gradients_of_a_block_with_padding(model: nn.Module, blocks: dict[str, torch.Tensor], kernel: str) -> None:
    oracle = ModelOracle(build(mlp, (F_IN,), K, {}, 0).double(), loss_of("classification"), kernel)
    grads, losses = torch.func.vmap(lambda x, i, y, m: oracle.grad(x, Batch(i, y, m)))(
        blocks["x"], blocks["inputs"], blocks["y"], blocks["mask"]
    )
    values = torch.func.vmap(lambda x, i, y, m: oracle.value(x, Batch(i, y, m)))(
        blocks["x"], blocks["inputs"], blocks["y"], blocks["mask"]
    )
    for b in range(B):
        real = int(blocks["mask"][b].sum())
        grad, loss = truth(model, blocks["x"][b], blocks["inputs"][b, :real], blocks["y"][b, :real])
        torch.testing.assert_close(grads[b], grad, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(losses[b], loss, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(values[b], loss, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kernel", [*KERNELS, "loop"])
def test_example_gradients(model: nn.Module, blocks: dict[str, torch.Tensor], kernel: str) -> None:
    oracle = ModelOracle(build(mlp, (F_IN,), K, {}, 0).double(), loss_of("classification"), kernel)

    def one(x: torch.Tensor, i: torch.Tensor, y: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
        return oracle.example_grads(x, Batch(i, y, m))[0]

    args = (blocks["x"], blocks["inputs"], blocks["y"], blocks["mask"])
    alone = torch.stack([one(*(a[b] for a in args)) for b in range(B)])
    both = [alone] if kernel == "loop" else [alone, torch.func.vmap(one)(*args)]
    for got in both:
        for b in range(B):
            for j in range(M):
                want, _ = truth(model, blocks["x"][b], blocks["inputs"][b, j : j + 1], blocks["y"][b, j : j + 1])
                torch.testing.assert_close(got[b, j], want * blocks["mask"][b, j], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kernel", KERNELS)
def test_features_are_what_the_head_receives(blocks: dict[str, torch.Tensor], kernel: str) -> None:
    mine = build(mlp, (F_IN,), K, {}, 0).double()
    oracle = ModelOracle(mine, loss_of("classification"), kernel)
    got = torch.func.vmap(lambda x, i: oracle.features(x, Batch(i, i)))(blocks["x"], blocks["inputs"])
    for b in range(B):
        alone = oracle.features(blocks["x"][b], Batch(blocks["inputs"][b], blocks["y"][b]))
        torch.testing.assert_close(got[b], alone, rtol=1e-12, atol=1e-12)
        head = oracle.at(blocks["x"][b]).head
        torch.testing.assert_close(head(alone), mine(blocks["inputs"][b]), rtol=0, atol=0)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_shared_model_needs_no_copies(blocks: dict[str, torch.Tensor], kernel: str) -> None:
    """x without a client dimension (the broadcast model) gives the gradients of its copies."""
    oracle = ModelOracle(build(mlp, (F_IN,), K, {}, 0).double(), loss_of("classification"), kernel)
    x = blocks["x"][0]
    shared = torch.func.vmap(lambda i, y: oracle.grad(x, Batch(i, y))[0])(blocks["inputs"], blocks["y"])
    copies = torch.func.vmap(lambda x, i, y: oracle.grad(x, Batch(i, y))[0])(
        x.repeat(B, 1), blocks["inputs"], blocks["y"]
    )
    torch.testing.assert_close(shared, copies, rtol=1e-12, atol=1e-12)


def samples(sizes: list[int]) -> Samples:
    n = sum(sizes)
    x = np.arange(n, dtype=np.float64)[:, None]
    return Samples(x, np.arange(n), np.concatenate([[0], np.cumsum(sizes)]))


@pytest.mark.parametrize("local", [Local(batch_size=3), Local(steps=4, batch_size=3), Local(epochs=1.5, batch_size=4)])
def test_minibatches_go_through_fresh_permutations(local: Local) -> None:
    sizes = [7, 2, 5]
    feed = Feed(samples(sizes), torch.device("cpu"), torch.float64)
    seen = {}
    for i, n in enumerate(sizes):
        work = work_of((i,), 4, feed, local, 11)
        batches = ClientMinibatches(feed, work, {k: t[0] for k, t in lanes(feed, work).items()}, alone=True)
        rows = [batches(k).y.tolist() for k in range(batches.length)]
        assert len(rows) == local.count(n)
        epoch = -(-n // local.batch(n))
        for first in range(0, len(rows) - epoch + 1, epoch):
            everyone = [r for batch in rows[first : first + epoch] for r in batch]
            assert sorted(everyone) == list(range(feed.start[i], feed.start[i + 1])), "an epoch sees each sample once"
        seen[i] = rows
    # in a block, clients get the same minibatches, padded
    work = work_of((0, 1, 2), 4, feed, local, 11)
    inside = lanes(feed, work)

    def gather(lane: dict[str, torch.Tensor]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        batches = ClientMinibatches(feed, work, lane, alone=False)
        got = [batches(k) for k in range(batches.length)]
        masks = [torch.ones_like(g.y) if g.mask is None else g.mask.to(g.y.dtype) for g in got]
        return [g.y for g in got], masks

    ys, masks = torch.func.vmap(gather)(inside)
    for i in range(3):
        mine = [y[i][m[i] > 0].tolist() for y, m in zip(ys, masks, strict=True)]
        assert mine[: len(seen[i])] == seen[i]


def test_the_order_is_addressed() -> None:
    feed = Feed(samples([9]), torch.device("cpu"), torch.float64)
    work = work_of((0,), 2, feed, Local(batch_size=9), 5)
    want = torch.randperm(9, generator=stream(5, "batches", 2, 0))
    assert work.rows is not None
    assert torch.equal(work.rows[0, 0], want)


@pytest.mark.parametrize("sizes", [[4, 4, 4], [4, 2, 3]])
def test_full_batches_are_views_or_padded(sizes: list[int]) -> None:
    feed = Feed(samples(sizes), torch.device("cpu"), torch.float64)
    work = work_of((0, 1, 2), 0, feed, Local(batch_size="full", steps=2), 0)
    inside = lanes(feed, work)
    if len(set(sizes)) == 1:
        assert inside["x"].data_ptr() == feed.x.data_ptr(), "equal neighbours need no copy"

    def total(lane: dict[str, torch.Tensor]) -> torch.Tensor:
        batch = ClientMinibatches(feed, work, lane, alone=False)(1)
        return batch.x[:, 0].sum() if batch.mask is None else (batch.x[:, 0] * batch.mask).sum()

    start = feed.start
    want = [float(sum(range(start[i], start[i + 1]))) for i in range(3)]
    assert torch.func.vmap(total)(inside).tolist() == want


def test_padding_steps_leave_the_carry_unchanged() -> None:
    """Clients of one block make exactly their own K_i steps."""
    sizes = [9, 3, 6]
    feed = Feed(samples(sizes), torch.device("cpu"), torch.float64)
    work = work_of((0, 1, 2), 0, feed, Local(batch_size=3), 0)
    oracle = ModelOracle(build(mlp, (1,), 20, {}, 0).double(), loss_of("classification"), "stacked")

    def count(lane: dict[str, torch.Tensor]) -> torch.Tensor:
        obj = Objective(oracle, ClientMinibatches(feed, work, lane, alone=False), lane["steps"], lane["sizes"])
        return obj.run(lambda carry, batch: carry + 1, torch.zeros(()))

    assert torch.func.vmap(count)(lanes(feed, work)).tolist() == [3, 1, 2]
