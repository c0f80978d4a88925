"""Models with dropout in a run: the masks that their addresses say, for every kernel, method and number of workers.

The oracle is a plain torch loop with masks by ``tests.test_masks``, whose computation of bits is independent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fedsim import Engine, Local, Result, simulate
from fedsim.algorithms.fedavg import FedAvg
from fedsim.assembly.agreement import Agreement, Trial
from fedsim.assembly.uses import QUESTIONS
from fedsim.data import Dataset, Split
from fedsim.data.batches import Feed, Samples, work_of
from fedsim.errors import InputError
from fedsim.ground import rng
from fedsim.kernels.kernel import Kernel
from fedsim.models import build, cnn_dropout
from fedsim.objective import Objective
from fedsim.partition import Natural
from fedsim.schedule import All, Uniform
from fedsim.types import Batch, Message, Round
from tests.laws.test_catalogue import aggregate, algorithm, graph
from tests.test_masks import below, keep

SIZES, SEED, K = (5, 7, 10), 3, 3
START = np.concatenate([[0], np.cumsum(SIZES)])
LOCAL = Local(epochs=2, batch_size=4)


def data(*shape: int) -> Dataset:
    draw = np.random.default_rng(1)
    x = draw.normal(size=(START[-1], *shape))
    return Dataset(
        "few", Split(x, draw.integers(0, K, START[-1]), np.repeat(np.arange(3), SIZES)), None, "classification", K
    )


class Two(nn.Module):
    """Dropout on the inputs and, as a call, behind the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.drop, self.body, self.head = nn.Dropout(0.2), nn.Linear(6, 8), nn.Linear(8, K)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.dropout(torch.tanh(self.body(self.drop(x))), 0.4, self.training))  # type: ignore[no-any-return]


class Images(nn.Module):
    """Convolutions with channels dropped, a shortcut, numbers dropped in both layouts of the stacked kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.channels, self.numbers, self.alpha = nn.Dropout2d(0.3), nn.Dropout(0.25), nn.FeatureAlphaDropout(0.2)
        self.late = nn.Dropout(0.5, inplace=True)
        self.head = nn.Linear(16, K)

    def forward(self, x: Tensor) -> Tensor:
        y = self.channels(torch.tanh(self.first(x)))
        y = self.numbers(y + self.alpha(self.again(y)))
        y = F.max_pool2d(y, 2).flatten(1)
        return self.head(self.late(F.alpha_dropout(y, 0.1, self.training)))  # type: ignore[no-any-return]


class Attention(nn.Module):
    def __init__(self, first: bool = True) -> None:
        super().__init__()
        self.first = first
        self.block = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.3, batch_first=first)
        self.embed, self.head = nn.Linear(3, 4), nn.Linear(4, K)

    def forward(self, x: Tensor) -> Tensor:
        y = self.embed(x)
        y = self.block(y) if self.first else self.block(y.transpose(0, 1)).transpose(0, 1)
        return self.head(y.mean(1))  # type: ignore[no-any-return]


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru, self.head = nn.GRU(3, 4, 2, dropout=0.4), nn.Linear(4, K)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.gru(x.transpose(0, 1))[0][-1])  # type: ignore[no-any-return]


class Weights(nn.Module):
    """Weights dropped, not activations."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, K)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, F.dropout(self.head.weight, 0.4, self.training), self.head.bias)


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], tuple[Kernel, ...]]] = {
    "two": (Two, (6,), ("stacked", "vmap", "loop")),
    "images": (Images, (2, 4, 4), ("stacked", "vmap", "loop")),
    "cnn_dropout": (lambda: cnn_dropout((2, 6, 6), K, (3, 4), 5), (2, 6, 6), ("stacked", "vmap", "loop")),
    "attention": (Attention, (2, 3), ("stacked", "loop")),
    "attention, time first": (lambda: Attention(first=False), (5, 3), ("stacked", "loop")),
    "recurrent": (Recurrent, (5, 3), ("stacked", "loop")),
    "weights": (Weights, (6,), ("loop",)),
}
CASES = [(name, kernel) for name, (_, _, kernels) in MODELS.items() for kernel in kernels]


