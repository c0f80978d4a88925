"""Sums of clipped gradients by example without those gradients, for models whose layers are known one by one.

A layer's gradient for one example is a product of what entered the layer and of the loss's derivative by what left it.
Both come from one forward and one backward pass for all examples, and from both follow the norms and the weighted sum:
"ghost clipping", Li, Tramer, Liang, Hashimoto, "Large Language Models Can Be Strong Differentially Private Learners",
ICLR 2022, arXiv 2110.05679, section 4. Deviations: the weighted sum is one product per layer from the same pass, not a
second backward; where a weight is used at many positions (convolutions, sequences) the gradients of that layer alone
are formed, a few examples at a time; and differences of gradients at two models have norms too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fedsim.data.losses import Loss
from fedsim.ground.layout import Layout
from fedsim.kernels.example_pieces import Outer, OuterDifference, Piece, SharedWeight, Whole
from fedsim.kernels.precision import raised
from fedsim.kernels.stacked import StackedModel
from fedsim.kernels.stacked_ops import Act, Params, Unstackable, plain, with_keys


class Site(NamedTuple):
    """A layer with trained parameters, and where these lie in the flat vector."""

    module: nn.Module
    weight: str | None  # name in the layout, or None where it is frozen
    bias: str | None
    first: bool  # what enters it comes from the examples alone, whatever the model


class ExampleSums:
    """Computes sums of the clipped gradients by example of one model, layer by layer.

    Args:
        stacked: the model.
        model: the same, for its layers.
        layout: of its parameters.
        loss: per-example loss.

    Raises:
        Unstackable: names the layer or call whose gradients by example have no form here.
    """

    def __init__(self, stacked: StackedModel, model: nn.Module, layout: Layout, loss: Loss):
        self.stacked, self.layout, self.loss = stacked, layout, loss
        names = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
        self.sites: dict[str, Site] = {}
        taken: set[str] = set()
        data = {stacked.source}  # values that no parameter has changed
        for step in stacked.steps:
            fed = [value.name for value in step.args if isinstance(value, fx.Node)]
            first = all(name in data for name in fed)
            module: Any = None if step.path is None else model.get_submodule(step.path)
            mine = [] if module is None else [names[id(p)] for p in module.parameters() if id(p) in names]
            if step.path is None or not mine:
                if step.trained:  # a parameter that forward uses by itself
                    raise Unstackable(f"{step.label} has no gradients by example")
                data |= {step.target} if first else set()
                continue
            if not _known(module):
                raise Unstackable(f"{step.label} has no gradients by example")
            # A weight that is used twice has the sum of two gradients; its norm is not that of either use.
            if step.path in self.sites or not taken.isdisjoint(mine):
                raise Unstackable(f"{step.label} is used twice")
            taken.update(mine)
            weight, bias = names.get(id(module.weight)), names.get(id(module.bias))
            self.sites[step.path] = Site(module, weight, bias, first)

    def __call__(
        self,
        x: Tensor,
        inputs: Tensor,
        y: Tensor,
        mask: Tensor | None,
        keys: Tensor | None,
        bound: Tensor | float,
        less: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Each client's sum [b, d] of clipped gradients by example, and its examples' losses [b, m].

        Args:
            x: [b, d] the clients' models.
            inputs: [b, m, ...] their examples.
            y: [b, m, ...] the examples' targets.
            mask: [b, m] 1 for examples and 0 for padding, or None without padding.
            keys: [b, m] of the examples' dropout, or None.
            bound: the norm to which gradients are clipped, of all clients or [b].
            less: [b, d] models whose gradients are subtracted before clipping, or None.

        Raises:
            Unstackable: a layer sees other rows than one per example.
        """
        b = len(x)
        if less is not None:  # both models in one pass, as 2b clients: first those at x, then those at ``less``
            x, inputs, y = torch.cat([x, less]), torch.cat([inputs, inputs]), torch.cat([y, y])
            keys = None if keys is None else torch.cat([keys, keys])
        params = with_keys(self.layout.views(x), keys)
        found, losses = self._pieces(params, inputs, y, None if less is None else b)
        # The norm of a whole gradient needs every layer; only then are the weights known with which each layer is
        # summed.
        norms = sum((piece.norms2() for piece in found.values()), start=x.new_zeros(b, y.shape[1])).sqrt()
        weights = factors(norms, bound, mask)
        out = x.new_zeros(b, self.layout.d)
        for name, view in self.layout.views(out).items():
            if name in found:  # else forward does not use it
                view.copy_(found[name].total(weights).view_as(view))
        return out, losses[:b]

    def _pieces(self, params: Params, inputs: Tensor, y: Tensor, half: int | None) -> tuple[dict[str, Piece], Tensor]:
        """Gradients by example of every parameter; with ``half``, of the first lanes less those of the others.

        And every example's loss in every lane.
        """
        entered: list[Tensor] = []
        left: list[Act] = []
        sites: list[Site] = []
        m = y.shape[1]

        def watch(path: str, x: Act, out: Act) -> Act:
            if path not in self.sites:
                return out
            if x.shape[0] != m:
                raise Unstackable(f"the layer at {path} sees {x.shape[0]} rows for {m} examples")
            # Gradients by what left the layer are asked for, never by a parameter. Without a parameter that requires
            # them nothing would, so the first layer's result becomes a leaf.
            data = out.data if out.data.requires_grad else out.data.detach().requires_grad_()
            sites.append(self.sites[path])
            entered.append(raised(plain(x).detach(), self.stacked.lower))
            left.append(out._replace(data=data))
            return out._replace(data=data.clone())  # the next layer may write into it

        with torch.enable_grad():
            losses = self.loss(self.stacked.watched(params, inputs, watch), y)
            wanted = [out.data for out in left]
            deltas = torch.autograd.grad(losses.sum(), wanted, allow_unused=True, materialize_grads=True)
        found: dict[str, Piece] = {}
        for site, a, out, delta in zip(sites, entered, left, deltas, strict=True):
            found |= _pieces(site, a, raised(plain(out._replace(data=delta)), self.stacked.lower), half)
        return found, losses.detach()


