"""Scaled dot-product attention of b clients at once: the heads of all examples of all clients are one batch.

Where weights are dropped, the masks are those that each client's own module has (``fedsim.models.dropout``).
"""

from __future__ import annotations

import math
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch.autograd.function import once_differentiable

from fedsim.ground.masks import bits_of, kept
from fedsim.kernels.precision import written_out
from fedsim.kernels.stacked_ops import KEYS, Act, Params, Unstackable, mask_dim, plain
from fedsim.kernels.stacked_values import by_client, clients, rank, shape_of


class _Attention(torch.autograd.Function):
    """softmax(scale q k^T + mask) v, of n heads; the softmax times ``factor``, where weights are dropped.

    The weights are kept, as they are small at the lengths that clients train on; torch's own kernel computes them again
    and takes 1.5 times as long for 32 places of 16 numbers (forward and backward, one AVX-512 core).
    """

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        blind: Tensor | None,
        scale: float,
        factor: Tensor | None,
    ) -> Tensor:
        """[n, t, d], [n, s, d], [n, s, e], a mask that broadcasts to [n, t, s], [n, t, s] -> [n, t, e].

        ``blind`` broadcasts to [n, t, 1]: places whose weights are zero instead of a softmax.
        """
        weights = _weights(q, k, mask, scale)
        if blind is not None:
            weights.masked_fill_(blind, 0.0)
        ctx.save_for_backward(q, k, v, weights, factor)
        ctx.scale, ctx.shape = scale, None if mask is None else mask.shape
        return torch.bmm(weights if factor is None else weights * factor, v)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of q, k, v and the mask."""
        q, k, v, weights, factor = ctx.saved_tensors
        at_v = torch.bmm((weights if factor is None else weights * factor).transpose(1, 2), g)
        scores = torch.bmm(g, v.transpose(1, 2))
        if factor is not None:
            scores.mul_(factor)
        scores = torch.ops.aten._softmax_backward_data(scores, weights, -1, weights.dtype)
        empty = q.new_empty(())
        at_q = torch.baddbmm(empty, scores, k, beta=0, alpha=ctx.scale)
        at_k = torch.baddbmm(empty, scores.transpose(1, 2), q, beta=0, alpha=ctx.scale)
        at_mask = scores.sum_to_size(ctx.shape) if ctx.needs_input_grad[3] else None
        return at_q, at_k, at_v, at_mask, None, None, None


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


def _blind(mask: Any) -> Any:
    """Places [.., t, 1] that a mask hides everything from; None where there is none, as far as the CPU can say."""
    data = plain(mask) if isinstance(mask, Act) else mask
    found = (data == -math.inf).all(-1, keepdim=True)
    if found.device.type == "cpu" and not found.any():  # on others the question would take longer than an answer
        return None
    return Act(found, mask.b) if isinstance(mask, Act) else found


def dropping(node: fx.Node) -> float:
    """With which probability a node of a trace, whose target is one of ``DROPPING``, drops weights."""
    p: Any = node.args[4] if len(node.args) > 4 else node.kwargs.get("dropout_p", 0.0)
    if isinstance(p, fx.Node):
        raise Unstackable("attention with dropout at a rate that forward computes has no stacked kernel")
    return float(p)


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
    *,
    place: int = 0,
    shown: bool | None = None,
) -> Act:
    """``F.scaled_dot_product_attention`` of each client, [..., t, d] -> [..., t, e].

    ``place`` is its number among those that drop. ``shown`` is None but inside ``nn.MultiheadAttention``, where the
    first dimension holds one example after the other: there it says whether weights are shown, and then a place that
    sees nothing gets NaN, as torch has it, and else zero.
    """
    if enable_gqa or not (shape_of(query)[:-2] == shape_of(key)[:-2] == shape_of(value)[:-2]):
        raise Unstackable("queries, keys and values of different leading dimensions")
    b, before = clients(query, key, value), shape_of(query)[:-2]
    q, k, v = (by_client(part, b).reshape(-1, *shape_of(part)[-2:]) for part in (query, key, value))
    added = None if attn_mask is None else _additive(attn_mask, q)
    mask, unseeing = (
        _spread(added, b, before),
        _spread(None if added is None or shown else _blind(added), b, before),
    )
    if is_causal:
        ones = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool, device=q.device)
        mask = _additive(ones.tril(), q)
    by = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    factor = _factor(params, (*before, q.shape[1], k.shape[1]), dropout_p, place, q.dtype, shown is not None)
    out = written_out(_Attention, q, k, v, mask, unseeing, by, None if factor is None else factor.flatten(0, -3))
    return Act(out.view(b, *before, *out.shape[-2:]), b)


def _factor(
    params: Params, shape: tuple[int, ...], p: float, place: int, dtype: torch.dtype, rows: bool
) -> Tensor | None:
    """What the weights [b, *shape] are multiplied with: 0 for those dropped, or None where none are."""
    if not 0 <= p <= 1:
        raise ValueError(f"dropout probability has to be between 0 and 1, but got {p}")
    if p == 0:
        return None
    if KEYS not in params:
        raise TypeError("dropout needs the keys of the examples (Batch.keys)")
    b, m = (keys := params[KEYS]).shape
    own = (m, prod(shape[:-2]) // m, *shape[-2:]) if rows and shape[0] % m == 0 else shape
    return (
        kept(bits_of(keys, place, own, mask_dim(params, place)), p, dtype)
        .mul_(1 / (1 - p) if p < 1 else 0.0)
        .view(b, *shape)
    )


def attend(params: Params, q: Act, k: Act, v: Act, mask: Any, p: float, shown: bool, *, place: int = 0) -> Act:
    """The attention inside ``nn.MultiheadAttention``, of heads [m, heads, t, d].

    Where its weights are ``shown``, torch takes another way, on which places that see nothing get NaN.
    """
    return scaled_dot_product_attention(params, q, k, v, mask, p, place=place, shown=shown)


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


def attention_weights(
    params: Params, q: Act, k: Act, mask: Any, average: bool, p: float = 0.0, *, place: int = 0
) -> Act:
    """The weights [m, heads, t, s] of multi-head attention, or their mean [m, t, s] over the heads; some dropped."""
    before = q.shape[:-2]
    queries, keys = (plain(part).flatten(0, -3) for part in (q, k))
    weights = _weights(queries, keys, _spread(mask, q.b, before), 1 / math.sqrt(q.shape[-1]))
    weights = weights.view(q.b, *before, *weights.shape[-2:])
    factor = _factor(params, tuple(weights.shape[1:]), p, place, weights.dtype, rows=True)
    weights = weights if factor is None else weights * factor
    return Act(weights.mean(2) if average else weights, q.b)


DROPPING: tuple[Any, ...] = (F.scaled_dot_product_attention, attend, attention_weights)
"""Targets of nodes that may drop weights; their rate is the fifth argument."""
