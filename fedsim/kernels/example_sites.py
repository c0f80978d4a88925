"""Gradients by example of one layer's parameters, from what entered the layer and the derivative by what left it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedsim.ground.frozen_norm import FrozenNorm
from fedsim.kernels.example_pieces import Outer, OuterDifference, Piece, SharedWeight, TableRows, Whole
from fedsim.kernels.stacked_ops import Unstackable


class Site(NamedTuple):
    """A step that uses parameters, and where these lie in the flat vector."""

    kind: Any  # a type of layers, "recurrence" or "prelude"
    module: Any  # the layer, where it is one
    weight: str | None  # name in the layout, or None where it is frozen
    biases: tuple[str, ...]
    first: bool  # what enters it comes from the examples alone, whatever the model


NORMS = (nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, FrozenNorm)
SITES = (nn.Linear, nn.Conv2d, nn.Conv1d, nn.Embedding, *NORMS)
"""Layers whose gradients by example have a form here."""

_ANYWHERE = (nn.Linear, nn.LayerNorm, nn.RMSNorm, nn.Embedding)
"""Layers whose examples may lie along any dimension; of others they lie along the first."""


def known(module: nn.Module) -> bool:
    """Whether a layer's gradients by example have a form here."""
    if isinstance(module, (nn.Conv2d, nn.Conv1d)):
        return type(module) in SITES and module.groups == 1 and not isinstance(module.padding, str)
    return type(module) in SITES


def examples_first(site: Site, value: Tensor, dim: int) -> Tensor:
    """[b, ...] with the examples, which lie along ``dim`` of each client's value, along the first."""
    if dim and site.kind not in _ANYWHERE:
        raise Unstackable("the examples lie along another dimension than the first")
    return value.movedim(dim + 1, 1)


def layer_pieces(site: Site, a: Tensor, delta: Tensor, half: int | None) -> dict[str, Piece]:
    """Gradients by example of one layer's parameters.

    Args:
        site: the layer.
        a: what entered it, [b, m, ...].
        delta: the loss's derivative by what left it, [b, m, ...].
        half: lanes from here on are those of the other model.
    """
    module = site.module
    found: dict[str, Piece] = {}
    if site.kind is nn.Embedding and site.weight is not None:
        rows = delta if half is None else delta[:half] - delta[half:]
        tokens = a if half is None else a[:half]
        return {site.weight: TableRows(tokens.flatten(2), rows.flatten(2, -2), module.num_embeddings)}
    if site.kind in NORMS:
        positions = _positions(module, delta)
        if site.weight is not None:
            scaled = _normalised(module, a) * delta
            found[site.weight] = formed(scaled.sum(positions) if positions else scaled, half)
        shifts = delta.sum(positions) if positions else delta
    else:
        rows = _rows(site, delta)
        if site.weight is not None:
            found[site.weight] = weight_piece(site, a, rows, half)
        shifts = rows.sum(2) if rows.shape[2] > 1 else rows.squeeze(2)
    return found | {bias: formed(shifts, half) for bias in site.biases}


def formed(g: Tensor, half: int | None) -> Whole:
    """Gradients by example that exist, [b, m, ...]."""
    flat = g.flatten(2)
    return Whole(flat if half is None else flat[:half] - flat[half:])


def weight_piece(site: Site, a: Tensor, rows: Tensor, half: int | None) -> Piece:
    """Gradients of a weight whose layer gave rows [b, m, t, o]."""
    columns = _columns(site)
    models: list[tuple[Tensor, Tensor]] = [(a, rows)]
    if half is not None:
        models = [(a[:half], rows[:half]), (a[half:], rows[half:])]
        if site.first:  # the same input at both models: delta a^T - delta' a^T is one product
            models = [(a[:half], rows[:half] - rows[half:])]
    if rows.shape[2] > 1:
        entered, deltas = zip(*models, strict=True)
        features = a.shape[-1] if site.module is None else site.module.weight[0].numel()
        return SharedWeight(columns, entered, deltas, features)
    once = [Outer(columns(a).squeeze(2), delta.squeeze(2)) for a, delta in models]
    return once[0] if len(once) == 1 else OuterDifference(*once)


def _columns(site: Site) -> Callable[[Tensor], Tensor]:
    """[b, k, ...] what entered a layer -> [b, k, t, f] at each position."""
    module = site.module
    if site.kind not in (nn.Conv2d, nn.Conv1d):
        return lambda a: a.flatten(2, -2) if a.dim() > 3 else a.unsqueeze(2)
    flat = site.kind is nn.Conv1d  # an image of one row
    before = (0,) if flat else ()
    size, dilation, padding, stride = (
        ((1,) if flat and name != "padding" else before) + tuple(int(v) for v in getattr(module, name))
        for name in ("kernel_size", "dilation", "padding", "stride")
    )

    def patches(a: Tensor) -> Tensor:
        images = a.flatten(0, 1)
        taken = F.unfold(images.unsqueeze(2) if flat else images, size, dilation, padding, stride)
        return taken.transpose(1, 2).reshape(*a.shape[:2], -1, taken.shape[1])

    return patches


def _rows(site: Site, delta: Tensor) -> Tensor:
    """[b, m, ...] derivatives -> [b, m, t, o]."""
    if site.kind in (nn.Conv2d, nn.Conv1d):
        return delta.flatten(3).transpose(2, 3)
    return delta.flatten(2, -2) if delta.dim() > 3 else delta.unsqueeze(2)


def _normalised(module: Any, a: Tensor) -> Tensor:
    """The normalised input of a normalising layer, which its scale multiplies: [b, m, ...] like ``a``."""
    if isinstance(module, nn.GroupNorm):
        return F.group_norm(a.flatten(0, 1), module.num_groups, eps=module.eps).view_as(a)
    if isinstance(module, FrozenNorm):
        mean, variance = (module.get_buffer(name) for name in ("running_mean", "running_var"))
        return F.batch_norm(a.flatten(0, 1), mean, variance, eps=module.eps).view_as(a)
    if isinstance(module, nn.RMSNorm):
        return F.rms_norm(a, module.normalized_shape, eps=module.eps)
    return F.layer_norm(a, module.normalized_shape, eps=module.eps)


def _positions(module: Any, delta: Tensor) -> tuple[int, ...]:
    """Dimensions of delta that share a scale."""
    if isinstance(module, (nn.GroupNorm, FrozenNorm)):
        return tuple(range(3, delta.dim()))
    return tuple(range(2, delta.dim() - len(module.normalized_shape)))


def of_state(kind: str, gates: Tensor, before: Tensor, weight: Tensor, bias: Tensor | None, delta: Tensor) -> Tensor:
    """Derivatives by what a recurrence's weight of the state gives, from those by the gates of the inputs.

    Args:
        kind: of the cell.
        gates: [b, t, m, g h] what the inputs give.
        before: [b, t, m, h] the state before each step.
        weight: [b, g h, h] of the state.
        bias: [b, g h] of the state, or None.
        delta: [b, t, m, g h] the loss's derivative by ``gates``.
    """
    if kind != "GRU":
        return delta
    # A GRU multiplies what the state gives for the new value by the reset gate, which is the same for all steps
    # once the states are known.
    h = before.shape[-1]
    given = torch.matmul(before, weight[:, None, :h].transpose(2, 3))
    reset = torch.sigmoid(gates[..., :h] + (given if bias is None else given + bias[:, None, None, :h]))
    return torch.cat([delta[..., : 2 * h], delta[..., 2 * h :] * reset], -1)
