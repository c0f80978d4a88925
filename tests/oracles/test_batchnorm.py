"""Who owns the statistics of BatchNorm: each policy against a plain torch loop over two clients that differ in them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedsim import Engine, Local, Mean, Result, simulate
from fedsim.algorithms.fedavg import FedAvg
from fedsim.algorithms.fedbn import FedBN
from fedsim.algorithms.fedsam import FedSAM
from fedsim.algorithms.scaffold import Scaffold
from fedsim.data import Dataset, Split
from fedsim.ground.rng import stream
from fedsim.models import Adapted
from fedsim.partition import Population

SEED, BATCH, LR, ROUNDS = 5, 4, 0.05, 3
SIZES = (10, 18)  # three and five minibatches
RHO = 0.1
ROUNDING = {"float32": 1e-6, "float64": 1e-12}
ALGORITHMS = {
    "fedavg": FedAvg(lr=LR),
    "fedsam": FedSAM(lr=LR, rho=RHO),
    "scaffold": Scaffold(lr=LR),
    "fedbn": FedBN(lr=LR),
}


class Normed(nn.Module):
    """BatchNorm of images and of rows; the second one averages over all its batches, so that its count matters."""

    def __init__(self, *, own: bool = True) -> None:
        super().__init__()
        self.own = own
        self.conv, self.norm = nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)
        self.hidden, self.rows = nn.Linear(3 * 4 * 4, 6), nn.BatchNorm1d(6, momentum=None)
        self.head = nn.Linear(6, 3)
        self.register_buffer("seen", torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.own:  # a buffer of its own, which no layer of torch writes
            self.seen = 0.5 * self.seen + 0.5 * torch.stack([x.detach().mean(), x.detach().abs().max()])
        x = torch.tanh(self.norm(self.conv(x))).flatten(1)
        return self.head(torch.tanh(self.rows(self.hidden(x)))) + 0.01 * self.seen.sum()


class Two(NamedTuple):
    """The first samples are the first client's, the others the second's; of training and of test samples alike."""

    def split(self, data: Dataset, seed: int) -> Population:
        parts = (np.arange(SIZES[0]), np.arange(SIZES[0], sum(SIZES)))
        return Population(parts, parts)


def data() -> Dataset:
    """The second client's images are brighter and have more contrast."""
    random = np.random.default_rng(0)
    scale = np.repeat([1.0, 3.0], SIZES)[:, None, None, None]
    some = [Split(random.normal(size=(28, 2, 6, 6)) * scale + scale - 1, random.integers(3, size=28)) for _ in range(2)]
    return Dataset("two", some[0], some[1], "classification", 3)


def model(policy: str = "local") -> nn.Module:
    """With statistics that are not those of a new layer; what is frozen has no other buffers."""
    torch.manual_seed(3)
    made = Normed(own=policy != "frozen")
    with torch.no_grad():
        for norm in (made.norm, made.rows):
            assert norm.running_mean is not None
            assert norm.running_var is not None
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2.0)
    return made


def trained(m: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in m.named_parameters()}


def buffers(m: nn.Module) -> dict[str, Tensor]:
    return {name: b.detach().clone() for name, b in m.named_buffers()}


def fill(m: nn.Module, *values: dict[str, Tensor]) -> None:
    own = dict(m.named_parameters()) | dict(m.named_buffers())
    with torch.no_grad():
        for name, value in (item for some in values for item in some.items()):
            own[name].copy_(value)


def train_mode(m: nn.Module, policy: str) -> None:
    """With ``frozen`` the layers stay in evaluation mode."""
    m.train()
    for layer in m.modules():
        if policy == "frozen" and isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.eval()


