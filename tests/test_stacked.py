"""The stacked kernels against each client's own module, in float64, and the reasons of every refusal.

Tolerance 1e-11 relative to the largest entry: rounding of sums of up to 1e4 products in float64, in another order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from fedsim import models
from fedsim.errors import InputError
from fedsim.ground.layout import Layout, aligned
from fedsim.ground.rng import scoped, stream
from fedsim.kernels.kernel import kernel_rule
from fedsim.kernels.stacked import StackedModel, Unstackable, stack
from fedsim.kernels.tuning import built_in_row

TOLERANCE = 1e-11


class Residual(nn.Module):
    """Functional forms, residuals, reshapes by size, tied weights and parameters used by themselves."""

    def __init__(self, tie: bool = True) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 6, 3, padding=1)
        self.conv2 = nn.Conv2d(6, 6, 3, padding="same", groups=2, dilation=2)
        self.norm = nn.GroupNorm(3, 6)
        self.relu = nn.ReLU(inplace=True)
        self.scale = nn.Parameter(torch.ones(6, 1, 1))
        self.first = nn.Linear(24, 24)
        self.again = nn.Linear(24, 24)
        if tie:
            self.again.weight = self.first.weight
        self.rows = nn.LayerNorm((4, 6))
        self.columns = nn.GroupNorm(2, 24, affine=True)
        self.head = nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(torch.relu(self.conv1(x)), 2)
        y = self.norm(self.conv2(x))
        y += x
        x = self.relu(y) * self.scale
        x = F.avg_pool2d(x + 0.5, 2, ceil_mode=True)
        x = 2 * F.adaptive_avg_pool2d(x, (2, 2)) - x.view(x.size(0), 6, -1).reshape(x.shape)
        x = self.rows(x.view(x.shape[0], 4, -1))
        x = torch.flatten(x, 1)
        x = F.gelu(self.first(x), approximate="tanh") + F.leaky_relu(self.again(x), 0.1)
        x = self.columns(x.view(-1, x.size(1))).tanh()
        return self.head(torch.flatten(x).view(x.shape))  # type: ignore[no-any-return]


def part(factory: Callable[..., nn.Module], *freeze: str) -> Callable[..., nn.Module]:
    """The model with some of its parameters frozen."""

    def build(input_shape: tuple[int, ...], outputs: int, **options: Any) -> nn.Module:
        model = models.build(factory, input_shape, outputs, options, seed=3)
        return models.Adapted(model, freeze=freeze)(input_shape, outputs)

    return build


class Tokens(nn.Module):
    """An embedding and linear layers on sequences [m, t]."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Embedding(9, 5), nn.Linear(5, 4, bias=False), nn.SiLU(), nn.Dropout(0.0))
        self.head = nn.Linear(4, 9)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))  # type: ignore[no-any-return]


WIDE = nn.Sequential(
    nn.Conv2d(3, 64, 3, stride=2), nn.Softplus(), nn.Conv2d(64, 8, 3, padding=1, groups=2), nn.Flatten()
)
"""From 32 input channels on, convolutions run client by client inside the stack; 6x6 images end at 2x2."""

PIXEL = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.Conv2d(4, 5, 3, padding=1), nn.Flatten())
"""Convolutions whose result is one pixel are matrix products of the taps that touch the image, here 2x2 and 1x1."""