@pytest.mark.parametrize(("name", "kernel"), CASES)
def test_every_kernel_has_the_numbers_of_the_module(name: str, kernel: Kernel) -> None:
    """In all that a method may ask, among them gradients by example and clipped sums, in both precisions."""
    make, shape, _ = MODELS[name]
    model = build(make, shape, K, {}, SEED)
    samples = data(*shape)
    rows = torch.tensor([[0, 1, 2, 3], [9, 8, 7, 7]])
    mask = torch.tensor([[1.0, 1, 1, 1], [1, 1, 1, 0]])
    x0 = torch.cat([p.detach().flatten() for p in model.parameters()])
    y = torch.from_numpy(samples.train.y)
    at = Trial(torch.stack([x0, x0 * 1.1]), torch.from_numpy(samples.train.x)[rows].float(), y[rows], mask)
    for trial in (at, at.double()):
        agreement = Agreement(
            model.to(trial.x.dtype),
            lambda o, y: F.cross_entropy(o.movedim(-1, 1) if o.dim() > 2 else o, y, reduction="none"),
            trial,
        )
        assert not agreement.training(kernel, QUESTIONS)
        if name != "weights":  # whose one mask is of the whole minibatch
            assert not agreement.training(kernel, ["clipped_sum"], by_layer=False)
        if kernel != "vmap":
            assert not agreement.prediction(kernel)


def example_keys(client: int, index: int, step: int, count: int) -> list[int]:
    """By the table of addresses: one key for client and round, below it one for each step, below that the examples'."""
    mine = below(rng.key(SEED, "dropout", index, client), step)
    return [below(mine, j) for j in range(count)]


def masked(x: Tensor, keys: list[int], place: int, p: float) -> Tensor:
    return x * torch.stack([keep(key, place, p, *x.shape[1:]) for key in keys]).to(x.dtype) / (1 - p)


def two_by_hand(parameters: list[Tensor], x: Tensor, keys: list[int]) -> Tensor:
    w, b, head, bias = parameters
    hidden = torch.tanh(masked(x, keys, 0, 0.2) @ w.T + b)
    return masked(hidden, keys, 1, 0.4) @ head.T + bias


def fedavg_by_hand(start: nn.Module, samples: Dataset, rounds: int, lr: float, dtype: torch.dtype) -> list[Tensor]:
    x, y = torch.from_numpy(samples.train.x).to(dtype), torch.from_numpy(samples.train.y)
    feed = Feed(Samples(samples.train.x, samples.train.y, START), torch.device("cpu"), torch.float64)
    values = [p.detach().to(dtype) for p in start.parameters()]
    for index in range(rounds):
        mean = [torch.zeros_like(v, dtype=torch.float64) for v in values]
        for i, n in enumerate(SIZES):
            mine = [v.clone() for v in values]
            work = work_of((i,), index, feed, LOCAL, SEED)
            assert work.rows is not None
            for step, count in enumerate(work.counts[0].tolist()):
                rows = work.rows[0, step, :count]
                leaves = [v.requires_grad_() for v in mine]
                outputs = two_by_hand(leaves, x[rows], example_keys(i, index, step, count))
                grads = torch.autograd.grad(F.cross_entropy(outputs, y[rows]), leaves)
                mine = [(v - lr * g).detach() for v, g in zip(leaves, grads, strict=True)]
            for total, after, before in zip(mean, mine, values, strict=True):
                total += (after - before).double() * n / sum(SIZES)
        values = [v + m.to(dtype) for v, m in zip(values, mean, strict=True)]
    return values


ENGINES: dict[str, dict[str, Any]] = {
    "stacked": {"kernel": "stacked"},
    "stacked in pairs": {"kernel": "stacked", "block": 2},
    "vmap": {"kernel": "vmap"},
    "loop": {"batching": "loop"},
}