def gradient(m: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    m.zero_grad()
    F.cross_entropy(m(x), y).backward()
    return {name: p.grad.clone() for name, p in m.named_parameters() if p.grad is not None}


class ByHand(NamedTuple):
    parameters: dict[str, Tensor]  # of the server
    buffers: dict[str, Tensor]  # of the server
    own: list[tuple[dict[str, Tensor], dict[str, Tensor]]]  # the clients' own
    predictions: list[Tensor]  # of each client's test samples, by the model that it is tested with


def by_hand(method: str, policy: str, dtype: torch.dtype) -> ByHand:
    """Two clients, every round; nothing of fedsim but the order of examples."""
    m = model(policy).to(dtype)
    everything = data()
    x, y = torch.from_numpy(everything.train.x).to(dtype), torch.from_numpy(everything.train.y)
    server, held = trained(m), buffers(m)
    kept = [buffers(m) for _ in SIZES]
    norms = {n: {k: v for k, v in trained(m).items() if k.startswith(("norm.", "rows."))} for n in range(2)}
    zero = {k: torch.zeros_like(v) for k, v in server.items()}
    c, c_i = zero, [zero, zero]
    shares = [0.5, 0.5] if method == "scaffold" else [n / sum(SIZES) for n in SIZES]
    start = [0, SIZES[0]]
    for t in range(ROUNDS):
        models, left, new_c = [], [], []
        for i, n in enumerate(SIZES):
            begin = server | norms[i] if method == "fedbn" else server
            fill(m, begin, kept[i] if policy == "local" else held)
            train_mode(m, policy)
            order = start[i] + torch.randperm(n, generator=stream(SEED, "batches", t, i))
            steps = 0
            for first in range(0, n, BATCH):
                steps += 1
                few = order[first : first + BATCH]
                at = trained(m)
                g = gradient(m, x[few], y[few])
                if method == "fedsam":
                    after = buffers(m)
                    norm = torch.sqrt(sum((v.square().sum() for v in g.values()), start=torch.zeros((), dtype=dtype)))
                    fill(m, {k: v + RHO * g[k] / (norm + 1e-7) for k, v in at.items()})
                    g = gradient(m, x[few], y[few])
                    fill(m, after)  # the second pass has the same minibatch, which is not counted twice
                if method == "scaffold":
                    g = {k: v - c_i[i][k] + c[k] for k, v in g.items()}
                fill(m, {k: v - LR * g[k] for k, v in at.items()})
            models.append(trained(m))
            left.append(buffers(m))
            new_c.append({k: c_i[i][k] - c[k] + (begin[k] - models[i][k]) / (steps * LR) for k in server})
            kept[i] = left[i] if policy == "local" else kept[i]
            norms[i] = {k: models[i][k] for k in norms[i]}
        server = {k: mean([one[k] for one in models], shares, v) for k, v in server.items()}
        if policy == "average":
            held = {k: mean([one[k] for one in left], shares, v) for k, v in held.items()}
        if method == "scaffold":
            c = {k: c[k] + sum(new_c[i][k] - c_i[i][k] for i in range(2)) / 2 for k in c}
            c_i = new_c
    m.eval()
    tests = torch.from_numpy(everything.test.x).to(dtype) if everything.test is not None else x
    predictions, own = [], []
    for i, n in enumerate(SIZES):
        own.append((server | norms[i] if method == "fedbn" else server, kept[i] if policy == "local" else held))
        fill(m, *own[i])
        predictions.append(m(tests[start[i] : start[i] + n]).detach())
    return ByHand(server, held, own, predictions)


def mean(values: list[Tensor], shares: list[float], like: Tensor) -> Tensor:
    total = sum(
        (s * v.double() for s, v in zip(shares, values, strict=True)), start=torch.zeros((), dtype=torch.double)
    )
    return total.round().to(like.dtype) if not like.is_floating_point() else total.to(like.dtype)


def run(method: str, policy: Any, dtype: str = "float64", **options: Any) -> Result:
    engine = Engine(**({"backend": "serial", "dtype": dtype} | options.pop("engine", {})))
    rule = Mean(weights="uniform" if method == "scaffold" else "examples")
    settings = {"rounds": ROUNDS, "local": Local(batch_size=BATCH), "seed": SEED, "partition": Two(), "aggregate": rule}
    chosen = Adapted(model(policy), batchnorm=policy)
    return simulate(ALGORITHMS[method], data=data(), model=chosen, engine=engine, **(settings | options))


def near(got: Any, want: Any, dtype: str, name: str = "") -> None:
    torch.testing.assert_close(torch.as_tensor(got), torch.as_tensor(want), rtol=0, atol=3 * ROUNDING[dtype], msg=name)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("method", ["fedavg", "fedsam", "scaffold"])
def test_average_is_the_mean_of_the_clients_statistics(method: str, dtype: str) -> None:
    want, got = by_hand(method, "average", getattr(torch, dtype)), run(method, "average", dtype)
    assert got.model is not None
    for name, value in (got.model.state_dict()).items():
        near(value, (want.parameters | want.buffers)[name], dtype, name)
    losses = F.cross_entropy(torch.cat(want.predictions), torch.from_numpy(data().test.y))  # type: ignore[union-attr]
    near(got.metrics[-1]["eval/loss"], float(losses), dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("method", ["fedavg", "fedsam", "scaffold", "fedbn"])
def test_local_statistics_stay_where_they_were_made(method: str, dtype: str) -> None:
    want, got = by_hand(method, "local", getattr(torch, dtype)), run(method, "local", dtype)
    rows = got.stores[0].read([0, 1])
    kept = rows[0][1]  # of each client, in the order of the model's buffers
    for i, (_, own) in enumerate(want.own):
        flat = torch.cat([b.reshape(-1).to(getattr(torch, dtype)) for b in own.values()])
        near(kept[i], flat, dtype)
    if method != "fedbn":
        assert got.model is not None
        for name, value in trained(got.model).items():
            near(value, want.parameters[name], dtype, name)
        for name, value in buffers(got.model).items():  # what leaves the run has the statistics that it began with
            near(value, buffers(model())[name].to(value.dtype), dtype, name)
    losses = F.cross_entropy(torch.cat(want.predictions), torch.from_numpy(data().test.y))  # type: ignore[union-attr]
    near(got.metrics[-1]["eval/loss"], float(losses), dtype)


@pytest.mark.parametrize("engine", [{"batching": "loop"}, {"kernel": "vmap"}, {"kernel": "stacked"}])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("method", ["fedavg", "scaffold"])
def test_frozen_statistics_are_used_in_training_too(method: str, dtype: str, engine: dict[str, Any]) -> None:
    want, got = by_hand(method, "frozen", getattr(torch, dtype)), run(method, "frozen", dtype, engine=engine)
    assert got.model is not None
    for name, value in got.model.state_dict().items():
        near(value, (want.parameters | want.buffers)[name], dtype, name)


def test_nobodys_statistics_become_everybodys() -> None:
    """The mean is of both clients: it lies strictly between what either of them would make of it alone."""

    class Lone(Two):
        def split(self, data: Dataset, seed: int) -> Population:
            both = super().split(data, seed)
            return Population(both.train[self.who : self.who + 1], both.test[self.who : self.who + 1])

    whole = Local(
        steps=3, batch_size="full"
    )  # in which a client's number, and so the order of its examples, is no matter
    both = run("fedavg", "average", rounds=1, local=whole).model
    assert both is not None
    means = []
    for who in range(2):
        Lone.who = who  # type: ignore[attr-defined]
        alone = run("fedavg", "average", rounds=1, local=whole, partition=Lone()).model
        assert alone is not None
        means.append(alone.get_buffer("norm.running_mean"))
    assert ((means[0] - means[1]).abs() > 0.01).all()
    share = SIZES[0] / sum(SIZES)
    near(both.get_buffer("norm.running_mean"), share * means[0] + (1 - share) * means[1], "float64")
