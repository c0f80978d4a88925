"""Sums of clipped gradients by example of recurrent layers, attention, embeddings and positions, layer by layer.

Against autograd, one example at a time; with ragged masks, bounds that clip some examples and not others, and
differences of gradients at two models.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedsim.data.losses import next_token
from fedsim.ground.layout import Layout
from fedsim.kernels.oracle import ModelOracle
from fedsim.models.dropout import Masks
from fedsim.types import Batch

B, M, T, V, E = 2, 4, 5, 7, 4
KEYS = torch.randint(-(2**62), 2**62, (B, M), generator=torch.Generator().manual_seed(2))
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]], dtype=torch.float64)


class Sequence(nn.Module):
    """Tokens [m, t] -> [m, t, v], with a body of sequences and positions added in one of several ways."""

    def __init__(self, body: nn.Module, width: int, positions: str = "none") -> None:
        super().__init__()
        self.embedding, self.body, self.head = nn.Embedding(V, E), body, nn.Linear(width, V)
        self.kind = positions
        if positions == "parameter":
            self.positions = nn.Parameter(torch.randn(1, T + 2, E))
        elif positions == "table":
            self.positions = nn.Embedding(T, E)  # type: ignore[assignment]

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        if self.kind == "parameter":
            x = x + self.positions[:, : tokens.shape[1]]
        elif self.kind == "table":
            x = x + self.positions(torch.arange(tokens.size(1)))  # type: ignore[operator]
        out = self.body(x)
        return self.head(out[0] if isinstance(out, tuple) else out)  # type: ignore[no-any-return]


class TimeFirst(nn.Module):
    """Everything inside has its examples along the second dimension."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(E, 2, 6, dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.transpose(0, 1)).transpose(0, 1)  # type: ignore[no-any-return]


