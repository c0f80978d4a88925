"""Sums of clipped gradients by example: every layer and path against autograd, one example at a time."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedsim.data.losses import Loss, cross_entropy, squared_error
from fedsim.ground.layout import Layout
from fedsim.kernels.example_pieces import Outer, OuterDifference
from fedsim.kernels.oracle import ModelOracle
from fedsim.models import Adapted
from fedsim.types import Batch

B, M = 3, 5
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]], dtype=torch.float64)


class Tied(nn.Module):
    """One weight at two layers: its gradients add up before they have a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(torch.tanh(self.second(torch.tanh(self.first(x)))))
        return out


class Folded(nn.Module):
    """Positions become rows: the layer sees six rows for every three examples."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(2, 3), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(torch.tanh(self.inner(x.view(-1, 2))).view(-1, 6))
        return out


class Partly(nn.Module):
    """A layer that forward does not use."""

    def __init__(self) -> None:
        super().__init__()
        self.unused, self.head = nn.Linear(4, 2), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(x)
        return out


class Unknown(nn.Module):
    """A call without a stacked kernel."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.special.expit(x)


def sequences() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(18, 3))


def frozen() -> nn.Module:
    """BatchNorm of images, sequences and numbers whose statistics are constants."""
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Flatten(2), nn.BatchNorm1d(4), nn.Flatten(), nn.BatchNorm1d(16),
        nn.BatchNorm1d(16, affine=False), nn.Linear(16, 3),
    )  # fmt: skip
    for norm in model.modules():
        if isinstance(norm, (nn.BatchNorm1d, nn.BatchNorm2d)):
            norm.running_mean, norm.running_var = torch.randn(norm.num_features), 0.5 + torch.rand(norm.num_features)
    return Adapted(model, batchnorm="frozen")((1,), 1)


def images() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.GroupNorm(2, 4),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 5, 2, stride=2, dilation=1, bias=False),
        nn.Flatten(),
        nn.Linear(5, 3),
    )


class Case:
    def __init__(self, make: Callable[[], nn.Module], shape: tuple[int, ...], outputs: int = 3, *, fast: bool = True):
        self.make, self.shape, self.outputs, self.fast = make, shape, outputs, fast

    @property
    def loss(self) -> Loss:
        return squared_error if self.outputs == 1 else cross_entropy

    def model(self) -> nn.Module:
        torch.manual_seed(0)
        return self.make().double()


def without(make: Callable[[], nn.Module], *freeze: str) -> Callable[[], nn.Module]:
    """The model with some parameters frozen."""
    return lambda: Adapted(make(), freeze=freeze)((1,), 1)


CASES = {
    "mlp": Case(lambda: nn.Sequential(nn.Linear(8, 10), nn.Softplus(), nn.Linear(10, 1)), (8,), 1),
    "linear": Case(lambda: nn.Sequential(nn.Linear(6, 3, bias=False)), (6,)),
    "sequences": Case(sequences, (3, 4)),
    "images": Case(images, (2, 4, 4)),
    "unused": Case(Partly, (4,)),
    "tied": Case(Tied, (4,), fast=False),
    "folded": Case(Folded, (4,)),
    "depthwise": Case(lambda: nn.Sequential(nn.Conv2d(2, 4, 3, groups=2), nn.Flatten()), (2, 3, 3), 4, fast=False),
    "unknown": Case(lambda: nn.Sequential(nn.Linear(4, 3), Unknown()), (4,), fast=False),
    "frozen": Case(frozen, (2, 4, 4)),
    "frozen_parts": Case(without(frozen, "1.weight", "3.bias", "5.*"), (2, 4, 4)),
    "images_head": Case(without(images, "0.*", "1.*", "4.*"), (2, 4, 4)),
    "images_parts": Case(without(images, "0.weight", "1.bias", "6.*"), (2, 4, 4)),
    "sequences_parts": Case(without(sequences, "0.bias", "1.weight", "4.weight"), (3, 4)),
    "tied_frozen": Case(without(Tied, "first.*"), (4,)),  # its weight is the second layer's too
}


def truth(case: Case, x: Tensor, inputs: Tensor, y: Tensor, mask: Tensor, bound: float, less: Tensor | None) -> Tensor:
    """One example after the other."""
    model = case.model()
    layout = Layout.of(model)

    def gradient(at: Tensor, j: int) -> Tensor:
        leaf = at.clone().requires_grad_()
        value = case.loss(functional_call(model, layout.views(leaf), (inputs[j : j + 1],)), y[j : j + 1]).sum()
        return torch.autograd.grad(value, leaf)[0]

    total = torch.zeros_like(x)
    for j in range(int(mask.sum())):
        g = gradient(x, j) if less is None else gradient(x, j) - gradient(less, j)
        total += g * min(1.0, bound / max(float(g.norm()), 1e-300))
    return total