CASES: dict[str, tuple[Callable[..., nn.Module], tuple[int, ...], int, dict[str, Any]]] = {
    "linear": (models.linear, (12,), 2, {}),
    "linear_zero": (models.linear_zero, (7,), 1, {}),
    "mlp": (models.mlp, (1, 6, 6), 5, {"hidden": (9, 7), "activation": "softplus"}),
    "cnn": (models.cnn, (1, 28, 28), 10, {}),
    "cnn_one_pixel": (models.cnn, (3, 8, 8), 10, {"padding": 2, "channels": (4, 5, 6)}),
    "lenet": (models.lenet, (3, 32, 32), 10, {}),
    "resnet18_gn": (models.resnet18_gn, (3, 32, 32), 10, {}),
    "resnet18_gn_cifar": (models.resnet18_gn_cifar, (3, 8, 8), 10, {}),
    "fedgh_cnn": (models.fedgh_cnn, (3, 32, 32), 10, {"variant": 5}),
    "residual": (Residual, (2, 8, 8), 3, {}),
    "wide": (lambda: WIDE, (3, 6, 6), 32, {}),
    "pixel": (lambda: PIXEL, (3, 2, 2), 5, {}),
    "tokens": (Tokens, (6,), 9, {}),
    # frozen layers are shared operands: whole bodies, weights without biases and biases without weights, and the rest
    "mlp_frozen": (part(models.mlp, "body.1.*", "head.bias"), (1, 6, 6), 5, {"hidden": (9, 7)}),
    "mlp_biases": (part(models.mlp, "*.weight"), (1, 6, 6), 5, {"hidden": (9, 7)}),
    "cnn_frozen": (part(models.cnn, "body.0.*"), (1, 28, 28), 10, {}),
    "cnn_second": (part(models.cnn, "body.3.weight"), (1, 28, 28), 10, {}),
    "resnet_frozen": (part(models.resnet_small_gn, "body.layer[12].*"), (3, 16, 16), 10, {}),
    "resnet_norms": (part(models.resnet_small_gn, "*conv*", "*.0.weight"), (3, 16, 16), 10, {}),
    "residual_frozen": (part(Residual, "scale", "first.*", "rows.weight", "columns.bias", "conv2.*"), (2, 8, 8), 3, {}),
    "tokens_frozen": (part(Tokens, "body.0.*"), (6,), 9, {}),
    "tokens_body": (part(Tokens, "body.*"), (6,), 9, {}),
}


def prepared(case: str) -> tuple[nn.Module, Layout, StackedModel, Callable[[int, int], tuple[Tensor, Tensor]]]:
    """The model in float64, its layout, its stacked form and a source of (x [b, d], inputs [b, m, ...])."""
    factory, shape, outputs, options = CASES[case]
    model = models.build(factory, shape, outputs, options, seed=3).double()
    layout = Layout.of(model)

    def draw(b: int, m: int) -> tuple[Tensor, Tensor]:
        g = stream(0, "test", b, m)
        x = layout.flatten(model, torch.float64) + 0.05 * torch.randn(b, layout.d, generator=g, dtype=torch.float64)
        if case.startswith("tokens"):
            return x, torch.randint(9, (b, m, *shape), generator=g)
        return x, torch.randn(b, m, *shape, generator=g, dtype=torch.float64)

    return model, layout, stack(model, layout), draw


def leaves_of(layout: Layout, x: Tensor) -> dict[str, Tensor]:
    return {name: view.detach().requires_grad_() for name, view in layout.views(x).items()}


def gap(a: Tensor, b: Tensor) -> float:
    a, b = a.detach(), b.detach()
    return float((a - b).abs().max() / b.abs().max().clamp(min=1e-30))


@pytest.mark.parametrize("b", [2, 3])
@pytest.mark.parametrize("case", CASES)
def test_outputs_and_gradients_are_each_clients_own(case: str, b: int) -> None:
    model, layout, stacked, draw = prepared(case)
    x, inputs = draw(b, 3)
    leaves = leaves_of(layout, x)
    out = stacked(leaves, inputs)
    weights = torch.randn(out.shape, generator=stream(0, "weights"), dtype=torch.float64)
    grads = torch.autograd.grad((out * weights).sum(), list(leaves.values()))
    for i in range(b):
        own = leaves_of(layout, x[i])
        expected = functional_call(model, own, (inputs[i],))
        assert gap(out[i], expected) < TOLERANCE
        own_grads = torch.autograd.grad((expected * weights[i]).sum(), list(own.values()))
        scale = max(float(g.abs().max()) for g in own_grads)
        for name, got, want in zip(layout.names, grads, own_grads, strict=True):
            assert float((got[i] - want).abs().max()) < TOLERANCE * scale, name