class Convolved(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.layer = nn.RMSNorm(E), nn.Conv1d(E, E, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.norm(x).mT).mT  # type: ignore[no-any-return]


class Begun(nn.Module):
    """Its first state is a parameter, which all examples share."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.first = nn.LSTM(E, 3, batch_first=True), nn.Parameter(torch.randn(1, 1, 3))

    def forward(self, x: Tensor) -> Tensor:
        state = self.first.expand(1, x.shape[0], 3).contiguous()
        return self.layer(x, (state, state))[0]  # type: ignore[no-any-return]


class Repeated(nn.Module):
    """One row of each example at every place, told apart by what is added."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.added = nn.Linear(E, E), nn.Parameter(torch.randn(T, E))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.inner(x[:, :1].expand(-1, T, -1)) + self.added)
        return x.mean(1).unsqueeze(1).expand(-1, T, -1)


def encoder(dropout: float = 0.0) -> nn.Module:
    return nn.TransformerEncoderLayer(E, 2, 6, dropout, batch_first=True, norm_first=True)


CASES: dict[str, tuple[Callable[[], nn.Module], bool]] = {
    "gru": (lambda: Sequence(nn.GRU(E, 3, 2, batch_first=True), 3), True),
    "gru_both_ways": (lambda: Sequence(nn.GRU(E, 3, bidirectional=True, batch_first=True), 6), True),
    "lstm": (lambda: Sequence(nn.LSTM(E, 3, 2, bidirectional=True, batch_first=True), 6), True),
    "rnn": (lambda: Sequence(nn.RNN(E, 3, bias=False, batch_first=True), 3), True),
    "encoder": (lambda: Sequence(encoder(), E, "parameter"), True),
    "time_first": (lambda: Sequence(TimeFirst(), E, "table"), True),
    "convolved": (lambda: Sequence(Convolved(), E), True),
    "encoder_dropping": (lambda: Sequence(encoder(0.3), E, "parameter"), True),
    "time_first_dropping": (lambda: Sequence(TimeFirst(0.3), E), True),
    "gru_dropping": (lambda: Sequence(nn.GRU(E, 3, 2, batch_first=True, dropout=0.4), 3), True),
    "lstm_dropping": (lambda: Sequence(nn.LSTM(E, 3, 2, batch_first=True, dropout=0.4, bidirectional=True), 6), True),
    "repeated": (lambda: Sequence(Repeated(), E), True),
    "begun": (lambda: Sequence(Begun(), 3), False),
    "tied": (lambda: tied(), False),
}


def tied() -> nn.Module:
    model = Sequence(nn.Tanh(), E)
    model.head.weight = model.embedding.weight
    return model


def one_by_one(
    model: nn.Module, x: Tensor, data: tuple[Tensor, Tensor, int], bound: float, less: Tensor | None, keys: Tensor
) -> Tensor:
    inputs, y, examples = data
    layout = Layout.of(model)

    def gradient(at: Tensor, j: int) -> Tensor:
        leaf = at.clone().requires_grad_()
        with Masks(keys[j : j + 1]):
            outputs = functional_call(model, layout.views(leaf), (inputs[j : j + 1],))
        value = next_token(outputs, y[j : j + 1]).sum()
        return torch.autograd.grad(value, leaf)[0]

    total = torch.zeros_like(x)
    for j in range(examples):
        g = gradient(x, j) if less is None else gradient(x, j) - gradient(less, j)
        total += g * min(1.0, bound / max(float(g.norm()), 1e-300))
    return total


@pytest.mark.parametrize("differences", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_every_sequence_layer(name: str, differences: bool) -> None:
    torch.manual_seed(0)
    make, by_layer = CASES[name]
    model = make().double()
    layout = Layout.of(model)
    x = layout.flatten(model, torch.float64) + 0.2 * torch.randn(B, layout.d, dtype=torch.float64)
    less = x + 0.05 * torch.randn(B, layout.d, dtype=torch.float64)
    inputs, y = torch.randint(V, (2, B, M, T))
    bounds = torch.tensor([0.02, 0.05] if differences else [0.3, 0.6], dtype=torch.float64)
    oracle = ModelOracle(model, next_token, "stacked")
    assert (oracle.example_sums is not None) == by_layer

    def one(x: Tensor, less: Tensor, i: Tensor, y: Tensor, mask: Tensor, bound: Tensor, keys: Tensor) -> Tensor:
        return oracle.clipped_sum(x, Batch(i, y, mask, keys), bound, less if differences else None)[0]

    got = torch.func.vmap(one)(x, less, inputs, y, MASK, bounds, KEYS)
    for b in range(B):
        data = (inputs[b], y[b], int(MASK[b].sum()))
        want = one_by_one(model, x[b], data, float(bounds[b]), less[b] if differences else None, KEYS[b])
        torch.testing.assert_close(got[b], want, rtol=1e-10, atol=1e-12)
        some = slice(data[2])
        alone = oracle.clipped_sum(
            x[b], Batch(inputs[b, some], y[b, some], None, KEYS[b, some]), bounds[b], less[b] if differences else None
        )
        torch.testing.assert_close(alone[0], want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["gru", "lstm_dropping", "encoder_dropping"])
def test_in_lower_precision(name: str) -> None:
    torch.manual_seed(0)
    model = CASES[name][0]()
    x = Layout.of(model).flatten(model)
    inputs, y = torch.randint(V, (2, M, T))
    found: list[Tensor] = []
    for lower in (None, torch.bfloat16):
        oracle = ModelOracle(model, next_token, "stacked", lower=lower)
        assert oracle.example_sums is not None
        found.append(
            oracle.example_sums(x[None], inputs[None], y[None], None, KEYS[:1], oracle.dims(inputs), 0.3, None)[0]
        )
    assert 1e-5 < float((found[1] - found[0]).norm() / found[0].norm()) < 0.1


def test_as_many_steps_as_examples_are_no_examples() -> None:
    """The examples lie along the second dimension, which only another number of them shows."""
    torch.manual_seed(0)
    model = CASES["time_first"][0]().double()
    layout = Layout.of(model)
    x = layout.flatten(model, torch.float64)
    inputs, y = torch.randint(V, (2, T, T))
    got = ModelOracle(model, next_token, "stacked").clipped_sum(x, Batch(inputs, y, None), 0.3, None)[0]
    torch.testing.assert_close(got, one_by_one(model, x, (inputs, y, T), 0.3, None, KEYS[0]), rtol=1e-10, atol=1e-12)
