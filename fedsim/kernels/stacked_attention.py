"""Scaled dot-product attention of b clients at once: the heads of all examples of all clients are one batch."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fedsim.kernels.stacked_ops import Act, Params, Unstackable, plain
from fedsim.kernels.stacked_values import by_client, clients, rank, shape_of


class _Attention(torch.autograd.Function):
    """softmax(scale q k^T + mask) v, of n heads.

    The weights are kept, as they are small at the lengths that clients train on; torch's own kernel computes them again
    and takes 1.5 times as long for 32 places of 16 numbers (forward and backward, one AVX-512 core).
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        """[n, t, d], [n, s, d], [n, s, e], a mask that broadcasts to [n, t, s] -> [n, t, e]."""
        weights = _weights(q, k, mask, scale)
        ctx.save_for_backward(q, k, v, weights)
        ctx.scale, ctx.shape = scale, None if mask is None else mask.shape
        return torch.bmm(weights, v)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of q, k, v and the mask."""
        q, k, v, weights = ctx.saved_tensors
        at_v = torch.bmm(weights.transpose(1, 2), g)
        scores = torch.bmm(g, v.transpose(1, 2))
        scores = torch.ops.aten._softmax_backward_data(scores, weights, -1, weights.dtype)
        empty = q.new_empty(())
        at_q = torch.baddbmm(empty, scores, k, beta=0, alpha=ctx.scale)
        at_k = torch.baddbmm(empty, scores.transpose(1, 2), q, beta=0, alpha=ctx.scale)
        at_mask = scores.sum_to_size(ctx.shape) if ctx.needs_input_grad[3] else None
        return at_q, at_k, at_v, at_mask, None


def _weights(q: Tensor, k: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    start, beta = (q.new_empty(()), 0) if mask is None else (mask, 1)
    return torch.softmax(torch.baddbmm(start, q, k.transpose(1, 2), beta=beta, alpha=scale), -1)


def _additive(mask: Any, like: Tensor) -> Any:
    """What a mask adds to scores: where a mask of truth values is false, minus infinity."""
    data = plain(mask) if isinstance(mask, Act) else mask
    if data.dtype == torch.bool:
        data = torch.zeros_like(data, dtype=like.dtype).masked_fill_(data.logical_not(), -math.inf)
    return mask._replace(data=data, grouped=False) if isinstance(mask, Act) else data


def _spread(mask: Any, b: int, before: tuple[int, ...]) -> Tensor | None:
    """A mask that broadcasts to [*before, t, s] for each client, as [n, t, s]."""
    if mask is None:
        return None
    if isinstance(mask, Tensor) and mask.dim() == 2:
        return mask
    own = by_client(mask, b)
    own = own.reshape(b, *(1,) * (len(before) + 2 - rank(mask)), *own.shape[1:])
    return own.expand(b, *before, *own.shape[-2:]).reshape(-1, *own.shape[-2:])


def scaled_dot_product_attention(
    params: Params,
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Act:
    """``F.scaled_dot_product_attention`` of each client, [..., t, d] -> [..., t, e]."""
    if dropout_p > 0:
        raise Unstackable("draws random numbers")
    if enable_gqa or not (shape_of(query)[:-2] == shape_of(key)[:-2] == shape_of(value)[:-2]):
        raise Unstackable("queries, keys and values of different leading dimensions")
    b, before = clients(query, key, value), shape_of(query)[:-2]
    q, k, v = (by_client(part, b).reshape(-1, *shape_of(part)[-2:]) for part in (query, key, value))
    mask = None if attn_mask is None else _spread(_additive(attn_mask, q), b, before)
    if is_causal:
        ones = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool, device=q.device)
        mask = _additive(ones.tril(), q)
    by = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    out = _Attention.apply(q, k, v, mask, by)  # type: ignore[no-untyped-call]
    return Act(out.view(b, *before, *out.shape[-2:]), b)


def split_heads(params: Params, x: Act, heads: int, parts: int, batch_first: bool) -> tuple[Act, ...]:
    """[m, t, parts * e] -> as many times [m, heads, t, e / heads], in one copy; [t, m, ...] unless batch first."""
    if x.dim != 3:
        raise Unstackable(f"attention on values of {x.dim} dimensions, need sequences of 3")
    data = plain(x) if batch_first else plain(x).transpose(1, 2)
    b, m, t, e = data.shape
    split = data.reshape(b, m, t, parts, heads, e // parts // heads).permute(3, 0, 1, 4, 2, 5).contiguous()
    return tuple(Act(part, b) for part in split.unbind())


def merge_heads(params: Params, x: Act, batch_first: bool) -> Act:
    """[m, heads, t, d] -> [m, t, heads * d], or [t, m, ...]."""
    data = plain(x)  # [b, m, heads, t, d]
    order = (0, 1, 3, 2, 4) if batch_first else (0, 3, 1, 2, 4)
    return Act(data.permute(order).flatten(3), x.b)


def merged_mask(params: Params, like: Act, attn_mask: Any, padding: Any) -> Any:
    """The mask of attention and that of padded keys [m, s], in both of which True hides, as one that is added."""
    both = [attn_mask, padding]
    found = [_additive(_opposite(mask), like.data) for mask in both if mask is not None]
    if attn_mask is not None and rank(attn_mask) != 2:
        raise Unstackable("a mask by head")
    if padding is None:
        return found[0]
    own = by_client(found[-1], like.b)[:, :, None, None]
    return Act(own if attn_mask is None else own + by_client(found[0], like.b)[:, None, None], like.b)


def _opposite(mask: Any) -> Any:
    data = plain(mask) if isinstance(mask, Act) else mask
    if data.dtype != torch.bool:
        return mask
    return mask._replace(data=data.logical_not(), grouped=False) if isinstance(mask, Act) else data.logical_not()


def attention_weights(params: Params, q: Act, k: Act, mask: Any, average: bool) -> Act:
    """The weights [m, heads, t, s] of multi-head attention, or their mean [m, t, s] over the heads."""
    before = q.shape[:-2]
    flat = (plain(part).flatten(0, -3) for part in (q, k))
    weights = _weights(*flat, _spread(mask, q.b, before), 1 / math.sqrt(q.shape[-1]))
    weights = weights.view(q.b, *before, *weights.shape[-2:])
    return Act(weights.mean(2) if average else weights, q.b)