@pytest.mark.parametrize(
    "case", ["linear", "linear_zero", "mlp", "cnn", "lenet", "fedgh_cnn", "resnet18_gn_cifar", "tokens"]
)
def test_features_are_what_enters_the_head(case: str) -> None:
    model, layout, stacked, draw = prepared(case)
    x, inputs = draw(2, 3)
    features = stacked.features(layout.views(x), inputs)
    for i in range(2):
        expected = layout.load(model, x[i]).get_submodule("body")(inputs[i])
        assert features[i].shape == expected.shape
        assert gap(features[i], expected) < TOLERANCE


def test_features_without_a_head_are_an_error() -> None:
    _, layout, stacked, draw = prepared("wide")
    x, inputs = draw(2, 2)
    with pytest.raises(InputError, match="submodule named head"):
        stacked.features(layout.views(x), inputs)


@pytest.mark.parametrize(
    "case", ["mlp", "cnn", "residual", "wide", "pixel", "tokens", "mlp_frozen", "cnn_frozen", "residual_frozen"]
)
def test_a_client_depends_on_nobody_else(case: str) -> None:
    """Another neighbour changes no bit; and no output of a client has a gradient in another's parameters."""
    _, layout, stacked, draw = prepared(case)
    x, inputs = draw(3, 4)
    leaves = leaves_of(layout, x)
    out = stacked(leaves, inputs)
    for grad in torch.autograd.grad(out[1].square().sum(), list(leaves.values())):
        assert grad[0].abs().max() == 0
        assert grad[2].abs().max() == 0
    swapped = x.clone()
    swapped[2] = 1.5 * x[0]
    others = inputs.clone()
    others[2] = inputs[0]
    assert torch.equal(stacked(layout.views(swapped), others)[:2], out[:2])


@pytest.mark.parametrize("case", ["mlp", "cnn", "residual", "wide", "pixel", "tokens"])
def test_one_model_for_all_and_shared_inputs_without_copies(case: str) -> None:
    """Leading strides of 0, on parameters and on inputs, give what real copies give."""
    _, layout, stacked, draw = prepared(case)
    x, inputs = draw(2, 3)
    shared = stacked(layout.views(x[:1].expand(2, -1)), inputs[:1].expand(2, *inputs.shape[1:]))
    copied = stacked(layout.views(x[:1].repeat(2, 1)), inputs[:1].repeat(2, *[1] * (inputs.dim() - 1)))
    assert gap(shared, copied) < TOLERANCE
    # not the same bits: clients of a block lie one behind the other, the second's rows begin where the sizes put them,
    # and MKL rounds by where they begin (seen on an AVX2 processor). The place of a client in its block is a function
    # of the run's configuration, so a run has one set of bits all the same: the next test.
    assert gap(copied[0], copied[1]) < TOLERANCE


@pytest.mark.parametrize("case", ["mlp", "cnn", "residual", "wide", "pixel", "tokens"])
def test_the_same_place_gives_the_same_bits_wherever_the_block_came_from(case: str) -> None:
    """What enters a block is aligned first (``to_device``, ``Feed``): shifted by an element or not, bits are equal."""
    _, layout, stacked, draw = prepared(case)
    x, inputs = draw(3, 4)
    once = stacked(layout.views(x), inputs)
    for shift in range(1, 9):
        moved = [torch.empty(t.numel() + shift, dtype=t.dtype)[shift:].view(t.shape).copy_(t) for t in (x, inputs)]
        again = stacked(layout.views(aligned(moved[0])), aligned(moved[1]))
        assert torch.equal(once, again)


def test_convolutions_against_their_definition() -> None:
    """One output pixel by hand: the sum over taps that touch the image."""
    _, layout, stacked, draw = prepared("pixel")
    x, inputs = draw(2, 1)
    views = {name: v.numpy() for name, v in layout.views(x).items()}
    image = inputs[1, 0].numpy()
    first = (views["0.weight"][1][:, :, 1:, 1:] * image).sum((1, 2, 3)) + views["0.bias"][1]
    second = views["1.weight"][1][:, :, 1, 1] @ first + views["1.bias"][1]
    assert gap(stacked(layout.views(x), inputs)[1, 0], torch.from_numpy(second)) < TOLERANCE


