"""Products and normalisations of rows, for b clients at once, whose gradients come out where they are wanted.

Autograd's own gradient of a weight W in x W^T is that of W^T: it has to be transposed afterwards. And a normalisation
with each client's own scale is three operations of which each keeps its input.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fedsim.kernels.precision import written_out

WIDE = 8
"""Outputs per input of a layer from which the gradient of its weight is taken the other way round."""


def rows_times(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x W^T + bias: [b, n, f], [b, o, f], [b, o] -> [b, n, o]."""
    return written_out(_Rows, x, weight, bias)  # type: ignore[no-any-return]


class _Rows(torch.autograd.Function):
    """The gradient of W comes out in the layout of W."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """One product for each client."""
        ctx.save_for_backward(x, weight)
        columns = weight.transpose(1, 2)
        return torch.bmm(x, columns) if bias is None else torch.baddbmm(bias.unsqueeze(1), x, columns)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of all three."""
        x, weight = ctx.saved_tensors
        at_x, at_weight, at_bias = ctx.needs_input_grad
        first = None
        if at_weight and weight.shape[1] > WIDE * weight.shape[2]:  # as one row for each input: twice as fast
            first = torch.bmm(x.transpose(1, 2), g).transpose(1, 2)
        elif at_weight:
            first = torch.bmm(g.transpose(1, 2), x)
        return torch.bmm(g, weight) if at_x else None, first, g.sum(1) if at_bias else None


def normalised(x: Tensor, shape: tuple[int, ...], weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """Layer normalisation of rows [b, n, *shape] with each client's scale and shift [b, *shape]."""
    return written_out(_Normalised, x, shape, weight, bias, eps, lower=False)  # type: ignore[no-any-return]


class _Normalised(torch.autograd.Function):
    """One pass forward, and backward one and the sums of scale and shift."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shape: tuple[int, ...], weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
        """As of ``normalised``."""
        x = x.contiguous()
        out, mean, scale = torch.native_layer_norm(x, shape, None, None, eps)
        ctx.save_for_backward(x, mean, scale, out, weight)
        ctx.normal = shape
        own = weight.unsqueeze(1)
        return out * own if bias is None else torch.addcmul(bias.unsqueeze(1), out, own)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, scale and shift."""
        x, mean, scale, out, weight = ctx.saved_tensors
        at_x = at_weight = at_bias = None
        if ctx.needs_input_grad[0]:
            inner = (g * weight.unsqueeze(1)).contiguous()
            at_x = torch.ops.aten.native_layer_norm_backward(
                inner, x, ctx.normal, mean, scale, None, None, [True, False, False]
            )[0]
        if ctx.needs_input_grad[2]:
            at_weight = (g * out).sum(1)
        if ctx.needs_input_grad[3]:
            at_bias = g.sum(1)
        return at_x, None, at_weight, at_bias, None
