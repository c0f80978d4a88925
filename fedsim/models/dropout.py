"""Dropout with an address: a mode under which a plain module takes its masks from the keys of its examples.

``Masks(keys)`` around a forward pass answers every call of ``torch`` that drops something: the functions behind
``nn.Dropout`` and its kin, attention, and recurrent layers. Attention and recurrent layers are computed in plain steps
then, with the mask put in between. The *place* of a mask is the number of its call in the pass, of those that drop.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from types import FrameType, FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from torch.overrides import TorchFunctionMode
from torch.utils import checkpoint

from fedsim.errors import InputError
from fedsim.ground.masks import bits_of, dropped, kept
from fedsim.models.reach import meets

KINDS: dict[Any, tuple[str, bool]] = {
    F.dropout: ("", False), F.dropout1d: ("1d", False), F.dropout2d: ("2d", False), F.dropout3d: ("3d", False),
    F.alpha_dropout: ("", True), F.feature_alpha_dropout: ("2d", True),
    torch.dropout: ("", False), torch.dropout_: ("", False),
    torch.feature_dropout: ("2d", False), torch.feature_dropout_: ("2d", False),
    torch.alpha_dropout: ("", True), torch.alpha_dropout_: ("", True),
    torch.feature_alpha_dropout: ("2d", True), torch.feature_alpha_dropout_: ("2d", True),
}  # fmt: skip
"""What drops single numbers or whole channels ("1d" and "3d" take a sample without a batch too), alpha or not."""

_IN_PLACE = (torch.dropout_, torch.feature_dropout_, torch.alpha_dropout_, torch.feature_alpha_dropout_)
_RECURRENT = (torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu)
_ATTENTION = (F.scaled_dot_product_attention, F.multi_head_attention_forward)
_NAMES = frozenset(getattr(f, "__name__", "") for f in (*KINDS, *_ATTENTION, *_RECURRENT))


def draws(model: nn.Module) -> bool:
    """Whether a model may drop something in training mode, by its layers and by what its code names."""
    for module in model.modules():
        rate = module.p if isinstance(module, _DropoutNd) else 0.0
        if isinstance(module, (nn.RNNBase, nn.MultiheadAttention)):
            rate = module.dropout
        if rate > 0:
            return True
    return meets(model, (*KINDS, *_ATTENTION, *_RECURRENT), _NAMES)


def trial_masks(model: nn.Module) -> AbstractContextManager[Any]:
    """A ``with`` block for passes before a run, whatever their samples: masks by one key, where the model has some."""
    return Masks(torch.zeros(1, dtype=torch.int64)) if model.training and draws(model) else nullcontext()


class Masks(TorchFunctionMode):
    """Around ONE forward pass: masks of dropout from the keys of its examples.

    Args:
        keys: [m] int64, of each example; None where nothing may be dropped.
        dims: by place, the examples' dimension (``fedsim.models.mask_dims``); None: the first of every value.

    Attributes:
        shapes: of the masks so far.
    """

    def __init__(self, keys: Tensor | None, dims: Sequence[int] | None = None):
        super().__init__()
        self.keys, self.dims, self.shapes = keys, dims, list[tuple[int, ...]]()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Answer a call that drops something; make any other."""
        kwargs = kwargs or {}
        if func in KINDS:
            return self._drop(func, *args, **kwargs)
        if func is F.scaled_dot_product_attention:
            return self._attention(*args, **kwargs)
        if func is F.multi_head_attention_forward:
            return _heads(self)(*args, **kwargs)
        if func in _RECURRENT:
            return self._recurrent(func, *args, **kwargs)
        return func(*args, **kwargs)

    def drop(self, x: Tensor, p: float, *, kind: str = "", alpha: bool = False, inplace: bool = False) -> Tensor:
        """A value of which some numbers, or channels, are dropped."""
        if not 0 <= p <= 1:
            raise ValueError(f"dropout probability has to be between 0 and 1, but got {p}")
        if p == 0 or not x.numel():
            return x
        if self.keys is None:
            raise TypeError("dropout needs the keys of the examples (Batch.keys)")
        if _computed_again():
            raise InputError(
                "dropout inside torch.utils.checkpoint would have other masks in the backward pass, which computes it "
                "again; take the checkpoint out"
            )
        place, shape = len(self.shapes), mask_shape(x.shape, kind)
        self.shapes.append(shape)
        keep = kept(bits_of(self.keys, place, shape, dim_of(self.dims, place)), p, x.dtype)
        return dropped(x, keep, p, alpha=alpha, inplace=inplace)

    def _drop(
        self, func: Any, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False, **train: bool
    ) -> Tensor:
        if not train.get("train", training):
            return input
        kind, alpha = KINDS[func]
        return self.drop(input, p, kind=kind, alpha=alpha, inplace=inplace or func in _IN_PLACE)

    def _attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        drop: Any = None,
        **more: Any,
    ) -> Tensor:
        """``F.scaled_dot_product_attention``, by its definition in torch's documentation where weights are dropped."""
        drop = drop or self.drop
        if dropout_p == 0:
            return F.scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, is_causal, **more)
        if more.get("enable_gqa"):
            key, value = (t.repeat_interleave(query.shape[-3] // t.shape[-3], -3) for t in (key, value))
        scale = more.get("scale")
        scores = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
        if is_causal:
            attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=query.device).tril()
        if attn_mask is None:
            return drop(scores.softmax(-1), dropout_p) @ value  # type: ignore[no-any-return]
        if attn_mask.dtype == torch.bool:
            attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill(~attn_mask, -torch.inf)
        scores = scores + attn_mask
        nothing = (scores == -torch.inf).all(-1, keepdim=True)  # a position that sees none: zero, as torch has it
        weights = scores.masked_fill(nothing, 0.0).softmax(-1).masked_fill(nothing, 0.0)
        return drop(weights, dropout_p) @ value  # type: ignore[no-any-return]

    def _recurrent(self, func: Any, x: Tensor, *rest: Any, **kwargs: Any) -> Any:
        """Layer after layer, with a mask between any two."""
        packed = not isinstance(rest[1], (list, tuple)) or isinstance(rest[2], (list, tuple))
        layers, p, train, both = rest[4:8] if packed else rest[3:7]
        if not (train and p > 0 and layers > 1):
            return func(x, *rest, **kwargs)
        if packed:
            raise InputError(
                "dropout between the layers of a recurrent network cannot have an address on packed sequences, whose "
                "rows belong to no example; pass padded sequences, or use dropout=0"
            )
        hx, weights, biases, *_, first = rest
        each, directions = len(weights) // layers, 2 if both else 1
        alone = (1, 0.0, train, both, first)
        ends = []
        for k in range(layers):
            if k:  # examples first: a sequence may be as long as the minibatch
                x = self.drop(x, p) if first else self.drop(x.transpose(0, 1), p).transpose(0, 1)
            mine = slice(k * directions, (k + 1) * directions)
            start = tuple(h[mine] for h in hx) if func is torch.lstm else hx[mine]
            some = weights[k * each : (k + 1) * each]
            x, *end = func(x, start, some, biases, *alone)
            ends.append(end)
        return (x, *(torch.cat(parts) for parts in zip(*ends, strict=True)))


def _computed_again() -> bool:
    """Whether this call is inside ``torch.utils.checkpoint``, of which torch itself says nothing."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        if frame.f_code.co_filename == checkpoint.__file__:
            return True
        frame = frame.f_back
    return False


def dim_of(dims: Sequence[int] | None, place: int) -> int:
    """The examples' dimension at a place of the model."""
    if dims is None:
        return 0
    if place >= len(dims):
        raise InputError(
            f"the model drops more than the {len(dims)} times that it drops on samples of zeros; the number must not "
            "depend on the samples, or masks would have no address"
        )
    return dims[place]


def mask_shape(shape: tuple[int, ...], kind: str) -> tuple[int, ...]:
    """The shape of a mask: that of the value, or one number for each channel [m, c]."""
    if not kind:
        return tuple(shape)
    alone = len(shape) == {"1d": 2, "3d": 4}.get(kind, 0)  # one sample [c, ...] without a batch
    first = 1 if alone else 2
    return (*shape[:first], *(1,) * (len(shape) - first))


def _heads(masks: Masks) -> Any:
    """torch's own multi-head attention, in which what drops is answered by ``masks``."""

    def drop(x: Tensor, p: float) -> Tensor:
        """Attention weights [m * heads, t, s], or [m, heads, t, s], of one example after the other."""
        if masks.keys is None or x.shape[0] % len(masks.keys):
            return masks.drop(x, p)
        return masks.drop(x.reshape(len(masks.keys), -1, *x.shape[-2:]), p).view_as(x)

    attend = partial(masks._attention, drop=drop)
    here = {"dropout": drop, "scaled_dot_product_attention": attend, "has_torch_function": lambda _: False}
    function: Any = F.multi_head_attention_forward
    return FunctionType(
        function.__code__, {**vars(F), **here}, function.__name__, function.__defaults__, function.__closure__
    )