def factors(norms: Tensor, bound: Tensor | float, mask: Tensor | None) -> Tensor:
    """Factors [..., m] that clip gradients: min(1, bound / norm) of norms [..., m] and a bound [...], 0 for padding."""
    if isinstance(bound, Tensor):
        bound = bound.unsqueeze(-1)
    each = (bound / norms.clamp(min=torch.finfo(norms.dtype).tiny)).clamp(max=1.0)
    return each if mask is None else each * mask


def _known(module: nn.Module) -> bool:
    if isinstance(module, nn.Conv2d):
        return module.groups == 1 and not isinstance(module.padding, str)
    return isinstance(module, (nn.Linear, nn.GroupNorm, nn.LayerNorm))


def _pieces(site: Site, a: Tensor, delta: Tensor, half: int | None) -> dict[str, Piece]:
    """Gradients by example of one layer's parameters.

    Args:
        site: the layer.
        a: what entered it, [b, m, ...].
        delta: the loss's derivative by what left it, [b, m, ...].
        half: lanes from here on are those of the other model.
    """
    module: Any = site.module
    found: dict[str, Piece] = {}
    if isinstance(module, (nn.GroupNorm, nn.LayerNorm)):
        positions = _positions(module, delta)
        if site.weight is not None:
            scaled = _normalised(module, a) * delta
            found[site.weight] = _whole(scaled.sum(positions) if positions else scaled, half)
        shifts = delta.sum(positions) if positions else delta
    else:
        rows = _rows(module, delta)
        if site.weight is not None:
            found[site.weight] = _weight(site, a, rows, half)
        shifts = rows.sum(2) if rows.shape[2] > 1 else rows.squeeze(2)
    if site.bias is not None:
        found[site.bias] = _whole(shifts, half)
    return found


def _whole(g: Tensor, half: int | None) -> Whole:
    flat = g.flatten(2)
    return Whole(flat if half is None else flat[:half] - flat[half:])


def _weight(site: Site, a: Tensor, rows: Tensor, half: int | None) -> Piece:
    """Gradients of a weight whose layer gave rows [b, m, t, o]."""
    module: Any = site.module
    columns, features = _columns(module), module.weight[0].numel()
    models: list[tuple[Tensor, Tensor]] = [(a, rows)]
    if half is not None:
        models = [(a[:half], rows[:half]), (a[half:], rows[half:])]
        if site.first:  # the same input at both models: delta a^T - delta' a^T is one product
            models = [(a[:half], rows[:half] - rows[half:])]
    if rows.shape[2] > 1:
        entered, deltas = zip(*models, strict=True)
        return SharedWeight(columns, entered, deltas, features)
    once = [Outer(columns(a).squeeze(2), delta.squeeze(2)) for a, delta in models]
    return once[0] if len(once) == 1 else OuterDifference(*once)


def _columns(module: nn.Linear | nn.Conv2d) -> Callable[[Tensor], Tensor]:
    """[b, k, ...] what entered a layer -> [b, k, t, f] at each position."""
    if isinstance(module, nn.Linear):
        return lambda a: a.flatten(2, -2) if a.dim() > 3 else a.unsqueeze(2)

    def patches(a: Tensor) -> Tensor:
        taken = F.unfold(a.flatten(0, 1), module.kernel_size, module.dilation, _pair(module.padding), module.stride)
        return taken.transpose(1, 2).reshape(*a.shape[:2], -1, taken.shape[1])

    return patches


def _rows(module: nn.Linear | nn.Conv2d, delta: Tensor) -> Tensor:
    """[b, m, ...] derivatives -> [b, m, t, o]."""
    if isinstance(module, nn.Conv2d):
        return delta.flatten(3).transpose(2, 3)
    return delta.flatten(2, -2) if delta.dim() > 3 else delta.unsqueeze(2)


def _pair(padding: Any) -> tuple[int, int]:
    return int(padding[0]), int(padding[1])


def _normalised(module: nn.GroupNorm | nn.LayerNorm, a: Tensor) -> Tensor:
    """The normalised input of a normalising layer, which its scale multiplies: [b, m, ...] like ``a``."""
    if isinstance(module, nn.GroupNorm):
        return F.group_norm(a.flatten(0, 1), module.num_groups, eps=module.eps).view_as(a)
    return F.layer_norm(a, module.normalized_shape, eps=module.eps)


def _positions(module: nn.GroupNorm | nn.LayerNorm, delta: Tensor) -> tuple[int, ...]:
    """Dimensions of delta that share a scale."""
    if isinstance(module, nn.GroupNorm):
        return tuple(range(3, delta.dim()))
    return tuple(range(2, delta.dim() - len(module.normalized_shape)))
