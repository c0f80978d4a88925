"""Recurrence, attention, operations on shapes and more layers, stacked, against each client's own module.

Those that drop have the masks of that module under ``fedsim.models.dropout.Masks``, padding left out.

Every client has weights and examples of its own; the loss is a random weighting of all outputs. Gaps are relative to
the largest entry: 1e-12 in float64, which is rounding, and 2e-6 in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from fedsim.ground.layout import Layout
from fedsim.kernels.stacked import Unstackable, stack
from fedsim.kernels.stacked_ops import with_keys
from fedsim.models.dropout import Masks
from fedsim.models.mask_dims import mask_dims

B, M, T, E = 3, 4, 5, 6


class Forward(nn.Module):
    """Layers by name and a forward that uses them."""

    def __init__(self, forward: Callable[[Any, Tensor], Any], **parts: nn.Module | Tensor):
        super().__init__()
        for name, part in parts.items():
            if isinstance(part, nn.Module):
                self.add_module(name, part)
            elif isinstance(part, nn.Parameter):
                self.register_parameter(name, part)
            else:
                self.register_buffer(name, part)
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.run = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x * self.scale)


def of(forward: Callable[[Any, Tensor], Any], **parts: nn.Module | Tensor) -> Callable[[], nn.Module]:
    return lambda: Forward(forward, **parts)


def both(found: tuple[Tensor, Tensor | tuple[Tensor, Tensor]]) -> Tensor:
    """States of all steps and the last of all layers in one number for each unit of the last layer."""
    out, last = found
    ends = torch.stack(last).sum(0) if isinstance(last, tuple) else last
    return out + ends.sum(0).unsqueeze(1).repeat(1, 1, out.shape[-1] // ends.shape[-1])


CAUSAL = nn.Transformer.generate_square_subsequent_mask(T).double()
SOME = torch.rand(T, T, generator=torch.Generator().manual_seed(0)) > 0.3
SOME.fill_diagonal_(True)


def encoder(**options: object) -> nn.Module:
    layer = nn.TransformerEncoderLayer(E, 2, 7, 0.0, batch_first=True, **options)  # type: ignore[arg-type]
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


RECURRENT = {
    f"{kind.__name__}{n}{'_both_ways' if ways else ''}{'' if first else '_time_first'}{'' if bias else '_no_bias'}": (
        lambda kind=kind, n=n, ways=ways, first=first, bias=bias: Forward(
            (lambda s, x: both(s.layer(x))) if first else (lambda s, x: s.layer(x.transpose(0, 1))[0].transpose(0, 1)),
            layer=kind(E, 3, n, batch_first=first, bidirectional=ways, bias=bias),
        )
    )
    for kind in (nn.LSTM, nn.GRU, nn.RNN)
    for n, ways, first, bias in ((1, False, True, True), (2, True, True, True), (3, False, False, False))
}
FIRST = torch.randn(2, M, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

ATTENTION = {
    "relu_rnn": of(lambda s, x: s.layer(x)[0], layer=nn.RNN(E, 3, 2, nonlinearity="relu", batch_first=True)),
    "given_states": of(lambda s, x: both(s.g(x, s.h)), g=nn.GRU(E, 3, 2, batch_first=True), h=FIRST),
    "given_cells": of(
        lambda s, x: both(s.g(x, (x.new_zeros(2, x.shape[0], 3), s.h))), g=nn.LSTM(E, 3, 2, batch_first=True), h=FIRST
    ),
    "learned_states": of(
        lambda s, x: s.g(x, s.h.expand(-1, x.size(0), -1))[0], g=nn.GRU(E, 3, batch_first=True),
        h=nn.Parameter(torch.randn(1, 1, 3)),
    ),
    "attention": of(lambda s, x: s.a(x, x, x)[0], a=nn.MultiheadAttention(E, 2, batch_first=True)),
    "attention_no_bias": of(
        lambda s, x: s.a(x, x, x, need_weights=False)[0], a=nn.MultiheadAttention(E, 3, bias=False, batch_first=True)
    ),
    "attention_time_first": of(
        lambda s, x: s.a(*[x.transpose(0, 1)] * 3)[0].transpose(0, 1), a=nn.MultiheadAttention(E, 2)
    ),
    "attention_weights": of(lambda s, x: s.a(x, x, x)[1], a=nn.MultiheadAttention(E, 2, batch_first=True)),
    "attention_weights_by_head": of(
        lambda s, x: s.a(x, x, x, average_attn_weights=False)[1], a=nn.MultiheadAttention(E, 2, batch_first=True)
    ),
    "attention_masks": of(
        lambda s, x: s.a(x, x, x, attn_mask=s.hidden, key_padding_mask=x[..., 0] > 1.5)[0],
        a=nn.MultiheadAttention(E, 2, batch_first=True), hidden=~SOME,
    ),
    "attention_to_another": of(
        lambda s, x: s.a(x[:, :2], x, x.flip(1), attn_mask=s.causal[:2])[0],
        a=nn.MultiheadAttention(E, 2, batch_first=True), causal=CAUSAL,
    ),
    "attention_of_widths": of(
        lambda s, x: s.a(x, x[..., :3], x[..., 2:])[0],
        a=nn.MultiheadAttention(E, 2, kdim=3, vdim=4, batch_first=True),
    ),
    "encoder": lambda: Forward(lambda s, x: s.t(x), t=encoder()),
    "encoder_before": lambda: Forward(lambda s, x: s.t(x), t=encoder(norm_first=True, activation="gelu")),
    "encoder_causal": lambda: Forward(
        lambda s, x: s.t(x, mask=s.causal, is_causal=True), t=encoder(norm_first=True, bias=False), causal=CAUSAL
    ),
    "encoder_time_first": of(lambda s, x: s.t(x.transpose(0, 1))[-1], t=nn.TransformerEncoderLayer(E, 3, 8, 0.0)),
    "own_attention": of(
        lambda s, x: F.scaled_dot_product_attention(*(p for p in s.qkv(x).chunk(3, -1)), is_causal=True),
        qkv=nn.Linear(E, 3 * E),
    ),
    "own_attention_by_head": of(
        lambda s, x: F.scaled_dot_product_attention(
            *(p.view(x.size(0), -1, 2, 3).transpose(1, 2) for p in torch.chunk(s.qkv(x), 3, dim=2)), attn_mask=s.some
        ).transpose(1, 2).reshape(x.shape),
        qkv=nn.Linear(E, 3 * E), some=SOME,
    ),
    "learned_mask": of(
        lambda s, x: F.scaled_dot_product_attention(x, x, x, attn_mask=s.bias, scale=0.5),
        bias=nn.Parameter(torch.randn(T, T)),
    ),
}  # fmt: skip

SHAPES = {
    "by_hand": of(
        lambda s, x: (s.q(x) @ s.k(x).transpose(-2, -1) / 3).masked_fill(s.hidden, float("-inf")).softmax(-1) @ s.v(x),
        q=nn.Linear(E, 3), k=nn.Linear(E, 3), v=nn.Linear(E, 3), hidden=~SOME,
    ),
    "indices": of(lambda s, x: x[:, -1] + x[..., 0, :] + x[:, 1:3, ::2].sum(1).repeat(1, 2) + x[:, s.at].mean(1),
                  at=torch.tensor([0, 2])),
    "none_and_dots": of(
        lambda s, x: x[:, None, ..., :2].squeeze(1) * s.w[None, :, None], w=nn.Parameter(torch.randn(T))
    ),
    "cat_and_stack": of(
        lambda s, x: torch.cat([torch.stack([x, x.tanh()], dim=2).flatten(1, 2), s.more.expand(x.size(0), -1, -1)], 1),
        more=nn.Parameter(torch.randn(1, 2, E)),
    ),
    "cat_constant": of(lambda s, x: torch.cat((x, x.new_ones(x.shape[0], 1, E)), dim=-2), a=nn.Linear(1, 1)),
    "pieces": of(lambda s, x: sum(p.permute(0, 2, 1) for p in torch.chunk(x, 3, dim=2)).unbind(1)[1].unsqueeze(-1)),
    "sizes": of(lambda s, x: x.unflatten(2, (2, 3)).permute((0, 2, 1, 3)).reshape(x.shape[0], -1).view(x.shape)),
    "reductions": of(
        lambda s, x: x.mean((1, 2)).unsqueeze(1) + x.sum(-1) + torch.logsumexp(x, dim=1)[:, :T] + x.amax(2)
        + x.std(dim=-1) + torch.max(x, 2)[0] + x.min(dim=2).values,
    ),
    "softmaxes": of(
        lambda s, x: F.log_softmax(x, dim=1) + torch.softmax(x, -1) + s.a(x) + x.cumsum(1), a=nn.Softmax(dim=2)
    ),
    "places": of(
        lambda s, x: torch.where(x > 0, x.exp(), s.w) + torch.maximum(x, s.w) + x**2 + (x * x + 1).sqrt(),
        w=nn.Parameter(torch.randn(E)),
    ),
    "positions": of(
        lambda s, x: x + s.table(torch.arange(x.shape[1], device=x.device)) + torch.arange(E) + s.wave,
        table=nn.Embedding(T, E), wave=torch.randn(1, T, E, dtype=torch.float64),
    ),
    "rank_of_constants": of(lambda s, x: x[:, 0].unsqueeze(0) * s.c, c=torch.randn(2, 1, E, dtype=torch.float64)),
    "matrices": of(
        lambda s, x: x @ s.w + torch.matmul(x, s.c) + (x @ s.v).unsqueeze(-1) + torch.bmm(x, x.mT) @ x,
        w=nn.Parameter(torch.randn(E, E)), v=nn.Parameter(torch.randn(E)), c=torch.randn(E, E, dtype=torch.float64),
    ),
    "einsum": of(
        lambda s, x: torch.einsum("mte,ef,ft->mtf", x, s.w, s.c),
        w=nn.Parameter(torch.randn(E, E)), c=torch.randn(E, T, dtype=torch.float64),
    ),
    "linear": of(lambda s, x: F.linear(F.linear(x, s.w, s.b), s.w),
                 w=nn.Parameter(torch.randn(E, E)), b=nn.Parameter(torch.randn(E))),
    "norms": of(
        lambda s, x: F.layer_norm(x, (E,), s.w) + s.r(x) * s.n(x), w=nn.Parameter(torch.randn(E)),
        r=nn.RMSNorm(E, eps=1e-3), n=nn.RMSNorm((T, E), elementwise_affine=False),
    ),
    "activations": of(
        lambda s, x: s.c(F.hardswish(s.a(x)) + s.b(x)) + F.selu(x), a=nn.Mish(), b=nn.PReLU(), c=nn.Softsign()
    ),
    "slopes": of(lambda s, x: s.b(x), b=nn.PReLU(T, 0.3)),
    "gated": of(lambda s, x: s.a(x) + F.glu(x, 2), a=nn.GLU()),
    "convolution": of(
        lambda s, x: s.p(s.b(F.relu(s.a(x)))), a=nn.Conv1d(T, 6, 3, padding=1), b=nn.Conv1d(6, 4, 2, 2, groups=2),
        p=nn.AvgPool1d(2, 1),
    ),
    "pools": of(lambda s, x: s.a(x) + s.b(x) + F.max_pool1d(x, 2), a=nn.MaxPool1d(2), b=nn.AdaptiveAvgPool1d(3)),
    "upwards": of(
        lambda s, x: s.c(s.b(s.a(x.unsqueeze(1)))),
        a=nn.ConvTranspose2d(1, 4, 2, 2), b=nn.ReLU(), c=nn.ConvTranspose2d(4, 2, 3, 1, 1, groups=2, bias=False),
    ),
}  # fmt: skip
BLIND = SOME.clone()
BLIND[1] = False  # a place that sees nothing
UNSEEING: dict[str, Callable[[], nn.Module]] = {
    "mask_of_truth": of(lambda s, x: F.scaled_dot_product_attention(x, x, x, s.some), some=BLIND),
    "added_mask": of(
        lambda s, x: F.scaled_dot_product_attention(x, x, x, s.added),
        added=torch.zeros(T, T, dtype=torch.float64).masked_fill(~BLIND, -torch.inf),
    ),
    "own_mask": of(lambda s, x: F.scaled_dot_product_attention(x, x, x, (x[..., :1] > 0) & (x[..., :T] > -9))),
    "hidden": of(
        lambda s, x: s.a(x, x, x, attn_mask=s.hidden, need_weights=False)[0],
        a=nn.MultiheadAttention(E, 2, batch_first=True), hidden=~BLIND,
    ),
    "padding": of(
        lambda s, x: s.a(x, x, x, key_padding_mask=(x[:, :1, 0] > 0).expand(M, T), need_weights=False)[0],
        a=nn.MultiheadAttention(E, 2, batch_first=True),
    ),
    "both_masks": of(
        lambda s, x: s.a(x, x, x, attn_mask=s.hidden, key_padding_mask=x[..., 0] > 0, need_weights=False)[0],
        a=nn.MultiheadAttention(E, 2, batch_first=True), hidden=~SOME,
    ),
    "unseeing_layer": of(
        lambda s, x: s.t(x, src_mask=s.hidden), t=nn.TransformerEncoderLayer(E, 2, 7, 0.0, batch_first=True),
        hidden=~BLIND,
    ),
}  # fmt: skip
"""Attention in which some places see nothing: zero, and no gradient, where torch has it so."""
CASES = {**RECURRENT, **ATTENTION, **UNSEEING, **SHAPES}


def gap(a: Tensor, b: Tensor) -> float:
    return float((a - b).detach().abs().max() / b.detach().abs().max().clamp(min=1e-30))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_each_clients_own(case: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = CASES[case]().to(dtype)
    layout = Layout.of(model)
    x = layout.flatten(model, dtype) + 0.1 * torch.randn(B, layout.d, dtype=dtype)
    inputs = torch.randn(B, M, T, E, dtype=dtype)
    tolerance = 1e-12 if dtype == torch.float64 else 2e-6
    for training in (True, False):
        model.train(training)
        leaves = {name: view.detach().requires_grad_() for name, view in layout.views(x).items()}
        out = stack(model, layout)(leaves, inputs)
        weights = torch.randn(out.shape, dtype=dtype)
        grads = torch.autograd.grad((out * weights).sum(), list(leaves.values()), materialize_grads=True)
        for i in range(B):
            own = {name: view.detach().requires_grad_() for name, view in layout.views(x[i]).items()}
            expected = functional_call(model, own, (inputs[i],))
            assert out[i].shape == expected.shape
            assert gap(out[i], expected) < tolerance
            mine = torch.autograd.grad((expected * weights[i]).sum(), list(own.values()), materialize_grads=True)
            scale = max(float(g.abs().max()) for g in mine)
            for name, got, want in zip(layout.names, grads, mine, strict=True):
                assert float((got[i] - want).abs().max()) < 2 * tolerance * scale, name


def mixed(s: Any, x: Tensor) -> Any:
    """Places before, inside and after attention and recurrence, with some between that drop nothing."""
    x = s.before(x)
    x = x + F.scaled_dot_product_attention(*(p for p in s.qkv(x).chunk(3, -1)), dropout_p=0.2 if s.training else 0.0)
    x = x + F.dropout(s.never(x, x, x)[0], 0.4, s.training) + s.gru(x)[0].repeat(1, 1, 2)
    shown = s.shown(x, x, x, average_attn_weights=False)[1]
    return F.alpha_dropout(s.always(x), 0.1, s.training) * shown.sum((1, 3)).unsqueeze(-1)


DROPPING = {
    **{
        f"{kind.__name__}{'_both_ways' if ways else ''}{'' if first else '_time_first'}": (
            lambda kind=kind, ways=ways, first=first: Forward(
                (lambda s, x: both(s.layer(x))) if first else (lambda s, x: s.layer(x.transpose(0, 1))[0].mean(0)),
                layer=kind(E, 3, 3, batch_first=first, bidirectional=ways, dropout=0.4),
            )
        )
        for kind, ways, first in ((nn.LSTM, True, False), (nn.LSTM, False, True), (nn.GRU, False, False),
                                  (nn.GRU, True, True), (nn.RNN, False, True))
    },
    "last_state": of(lambda s, x: s.a(x)[1][-1], a=nn.GRU(E, 3, 2, batch_first=True, dropout=0.4)),
    "attention": of(
        lambda s, x: s.a(x, x, x, need_weights=False)[0], a=nn.MultiheadAttention(E, 2, 0.3, batch_first=True)
    ),
    "attention_time_first": of(
        lambda s, x: s.a(*[x.transpose(0, 1)] * 3)[0].transpose(0, 1), a=nn.MultiheadAttention(E, 2, 0.3)
    ),
    "attention_and_weights": of(
        lambda s, x: (lambda out, shown: out + shown @ x)(*s.a(x, x, x)),
        a=nn.MultiheadAttention(E, 2, 0.3, batch_first=True),
    ),
    "attention_masks": of(
        lambda s, x: s.a(x[:, :2], x, x.flip(1), attn_mask=s.hidden[:2], key_padding_mask=x[..., 0] > 1.5)[0],
        a=nn.MultiheadAttention(E, 2, 0.3, batch_first=True), hidden=~SOME,
    ),
    "rows_of_examples": of(
        lambda s, x: s.b(*[s.a(*[x.reshape(-1, 3, 2)] * 3, need_weights=False)[0]] * 3)[0].reshape(-1, T, E),
        a=nn.MultiheadAttention(2, 2, 0.3, batch_first=True), b=nn.MultiheadAttention(2, 2, 0.2, batch_first=True),
    ),
    "encoder_layer": of(lambda s, x: s.a(x), a=nn.TransformerEncoderLayer(E, 2, 7, 0.3, batch_first=True)),
    "encoder": of(
        lambda s, x: s.t(x, mask=s.causal, is_causal=True), causal=CAUSAL,
        t=nn.TransformerEncoder(nn.TransformerEncoderLayer(E, 2, 7, 0.1, batch_first=True, norm_first=True), 2,
                                enable_nested_tensor=False),
    ),
    "encoder_time_first": of(lambda s, x: s.t(x.transpose(0, 1))[-1], t=nn.TransformerEncoderLayer(E, 3, 8, 0.2)),
    "learned_mask": of(
        lambda s, x: F.scaled_dot_product_attention(x, x, x, s.bias, 0.3 if s.training else 0.0, scale=0.5),
        bias=nn.Parameter(SOME.float()),
    ),
    "all_dropped": of(lambda s, x: x + s.a(x, x, x)[0], a=nn.MultiheadAttention(E, 2, 1.0, batch_first=True)),
    "mixed": of(
        mixed, before=nn.Dropout(0.2), qkv=nn.Linear(E, 3 * E), never=nn.MultiheadAttention(E, 2, batch_first=True),
        gru=nn.GRU(E, 3, 2, batch_first=True, dropout=0.3),
        always=nn.TransformerEncoderLayer(E, 2, 4, 0.1, batch_first=True),
        shown=nn.MultiheadAttention(E, 3, 0.25, batch_first=True),
    ),
}  # fmt: skip
COUNTS = (4, 2, 3)
KEYS = torch.randint(-(2**62), 2**62, (B, M), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("case", DROPPING)
def test_what_is_dropped_is_each_clients_own(case: str, dtype: torch.dtype) -> None:
    """Outputs of all, and gradients of a loss of the examples that are no padding."""
    torch.manual_seed(0)
    model = DROPPING[case]().to(dtype)
    layout = Layout.of(model)
    x = layout.flatten(model, dtype) + 0.1 * torch.randn(B, layout.d, dtype=dtype)
    inputs = torch.randn(B, M, T, E, dtype=dtype)
    tolerance = 1e-12 if dtype == torch.float64 else 2e-6
    seen = []
    for training in (True, False):
        model.train(training)
        dims = mask_dims(model, inputs[0]) if training else ()
        leaves = {name: view.detach().requires_grad_() for name, view in layout.views(x).items()}
        out = stack(model, layout)(with_keys(leaves, KEYS if training else None, dims), inputs)
        seen.append(out.detach())
        weights = torch.randn(out.shape, dtype=dtype)
        for i, n in enumerate(COUNTS):
            weights[i, n:] = 0
        grads = torch.autograd.grad((out * weights).sum(), list(leaves.values()), materialize_grads=True)
        for i, n in enumerate(COUNTS):
            own = {name: view.detach().requires_grad_() for name, view in layout.views(x[i]).items()}
            with Masks(KEYS[i, :n] if training else None, dims):
                expected = functional_call(model, own, (inputs[i, :n],))
            assert gap(out[i, :n], expected) < tolerance
            mine = torch.autograd.grad((expected * weights[i, :n]).sum(), list(own.values()), materialize_grads=True)
            terms = float((expected * weights[i, :n]).detach().abs().max())  # may cancel in every gradient
            scale = max(terms, *(float(g.abs().max()) for g in mine))
            for name, got, want in zip(layout.names, grads, mine, strict=True):
                assert float((got[i] - want).abs().max()) < 2 * tolerance * scale, name
    assert gap(*seen) > 1e-3


@pytest.mark.parametrize("shown", [True, False])
def test_places_that_see_nothing_are_what_torch_makes_of_them(shown: bool) -> None:
    """NaN where ``nn.MultiheadAttention`` shows its weights, zero where it does not; of that place alone."""
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(E, 2, batch_first=True)
    model = of(lambda s, x: s.a(x, x, x, attn_mask=s.hidden, need_weights=shown)[0], a=layer, hidden=~BLIND)().double()
    layout, inputs = Layout.of(model), torch.randn(B, M, T, E, dtype=torch.float64)
    x = layout.flatten(model, torch.float64).expand(B, -1)
    out = stack(model, layout)(layout.views(x), inputs)
    for i in range(B):
        torch.testing.assert_close(out[i], model(inputs[i]), rtol=1e-12, atol=1e-12, equal_nan=True)
    assert out.isnan().any(-1).nonzero()[:, 2].unique().tolist() == ([1] if shown else [])


@pytest.mark.parametrize("case", ["LSTM1", "GRU1", "RNN1", "attention_masks", "encoder"])
def test_in_lower_precision(case: str) -> None:
    """Backward passes that are written out get what autocast gives: two digits agree, not seven."""
    torch.manual_seed(0)
    model = CASES[case]().float()
    layout = Layout.of(model)
    x = layout.flatten(model) + 0.1 * torch.randn(B, layout.d)
    inputs, found = torch.randn(B, M, T, E), []
    for lower in (None, torch.bfloat16):
        leaves = {name: view.detach().requires_grad_() for name, view in layout.views(x).items()}
        out = replace(stack(model, layout), lower=lower)(leaves, inputs)
        grads = torch.autograd.grad(out.square().sum(), list(leaves.values()), materialize_grads=True)
        assert out.dtype == torch.float32
        found.append(torch.cat([g.flatten() for g in grads]))
    assert 1e-5 < float((found[1] - found[0]).norm() / found[0].norm()) < 0.1


@pytest.mark.parametrize("case", ["GRU2_both_ways", "LSTM1", "encoder", "matrices", "convolution", "places"])
def test_no_client_touches_another(case: str) -> None:
    torch.manual_seed(0)
    model = CASES[case]().double()
    layout = Layout.of(model)
    leaves = {n: v.detach().requires_grad_() for n, v in layout.views(torch.randn(B, layout.d).double()).items()}
    out = stack(model, layout)(leaves, torch.randn(B, M, T, E, dtype=torch.float64))
    for g in torch.autograd.grad(out[1].square().sum(), list(leaves.values())):
        assert float(g[0].abs().max()) == float(g[2].abs().max()) == 0


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (of(lambda s, x: s.a(x)[0], a=nn.LSTM(E, 3, proj_size=2)), "LSTM with proj_size"),
        (of(lambda s, x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.1 * x.shape[1])), "that forward computes"),
        (of(lambda s, x: s.a(x, x, x)[0], a=nn.MultiheadAttention(E, 2, add_zero_attn=True)), "add_zero_attn"),
        (of(lambda s, x: x - x.mean()), "goes over the examples of a client"),
        (of(lambda s, x: x[x > 0]), "an index of type Act"),
        (of(lambda s, x: s.a(x), a=nn.Softmax()), "Softmax has no dim"),
        (of(lambda s, x: s.a(x), a=nn.Conv1d(T, T, 3, padding_mode="circular")), "pads with circular"),
        (of(lambda s, x: torch.fft.fft(x).real), "has no stacked kernel"),
    ],
)
def test_what_is_refused(make: Callable[[], nn.Module], reason: str) -> None:
    model = make()
    layout = Layout.of(model)
    with pytest.raises(Unstackable, match=reason):
        stack(model, layout)(layout.views(torch.randn(2, layout.d)), torch.randn(2, M, T, E))