class Branching(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.sum() > 0 else -x)


class Fourier(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(torch.fft.rfft(x, n=6).abs())


class Overwriting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        return y + F.relu(y, inplace=True)


class First(nn.Module):
    def forward(self, found: tuple[Tensor, Tensor]) -> Tensor:
        return found[0]


def hooked() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 2))
    model[0].register_forward_hook(lambda module, args, out: out * 2)
    return model


@pytest.mark.parametrize(
    ("factory", "reason"),
    [
        (lambda: nn.Sequential(nn.Linear(4, 4), nn.RReLU()), "RReLU at 1 has no stacked kernel"),
        (lambda: nn.Sequential(nn.Linear(4, 4), nn.Hardtanh(), nn.Softmax2d()), "Softmax2d at 2 has no stacked kernel"),
        (lambda: nn.Sequential(nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular")), "pads with circular"),
        (lambda: nn.Sequential(nn.Embedding(4, 2, padding_idx=0)), "Embedding at 0 has padding_idx"),
        (lambda: nn.Sequential(nn.Conv3d(1, 1, 3)), "Conv3d at 0 has no stacked kernel"),
        (lambda: Branching(4, 2), "torch.fx cannot trace Branching"),
        (lambda: Fourier(4, 2), "the call fft_rfft has no stacked kernel"),
        (Overwriting, "the call relu writes in place into a value that is used elsewhere"),
        (hooked, "Linear at 0 has hooks"),
    ],
)
def test_unstackable_models_say_why(factory: Callable[[], nn.Module], reason: str) -> None:
    with scoped(0, "init"):
        model = factory()
    with pytest.raises(Unstackable) as caught:
        stack(model, Layout.of(model))
    assert reason in str(caught.value)


def test_a_layer_that_meets_the_wrong_shape_is_named() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.MaxPool2d(2))
    with pytest.raises(Unstackable, match="MaxPool2d at 1: values of 3 dimensions"):
        stack(model, Layout.of(model))(leaves_of(Layout.of(model), torch.zeros(2, 20)), torch.zeros(2, 3, 4, 4))


@pytest.mark.parametrize(
    ("factory", "shape", "outputs", "kernel", "block", "reason"),
    [
        (models.linear, (300,), 2, "stacked", 250, "every layer has a stacked kernel"),
        (models.mlp, (784,), 10, "stacked", 25, "every layer has a stacked kernel"),
        (models.cnn, (1, 28, 28), 10, "stacked", 5, "every layer has a stacked kernel"),
        (models.resnet18_gn, (3, 32, 32), 10, "stacked", 2, "every layer has a stacked kernel"),
        (models.resnet18_gn_cifar, (3, 32, 32), 10, "loop", 1, "a wide convolution gives 65,536 numbers per example"),
        (models.char_lstm, (10,), 30, "stacked", 4, "every layer has a stacked kernel"),
        (lambda: nn.Sequential(nn.LSTM(4, 2, proj_size=1), First()), (3, 4), 1, "loop", 1, "LSTM with proj_size"),
        (lambda: Fourier(4, 2), (4,), 2, "vmap", 250, "the call fft_rfft has no stacked kernel"),
        (lambda: Branching(4, 2), (4,), 2, "loop", 1, "vmap fails"),
    ],
)
def test_the_rule(
    factory: Callable[..., nn.Module], shape: tuple[int, ...], outputs: int, kernel: str, block: int, reason: str
) -> None:
    model = models.build(factory, shape, outputs, {}, seed=0)
    got = next(kernel_rule(model, Layout.of(model), shape, "cpu", built_in_row("AVX512", "cpu")))
    assert got[:2] == (kernel, block)
    assert reason in got[2]
    on_gpu = next(kernel_rule(model, Layout.of(model), shape, "cuda", built_in_row("AVX512", "cuda")))
    assert on_gpu[0] == ("stacked" if "convolution" in reason else kernel)
    assert on_gpu[1] >= block