def problem(case: Case, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Models, models nearby, inputs and targets of b clients."""
    g = torch.Generator().manual_seed(1)
    d = Layout.of(case.model()).d
    x = 0.5 * torch.randn(B, d, generator=g, dtype=torch.float64)
    less = x + 0.05 * torch.randn(B, d, generator=g, dtype=torch.float64)
    inputs = torch.randn(B, M, *case.shape, generator=g, dtype=torch.float64)
    y = torch.randint(case.outputs, (B, M), generator=g)
    if case.outputs == 1:
        y = torch.randn(B, M, generator=g, dtype=torch.float64)
    return x.to(dtype), less.to(dtype), inputs.to(dtype), y.to(dtype) if case.outputs == 1 else y


@pytest.mark.parametrize("differences", [False, True])
@pytest.mark.parametrize(
    ("name", "kernel"), [(n, k) for n in CASES for k in ("stacked", "vmap", "loop") if (n, k) != ("unknown", "stacked")]
)
def test_every_layer(name: str, kernel: str, differences: bool) -> None:
    case = CASES[name]
    x, less, inputs, y = problem(case)
    bounds = torch.tensor([0.03, 0.3, 100.0] if differences else [0.5, 2.0, 100.0], dtype=torch.float64)
    oracle = ModelOracle(case.model(), case.loss, kernel)  # type: ignore[arg-type]
    assert (oracle.example_sums is not None) == case.fast

    def one(x: Tensor, less: Tensor, i: Tensor, y: Tensor, mask: Tensor, bound: Tensor) -> Tensor:
        return oracle.clipped_sum(x, Batch(i, y, mask), bound, less if differences else None)[0]

    args = (x, less, inputs, y, MASK, bounds)
    found = [torch.stack([one(*(a[b] for a in args)) for b in range(B)])]
    if kernel != "loop":
        found.append(torch.func.vmap(one)(*args))
    for got in found:
        for b in range(B):
            before = less[b] if differences else None
            want = truth(case, x[b], inputs[b], y[b], MASK[b], float(bounds[b]), before)
            torch.testing.assert_close(got[b], want, rtol=1e-10, atol=1e-12)


def test_a_shared_model_and_a_number_as_bound() -> None:
    """The broadcast model has no client dimension, nor has DIFF2's c1."""
    case = CASES["mlp"]
    x, less, inputs, y = problem(case)
    oracle = ModelOracle(case.model(), case.loss, "stacked")
    for before in (None, less[0]):
        got = torch.func.vmap(lambda i, y, u=before: oracle.clipped_sum(x[0], Batch(i, y, None), 0.3, u)[0])(inputs, y)
        for b in range(B):
            want = truth(case, x[0], inputs[b], y[b], torch.ones(M), 0.3, before)
            torch.testing.assert_close(got[b], want, rtol=1e-10, atol=1e-12)


def test_many_examples_are_taken_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedsim.kernels.example_pieces.NUMBERS", 300)
    monkeypatch.setattr("fedsim.kernels.oracle.NUMBERS", 300)
    for name in ("images", "tied"):
        case = CASES[name]
        x, less, inputs, y = problem(case)
        oracle = ModelOracle(case.model(), case.loss, "stacked")
        got = torch.func.vmap(lambda x, u, i, y, m, o=oracle: o.clipped_sum(x, Batch(i, y, m), 0.1, u)[0])(
            x, less, inputs, y, MASK
        )
        for b in range(B):
            want = truth(case, x[b], inputs[b], y[b], MASK[b], 0.1, less[b])
            torch.testing.assert_close(got[b], want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("distance", [1e-1, 1e-3])
def test_single_precision(distance: float) -> None:
    """Differences lose the digits that gradients at near models share: eps / distance of them, no more."""
    case = CASES["mlp"]
    x, less, inputs, y = problem(case, torch.float32)
    less = x + distance * (less - x)
    oracle = ModelOracle(case.model().float(), case.loss, "stacked")
    at, i, targets, before = (a.double() for a in (x[0], inputs[0], y[0], less[0]))
    wide = truth(case, at, i, targets, MASK[0], 1e9, before)
    bound = float(wide.norm()) / M  # of the size of the differences: some are clipped
    got = oracle.clipped_sum(x[0], Batch(inputs[0], y[0], None), bound, less[0])[0]
    want = truth(case, at, i, targets, MASK[0], bound, before)
    assert float((got - want).norm()) < 2e-6 / distance * float(want.norm())


def test_a_difference_that_cancels_within_a_layer_keeps_its_norm() -> None:
    """The head's gradient delta a^T stays the same where a grows as delta shrinks, so that both changes cancel.

    By inner products the norm would be off by sqrt(eps) of the terms that cancel, 3e-4 of them in float32; the clipped
    difference could then be longer than the bound that the noise is measured by.
    """
    g = torch.Generator().manual_seed(0)
    a, delta = torch.randn(1, 200, 7, generator=g), torch.randn(1, 200, 3, generator=g)
    a_before, delta_before = a * 1.25, delta / 1.25
    here = [a.double(), delta.double(), a_before.double(), delta_before.double()]
    full = here[1][..., None] * here[0][..., None, :] - here[3][..., None] * here[2][..., None, :]
    want = full.square().sum((2, 3)).sqrt()
    got = OuterDifference(Outer(a, delta), Outer(a_before, delta_before)).norms2().sqrt().double()
    assert float(((got - want).abs() / (a.norm(dim=-1) * delta.norm(dim=-1))).max()) < 1e-6


MEMORY = """
import resource, torch
from fedsim.kernels.oracle import ModelOracle
from fedsim.models import build, cnn
from fedsim.data.losses import loss_of
from fedsim.types import Batch

torch.set_num_threads(1)
model = build(cnn, (3, 32, 32), 10, {"channels": (32, 64), "padding": 2, "hidden": (236,)}, 0)
oracle = ModelOracle(model, loss_of("classification"), "stacked")
x = oracle.layout.flatten(model)
batch = Batch(torch.randn(256, 3, 32, 32), torch.randint(10, (256,)), None)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
oracle.clipped_sum(x, batch, 1.0, 1.01 * x)
print(oracle.layout.d, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20)
"""


def test_a_million_parameters_and_256_examples_need_less_than_two_gigabytes() -> None:
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    d, gigabytes = done.stdout.split()
    assert 1e6 <= int(d) < 1.1e6
    assert float(gigabytes) < 2.0