def run(rule: Any, engine: dict[str, Any], dtype: str = "float64", rounds: int = 2, **options: Any) -> Result:
    named: dict[str, Any] = {"model": Two, "data": data(6), "local": LOCAL, "schedule": All(), **options}
    return simulate(
        rule,
        partition=Natural(),
        rounds=rounds,
        seed=SEED,
        engine=Engine(**{"backend": "serial", "dtype": dtype, **engine}),
        **named,
    )


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("float64", 1e-12)])
def test_fedavg_is_the_hand_written_loop(engine: str, dtype: str, tolerance: float) -> None:
    """The last minibatch of every client is smaller: masks are by example, whatever padding lies beside it."""
    lr = 0.3
    got = run(FedAvg(lr=lr), ENGINES[engine], dtype).model
    start = build(Two, (6,), K, {}, SEED)
    want = fedavg_by_hand(start, data(6), 2, lr, getattr(torch, dtype))
    for p, q in zip(got.parameters(), want, strict=True):
        torch.testing.assert_close(p.detach(), q, rtol=tolerance, atol=tolerance)
    assert all(float((p - q).detach().abs().max()) > 1e-3 for p, q in zip(start.parameters(), want, strict=True))


def evaluated(model: nn.Module, samples: Dataset) -> float:
    """Loss of the plain module in evaluation mode."""
    outputs = model.double().eval()(torch.from_numpy(samples.train.x))
    return float(F.cross_entropy(outputs, torch.from_numpy(samples.train.y)).detach())


@pytest.mark.parametrize("engine", ["stacked", "loop"])
def test_nothing_is_dropped_in_evaluation(engine: str) -> None:
    result = run(FedAvg(lr=0.3), ENGINES[engine])
    last = result.metrics[-1]
    np.testing.assert_allclose(last["eval/loss"], evaluated(result.model, data(6)), rtol=1e-12)


FAMILIES = {
    "fedavg": {},
    "fedsam": {},  # two gradients a step, on one minibatch with one set of masks
    "scaffold": {},
    "fedproto": {},  # passes over all data
    "fml": {},  # two models
    "dp_sgd": {"local": Local(steps=3, batch_size=3, sampling="poisson")},
    "diff2": {},
}


@pytest.mark.parametrize("name", FAMILIES)
def test_methods_batched_and_one_by_one(name: str) -> None:
    options = dict(FAMILIES[name])
    one, many = (run(algorithm(name), ENGINES[e], aggregate=aggregate(name), **options) for e in ("loop", "stacked"))
    for a, b in zip(one.metrics, many.metrics, strict=True):
        assert a.keys() == b.keys()
        for tag, value in a.items():
            if tag.startswith(("train/", "eval/")):
                np.testing.assert_allclose(b[tag], value, rtol=1e-9, atol=1e-12, err_msg=tag)


@pytest.mark.parametrize("name", ["dfedsam", "gradient_tracking"])
def test_peers_batched_and_one_by_one(name: str) -> None:
    one, many = (run(algorithm(name), ENGINES[e], topology=graph(name)) for e in ("loop", "stacked"))
    np.testing.assert_allclose(many.metrics[-1]["eval/loss"], one.metrics[-1]["eval/loss"], rtol=1e-9)


@dataclass(frozen=True)
class Seen(FedAvg):
    """Sends what its model gives for minibatches: the second time it must be the same, at another step another."""

    def local(self, obj: Objective, client: Any, got: Message, rnd: Round) -> tuple[Message, Any]:
        x = got["x"]

        def look(carry: Tensor, batch: Batch) -> Tensor:
            assert torch.equal(obj.outputs(x, batch), obj.outputs(x, batch))
            return carry + obj.outputs(x, batch).sum()

        seen = [obj.run(look, x.new_zeros(())), obj.run(look, x.new_zeros(())), obj.sweep(look, x.new_zeros(()))]
        SEEN.append([float(v) for v in seen])
        return {"update": torch.zeros_like(x)}, client


SEEN: list[list[float]] = []


def test_a_step_has_its_masks_and_a_pass_over_all_data_others() -> None:
    SEEN.clear()
    run(Seen(lr=0.1), ENGINES["loop"], rounds=1, local=Local(steps=1, batch_size="full"))
    for first, again, sweep in SEEN[-3:]:
        assert first == again != sweep


