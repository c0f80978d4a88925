"""Whose mask is it: an example's is its own, wherever the model puts its examples and however many are beside it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedsim.algorithms.fedavg import FedAvg
from fedsim.data.losses import Loss
from fedsim.errors import InputError
from fedsim.kernels.kernel import Kernel
from fedsim.kernels.oracle import ModelOracle
from fedsim.types import Batch
from tests.test_dropout import data, run

M, WIDTH = 4, 3


class TimeFirst(nn.Module):
    """Dropout of steps [t, m, f], as a layer and as a call."""

    def __init__(self) -> None:
        super().__init__()
        self.drop, self.head = nn.Dropout(0.4), nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        steps = torch.tanh(self.drop(x.transpose(0, 1)))
        return self.head(F.dropout(steps, 0.3, self.training).mean(0))  # type: ignore[no-any-return]


class Encoder(nn.Module):
    """A transformer's layer, [t, m, f] unless batch first."""

    def __init__(self, first: bool) -> None:
        super().__init__()
        self.first = first
        self.block, self.head = nn.TransformerEncoderLayer(WIDTH, 1, 4, 0.4, batch_first=first), nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.block(x) if self.first else self.block(x.transpose(0, 1)).transpose(0, 1)
        return self.head(y.mean(1))  # type: ignore[no-any-return]


class Recurrent(nn.Module):
    """Dropout of a recurrent layer's states as they come."""

    def __init__(self, first: bool) -> None:
        super().__init__()
        self.first = first
        self.gru, self.drop, self.head = nn.GRU(WIDTH, 4, batch_first=first), nn.Dropout(0.4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.drop(self.gru(x if self.first else x.transpose(0, 1))[0])
        return self.head(y.mean(1 if self.first else 0))  # type: ignore[no-any-return]


class Heads(nn.Module):
    """Attention weights of one example's heads after the other, [m * heads, t, t]."""

    def __init__(self) -> None:
        super().__init__()
        self.values, self.head = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        m, t, _ = x.shape
        v = self.values(x).view(m, t, 2, WIDTH).transpose(1, 2).reshape(m * 2, t, WIDTH)
        weights = F.dropout((v @ v.transpose(1, 2)).softmax(-1), 0.4, self.training)
        return self.head((weights @ v).view(m, 2, t, WIDTH).mean(2).reshape(m, 2 * WIDTH))  # type: ignore[no-any-return]


class Rows(nn.Module):
    """Steps of one example after the other as rows, [m * t, f]."""

    def __init__(self) -> None:
        super().__init__()
        self.drop, self.head = nn.Dropout(0.4), nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.drop(x.reshape(-1, WIDTH))
        return self.head(torch.tanh(y.reshape(-1, x.shape[1], WIDTH)).mean(1))  # type: ignore[no-any-return]


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[Kernel, ...]]] = {
    "time first": (TimeFirst, ("stacked", "vmap", "loop")),
    "encoder": (lambda: Encoder(True), ("stacked", "loop")),
    "encoder, time first": (lambda: Encoder(False), ("stacked", "loop")),
    "recurrent": (lambda: Recurrent(True), ("stacked", "loop")),
    "recurrent, time first": (lambda: Recurrent(False), ("stacked", "loop")),
    "heads": (Heads, ("vmap", "loop")),
    "rows": (Rows, ("stacked", "vmap", "loop")),
}
CASES = [(name, kernel) for name, (_, kernels) in MODELS.items() for kernel in kernels]


def outputs(oracle: ModelOracle, x: Tensor, inputs: Tensor, keys: Tensor) -> Tensor:
    """Of two clients [2, m, 2], as the oracle's kernel computes them."""

    def one(inputs: Tensor, keys: Tensor) -> Tensor:
        return oracle.outputs(x, Batch(inputs, inputs.new_zeros(len(inputs), dtype=torch.int64), None, keys))

    if oracle.kernel == "loop":
        return torch.stack([one(*pair) for pair in zip(inputs, keys, strict=True)])
    return torch.func.vmap(one)(inputs, keys)  # type: ignore[no-any-return]


@pytest.mark.parametrize("steps", [2, M, 2 * M])
@pytest.mark.parametrize(("name", "kernel"), CASES)
def test_an_examples_outputs_do_not_depend_on_who_is_beside_it(name: str, kernel: Kernel, steps: int) -> None:
    """Of a minibatch as long as a sequence too, where shapes alone do not say which dimension is the examples'."""
    torch.manual_seed(0)
    model = MODELS[name][0]().double()
    loss: Loss = lambda o, y: F.cross_entropy(o, y, reduction="none")  # noqa: E731
    oracle = ModelOracle(model, loss, kernel)
    x = torch.cat([p.detach().flatten() for p in model.parameters()])
    inputs, keys = torch.randn(2, M, steps, WIDTH, dtype=torch.float64), torch.arange(2 * M).view(2, M)
    together = outputs(oracle, x, inputs, keys)
    for few in (1, 2, 3):
        torch.testing.assert_close(outputs(oracle, x, inputs[:, -few:], keys[:, -few:]), together[:, -few:])
    plain = ModelOracle(MODELS[name][0]().double(), loss, "loop")
    torch.testing.assert_close(outputs(plain, x, inputs[:, :1], keys[:, :1]), together[:, :1])
    nothing = ModelOracle(MODELS[name][0]().double(), loss, "loop", training=False)
    assert (outputs(nothing, x, inputs, keys) - together).abs().amax(-1).min() > 1e-6  # masks drop something


class InTurn(nn.Module):
    """Steps of all examples in turn as rows, [t * m, f]."""

    def __init__(self) -> None:
        super().__init__()
        self.drop, self.head = nn.Dropout(0.4), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.drop(x.transpose(0, 1).reshape(-1, WIDTH)))
        return self.head(y.reshape(x.shape[1], -1, WIDTH).mean(0))  # type: ignore[no-any-return]


def test_rows_of_examples_in_turn_are_refused() -> None:
    with pytest.raises(InputError, match=r"drops from a value \[10, 3\] whose dimension 0 holds the examples in turn"):
        run(FedAvg(lr=0.1), {}, model=InTurn, data=data(5, WIDTH))


class ByNumber(nn.Module):
    """Drops again where there are more than two examples."""

    def __init__(self) -> None:
        super().__init__()
        self.drop, self.head = nn.Dropout(0.4), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(self.drop(x)) if len(x) > 2 else self.drop(x))  # type: ignore[no-any-return]


def test_how_often_a_model_drops_must_not_depend_on_the_minibatch() -> None:
    with pytest.raises(InputError, match="drops 1 times for 2 examples and 2 times for 3"):
        run(FedAvg(lr=0.1), {}, model=ByNumber, data=data(WIDTH))
