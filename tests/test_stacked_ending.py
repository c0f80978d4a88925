"""The last layer of a model of sequences and its loss in one pass, against each client's own module and plain autograd.

Gaps are relative to the largest entry: 1e-12 in float64, which is rounding, and 2e-6 in float32.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedsim.data.losses import next_token
from fedsim.ground.layout import Layout
from fedsim.kernels import stacked_ending
from fedsim.kernels.oracle import ModelOracle
from fedsim.kernels.stacked_ending import Ending

B, M, T, V = 3, 4, 5, 7


@pytest.fixture(autouse=True)
def of_any_size(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """However few classes there are; what is given is the shapes that were computed so."""
    seen: list[tuple[int, ...]] = []
    plain = Ending.mean_loss

    def mean_loss(self: Ending, params: Any, x: Tensor, y: Tensor, mask: Any) -> Tensor:
        seen.append(tuple(y.shape))
        return plain(self, params, x, y, mask)

    monkeypatch.setattr(stacked_ending, "LEAST", 0)
    monkeypatch.setattr(Ending, "mean_loss", mean_loss)
    return seen


def tokens(bias: bool = True) -> nn.Sequential:
    return nn.Sequential(nn.Embedding(V, 6), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, V, bias=bias))


def frozen(*names: str) -> nn.Sequential:
    model = tokens()
    for name in names:
        model.get_parameter(name).requires_grad_(False)
    return model


ENDINGS: dict[str, Callable[[], nn.Module]] = {
    "bias": tokens,
    "no_bias": lambda: tokens(bias=False),
    "frozen_bias": lambda: frozen("3.bias"),
    "frozen_body": lambda: frozen("0.weight", "1.weight", "1.bias"),
    "a_layer_alone": lambda: nn.Sequential(nn.Embedding(V, 6).requires_grad_(False), nn.Linear(6, V)),
}


def drawn(model: nn.Module, dtype: torch.dtype) -> tuple[Layout, Tensor, Tensor, Tensor]:
    layout = Layout.of(model)
    x = layout.flatten(model, dtype) + 0.3 * torch.randn(B, layout.d, dtype=dtype)
    return layout, x, torch.randint(V, (B, M, T)), torch.randint(V, (B, M, T))


def gap(a: Tensor, b: Tensor) -> float:
    return float((a - b).detach().abs().max() / b.detach().abs().max().clamp(min=1e-30))


def require_own(
    model: nn.Module, layout: Layout, x: Tensor, inputs: Tensor, y: Tensor, mask: Tensor | None, got: Any, bound: float
) -> None:
    """Gradients and losses are those of every client's own module, by torch's cross-entropy of its outputs."""
    for i in range(len(x)):
        layout.load(model, x[i])
        count = M if mask is None else int(mask[i].sum())
        some = slice(0, count)
        out = model(inputs[i, some])
        loss = F.cross_entropy(out.flatten(0, -2), y[i, some].flatten(), reduction="sum") / (max(1, count) * T)
        parameters = [p for p in model.parameters() if p.requires_grad]
        want = torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])
        assert gap(got[1][i], loss) < bound or float(got[1][i]) == float(loss) == 0
        assert float((got[0][i] - want).abs().max()) < bound * max(1e-3, float(want.abs().max()))


@pytest.mark.parametrize("at_once", [10**6, 3 * V])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("ending", ENDINGS)
def test_gradients_are_each_clients_own(
    ending: str, dtype: torch.dtype, at_once: int, monkeypatch: pytest.MonkeyPatch, of_any_size: list[tuple[int, ...]]
) -> None:
    monkeypatch.setattr(stacked_ending, "_AT_ONCE", at_once)
    torch.manual_seed(0)
    model = ENDINGS[ending]().to(dtype)
    layout, x, inputs, y = drawn(model, dtype)
    oracle = ModelOracle(copy.deepcopy(model), next_token, "stacked")  # with the same frozen parameters
    counts = torch.tensor([M, 1, 0])
    for mask in (None, (torch.arange(M) < counts[:, None]).to(dtype)):
        got = oracle._together(x, inputs, y, mask, None)
        require_own(model, layout, x, inputs, y, mask, got, 1e-12 if dtype == torch.float64 else 2e-6)
    assert of_any_size == [(B, M, T)] * 2


def test_weighted_losses_have_weighted_gradients() -> None:
    torch.manual_seed(0)
    model = tokens().double()
    layout, x, inputs, y = drawn(model, torch.float64)
    oracle = ModelOracle(model, next_token, "stacked")
    leaves = {n: v.detach().requires_grad_() for n, v in layout.views(x).items()}
    assert oracle.stacked is not None
    mean = oracle.stacked.mean_loss(leaves, inputs, y, None)
    assert mean is not None
    weights = torch.tensor([0.5, 2.0, -1.0], dtype=torch.float64)
    grads = torch.autograd.grad((mean * weights).sum(), list(leaves.values()))
    plain = next_token(oracle.stacked(leaves, inputs), y).mean(1)
    for got, want in zip(grads, torch.autograd.grad((plain * weights).sum(), list(leaves.values())), strict=True):
        assert gap(got, want) < 1e-12


def test_a_class_that_has_lost_all_probability() -> None:
    """Its logarithm is taken of the outputs: the probability itself is 0 in float32."""
    torch.manual_seed(0)
    model = tokens()
    layout, x, inputs, y = drawn(model, torch.float32)
    x = 300 * x
    got = ModelOracle(tokens(), next_token, "stacked")._together(x, inputs, y, None, None)
    require_own(model, layout, x, inputs, y, None, got, 2e-6)
    assert float(got[1].min()) > 100


def test_numbers_that_are_not_finite_are_seen() -> None:
    torch.manual_seed(0)
    _, x, inputs, y = drawn(tokens(), torch.float32)
    x[1, 0] = float("nan")
    inputs[1] = 0
    _, losses = ModelOracle(tokens(), next_token, "stacked")._together(x, inputs, y, None, None)
    assert torch.isfinite(losses).tolist() == [True, False, True]


def test_classes_that_do_not_count_are_left_to_the_loss(of_any_size: list[tuple[int, ...]]) -> None:
    torch.manual_seed(0)
    model = tokens().double()
    layout, x, inputs, y = drawn(model, torch.float64)
    y[:, :, 0] = -100
    got = ModelOracle(tokens().double(), next_token, "stacked")._together(x, inputs, y, None, None)
    require_own(model, layout, x, inputs, y, None, got, 1e-12)
    assert of_any_size == []


@pytest.mark.parametrize("loss", ["another", "a_term", "few"])
def test_where_the_loss_stays_apart(
    loss: str, monkeypatch: pytest.MonkeyPatch, of_any_size: list[tuple[int, ...]]
) -> None:
    if loss == "few":
        monkeypatch.setattr(stacked_ending, "LEAST", 10_000)
    torch.manual_seed(0)
    _, x, inputs, y = drawn(tokens(), torch.float32)
    oracle = ModelOracle(
        tokens(), (lambda out, y: 2 * next_token(out, y)) if loss == "another" else next_token, "stacked"
    )
    term = (lambda outputs, features, y: outputs.square().mean((-1, -2))) if loss == "a_term" else None
    oracle._together(x, inputs, y, None, None, None, term)
    assert of_any_size == []


@pytest.mark.parametrize(
    "model",
    [nn.Sequential(nn.Embedding(V, V), nn.Tanh()), frozen("3.weight")],
    ids=["another_layer", "a_constant_weight"],
)
def test_what_does_not_end_so(model: nn.Module, of_any_size: list[tuple[int, ...]]) -> None:
    _, x, inputs, y = drawn(model, torch.float32)
    ModelOracle(model, next_token, "stacked")._together(x, inputs, y, None, None)
    assert of_any_size == []