@cache
def digest(**engine: Any) -> str:
    return str(run(FedAvg(lr=0.3), engine, "float32", rounds=3, schedule=Uniform(cohort=2)).summary["digest"])


@pytest.mark.slow
@pytest.mark.xdist_group("ray")
@pytest.mark.parametrize("kernel", ["stacked", "loop"])
def test_one_and_three_actors_have_the_serial_bits(kernel: str) -> None:
    ray = pytest.importorskip("ray")
    how: dict[str, Any] = {"jobs": 3, **ENGINES[kernel]}
    ray.init(address="local", num_cpus=3, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        assert digest(**how) == digest(**how, backend="ray", actors=1) == digest(**how, backend="ray", actors=3)
    finally:
        ray.shutdown()


def test_a_resumed_run_has_the_masks_of_a_whole_one(tmp_path: Path) -> None:
    options: dict[str, Any] = {"engine": {}, "dtype": "float32"}
    whole = run(FedAvg(lr=0.3), rounds=3, run_dir=tmp_path / "whole", **options)
    run(FedAvg(lr=0.3), rounds=2, run_dir=tmp_path / "parts", **options)
    again = run(FedAvg(lr=0.3), rounds=3, run_dir=tmp_path / "parts", resume=True, **options)
    assert again.summary["digest"] == whole.summary["digest"]


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((1, 5, 9), {}, "6x6 at least, got 5x9"),
        ((3, 8, 8), {"dropout": (0.2, 1.0)}, "dropout must be two rates"),
        ((3, 8, 8), {"hidden": 0}, "hidden must be >= 1"),
        ((3, 8, 8), {"channels": (0, 4)}, "channels must be two numbers"),
    ],
)
def test_options_of_the_model_that_are_refused(shape: tuple[int, ...], options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        cnn_dropout(shape, 10, **options)


def always(x: Tensor) -> Tensor:
    return F.dropout(x, 0.5)


def again(x: Tensor) -> Tensor:
    return checkpoint(lambda x: torch.tanh(F.dropout(x, 0.5)), x, use_reentrant=False)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (nn.RReLU(), r"draws random numbers in forward \(torch\)"),
        (lambda x: F.gumbel_softmax(x), r"draws random numbers in forward \(torch\)"),
        (lambda x: x * torch.bernoulli(torch.full_like(x, 0.5)), r"draws random numbers in forward \(torch\)"),
        (lambda x: F.dropout(x, 0.5) * torch.rand(()), r"draws random numbers in forward \(torch\)"),
        (always, r"draws random numbers in forward \(torch\).*switch dropout off in evaluation"),
        (again, "checkpoint"),
    ],
)
def test_other_draws_stay_refused(act: Callable[[Tensor], Tensor], message: str) -> None:
    class Drawing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = act
            self.body, self.head = nn.Linear(6, 6), nn.Linear(6, K)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.act(self.body(x)) if self.training or self.act is always else x)  # type: ignore[no-any-return]

    with pytest.raises(InputError, match=message) as caught:
        run(FedAvg(lr=0.1), {}, model=Drawing)
    assert "\n" not in str(caught.value)


def test_the_law_of_the_losses_is_dropouts() -> None:
    """At a model that stays, the training loss has the mean and the spread that torch's own masks give: 5 sigma."""
    start, samples, n = build(Two, (6,), K, {}, SEED).double(), data(6), 400
    still = run(FedAvg(lr=1e-12), ENGINES["stacked"], rounds=n // 4, local=Local(steps=1, batch_size="full"))
    mine = np.array([record["train/loss"] for record in still.metrics if "train/loss" in record])
    x, y = torch.from_numpy(samples.train.x), torch.from_numpy(samples.train.y)
    torch.manual_seed(0)
    theirs = np.array([float(F.cross_entropy(start(x), y).detach()) for _ in range(n)])
    assert abs(mine.mean() - theirs.mean()) < 5 * theirs.std() * (1 / len(mine) + 1 / n) ** 0.5
    assert 0.6 < mine.std() / theirs.std() < 1.6  # of a hundred, a standard deviation is known to 7 %
