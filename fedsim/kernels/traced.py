"""Layers of ``torch.nn`` that a trace takes apart, in steps that have stacked kernels: attention and recurrence.

Each function is a layer's forward on fx proxies, with the arguments of torch's own. What these layers can do beside
is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from fedsim.kernels import stacked_attention as attention
from fedsim.kernels import stacked_recurrent as recurrent
from fedsim.kernels.stacked_ops import Kernel, Unstackable

OWN: tuple[Kernel, ...] = (
    attention.split_heads,
    attention.attend,
    attention.merge_heads,
    attention.merged_mask,
    attention.attention_weights,
    recurrent.project,
    recurrent.recurrence,
)
"""Targets of nodes that are their own kernels."""


def step(kernel: Kernel, *args: Any) -> Any:
    """A node of the graph that runs the kernel."""
    tracer = next(arg.tracer for arg in args if isinstance(arg, fx.Proxy))
    return tracer.create_proxy("call_function", kernel, args, {})


def multihead_attention(
    layer: Any,
    query: fx.Proxy,
    key: fx.Proxy,
    value: fx.Proxy,
    key_padding_mask: Any = None,
    need_weights: bool = True,
    attn_mask: Any = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Any, Any]:
    """``nn.MultiheadAttention``: one product for the projections where query, key and value are one."""
    if layer.bias_k is not None or layer.add_zero_attn:
        raise Unstackable("MultiheadAttention with add_bias_kv or add_zero_attn has no stacked kernel")
    if is_causal and attn_mask is None:
        raise Unstackable("MultiheadAttention with is_causal needs its attn_mask")
    heads, first = layer.num_heads, layer.batch_first
    if query is key is value and layer._qkv_same_embed_dim:
        q, k, v = _three(step(attention.split_heads, _projected(layer, query, None), heads, 3, first))
    else:
        parts = (_projected(layer, x, n) for n, x in enumerate((query, key, value)))
        q, k, v = (step(attention.split_heads, part, heads, 1, first)[0] for part in parts)
    mask = None
    if attn_mask is not None or key_padding_mask is not None:
        mask = step(attention.merged_mask, q, attn_mask, key_padding_mask)
    p = layer.dropout if layer.training else 0.0
    mixed = step(attention.merge_heads, step(attention.attend, q, k, v, mask, p, need_weights), first)
    out = F.linear(mixed, layer.out_proj.weight, layer.out_proj.bias)
    return out, step(attention.attention_weights, q, k, mask, average_attn_weights, p) if need_weights else None


def _three(parts: Any) -> tuple[Any, Any, Any]:
    return parts[0], parts[1], parts[2]


def _projected(layer: Any, x: Any, part: int | None) -> Any:
    """Queries, keys and values side by side, or the part of them."""
    weight, bias = layer.in_proj_weight, layer.in_proj_bias
    if part is None:
        return F.linear(x, weight, bias)
    if not layer._qkv_same_embed_dim:
        weight = (layer.q_proj_weight, layer.k_proj_weight, layer.v_proj_weight)[part]
    else:
        weight = weight.chunk(3)[part]
    return F.linear(x, weight, None if bias is None else bias.chunk(3)[part])


def encoder_layer(
    layer: Any, src: Any, src_mask: Any = None, src_key_padding_mask: Any = None, is_causal: bool = False
) -> Any:
    """``nn.TransformerEncoderLayer``, normalised before or after."""

    def attend(x: Any) -> Any:
        masks = {"attn_mask": src_mask, "key_padding_mask": src_key_padding_mask, "is_causal": is_causal}
        return layer.dropout1(layer.self_attn(x, x, x, need_weights=False, **masks)[0])

    def feed(x: Any) -> Any:
        return layer.dropout2(layer.linear2(layer.dropout(layer.activation(layer.linear1(x)))))

    if layer.norm_first:
        src = src + attend(layer.norm1(src))
        return src + feed(layer.norm2(src))
    src = layer.norm1(src + attend(src))
    return layer.norm2(src + feed(src))


def encoder(layer: Any, src: Any, mask: Any = None, src_key_padding_mask: Any = None, is_causal: Any = None) -> Any:
    """``nn.TransformerEncoder``."""
    causal = bool(is_causal) and mask is not None  # a hint only: the mask says it
    for one in layer.layers:
        src = one(src, src_mask=mask, is_causal=causal, src_key_padding_mask=src_key_padding_mask)
    return src if layer.norm is None else layer.norm(src)


def recurrent_layer(layer: Any, x: Any, state: Any = None) -> tuple[Any, Any]:
    """``nn.LSTM``, ``nn.GRU`` or ``nn.RNN``: states of the last layer, and the last states of all."""
    name, kind = type(layer).__name__, layer.mode
    if layer.proj_size > 0:
        raise Unstackable(f"{name} with proj_size has no stacked kernel")
    cells = None
    if state is not None and kind == "LSTM":
        state, cells = state[0], state[1]
    if layer.batch_first:
        x = x.transpose(0, 1)
    ends: list[Any] = []
    inner: list[Any] = []
    for number in range(layer.num_layers):
        if number and layer.training and layer.dropout > 0:  # examples first, as the masks have them
            x = F.dropout(x.transpose(0, 1), layer.dropout).transpose(0, 1)
        both = []
        for backwards in range(2 if layer.bidirectional else 1):
            suffix = f"_l{number}{'_reverse' if backwards else ''}"
            at = len(ends)
            given = (None if value is None else value[at] for value in (state, cells))
            out, cell = _direction(layer, x, suffix, bool(backwards), *given)
            both.append(out)
            ends.append(out[0 if backwards else -1])
            inner.append(cell)
        x = both[0] if len(both) == 1 else torch.cat(both, -1)
    out = x.transpose(0, 1) if layer.batch_first else x
    last = torch.stack(ends)
    return out, (last, torch.stack(inner)) if kind == "LSTM" else last


def _direction(layer: Any, x: Any, suffix: str, backwards: bool, state: Any, cells: Any) -> tuple[Any, Any]:
    """One layer in one direction on [t, m, f]."""
    own = partial(getattr, layer)
    biases = (own(f"bias_ih{suffix}"), own(f"bias_hh{suffix}")) if layer.bias else ()
    gru = layer.mode == "GRU"  # in which the state's bias is multiplied by the reset gate
    gates = step(recurrent.project, x, own(f"weight_ih{suffix}"), *(biases[:1] if gru else biases))
    bias = biases[1] if gru and biases else None
    found = step(recurrent.recurrence, gates, own(f"weight_hh{suffix}"), bias, layer.mode, backwards, state, cells)
    return found[0], found[1]


APART: dict[type[nn.Module], Callable[..., Any]] = {
    nn.LSTM: recurrent_layer,
    nn.GRU: recurrent_layer,
    nn.RNN: recurrent_layer,
    nn.MultiheadAttention: multihead_attention,
    nn.TransformerEncoderLayer: encoder_layer,
    nn.TransformerEncoder: encoder,
}
