"""Dropout for b clients at once, with the masks that each client's own module has (``fedsim.models.dropout``)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fedsim.ground.masks import bits, bits_of, counter, dropped, kept, words
from fedsim.kernels.stacked_ops import KEYS, Act, Kernel, Params, Unstackable, mask_dim
from fedsim.models.dropout import KINDS, mask_shape

_LAYERS: dict[Any, Any] = {
    nn.Dropout: F.dropout,
    nn.Dropout1d: F.dropout1d,
    nn.Dropout2d: F.dropout2d,
    nn.Dropout3d: F.dropout3d,
    nn.AlphaDropout: F.alpha_dropout,
    nn.FeatureAlphaDropout: F.feature_alpha_dropout,
}
LAYERS = tuple(_LAYERS)
CALLS = (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout, torch.dropout)
"""The layers and the calls that have a kernel here."""


def rate(node: fx.Node, modules: dict[str, nn.Module]) -> float:
    """With which probability a node of a trace drops; 0 where it is no dropout, or one that is switched off."""
    if node.op == "call_module":
        module: Any = modules[str(node.target)]
        return float(module.p) if type(module) in _LAYERS and module.training else 0.0
    if node.op != "call_function" or node.target not in CALLS:
        return 0.0
    given: dict[str, Any] = dict(zip(("input", "p", "training"), node.args, strict=False)) | dict(node.kwargs)
    off = node.target in (F.alpha_dropout, F.feature_alpha_dropout)  # unless training is asked for
    p, training = given.get("p", 0.5), given.get("train", given.get("training", not off))
    if isinstance(p, fx.Node) or isinstance(training, fx.Node):
        raise Unstackable("dropout at a rate that forward computes has no stacked kernel")
    return float(p) if training else 0.0


def dropout(kind: Any, p: float, place: int, inplace: bool) -> Kernel:
    """The kernel of a layer or a call.

    Args:
        kind: which.
        p: with which probability it drops; 0 for one that is switched off.
        place: its number among those that drop.
        inplace: whether it writes into what it gets.
    """
    shared, alpha = KINDS[_LAYERS.get(kind, kind)]

    def run(params: Params, x: Act, *args: Any, **kwargs: Any) -> Act:
        if p == 0 or not x.data.numel():
            return x
        if KEYS not in params:
            raise TypeError("dropout needs the keys of the examples (Batch.keys)")
        keep = _kept(params[KEYS], place, x, mask_shape(x.shape, shared), p, mask_dim(params, place))
        return x._replace(data=dropped(x.data, keep, p, alpha=alpha, inplace=inplace))

    return run


def _kept(keys: Tensor, place: int, x: Act, shape: tuple[int, ...], p: float, dim: int) -> Tensor:
    """What is kept of a stacked value, in its layout; numbers of ``shape`` in each client's own."""
    if not x.grouped:
        return kept(bits_of(keys, place, shape, dim), p, x.data.dtype)
    b, m = keys.shape
    _, c, h, w = shape
    if shape[0] != m or dim:
        raise Unstackable(f"dropout of images sees {shape[0]} rows for {m} examples")
    # As grouped images lie in memory, [m, h, w, b, c]: nothing is moved.
    count = counter(c * h * w, keys.device).view(c, h * w).t().contiguous()
    first, second = (word.t().contiguous().view(m, 1, b, 1) for word in words(keys, place))
    drawn = bits(first, second, count.view(1, h * w, 1, c))
    return kept(drawn, p, x.data.dtype).reshape(m, h, w, b * c).permute(0, 3, 1, 2)
