"""Sums of clipped gradients by example without those gradients, for models whose layers are known one by one.

A layer's gradient for one example is a product of what entered the layer and of the loss's derivative by what left it.
Both come from one forward and one backward pass for all examples, and from both follow the norms and the weighted sum:
"ghost clipping", Li, Tramer, Liang, Hashimoto, "Large Language Models Can Be Strong Differentially Private Learners",
ICLR 2022, arXiv 2110.05679, section 4. Deviations: the weighted sum is one product per layer from the same pass, not a
second backward; where a weight is used at many positions (convolutions, sequences) the gradients of that layer alone
are formed, a few examples at a time; and differences of gradients at two models have norms too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from fedsim.data.losses import Loss
from fedsim.ground.layout import Layout
from fedsim.kernels import example_sites as sites
from fedsim.kernels.example_pieces import NUMBERS, Piece
from fedsim.kernels.example_plan import planned
from fedsim.kernels.example_sites import Site
from fedsim.kernels.precision import raised
from fedsim.kernels.stacked import StackedModel, StackedStep
from fedsim.kernels.stacked_ops import DIMS, KEYS, Act, Params, Unstackable, plain, with_keys
from fedsim.kernels.stacked_recurrent import before_each
from fedsim.kernels.stacked_values import by_client


class _Seen(NamedTuple):
    """A site at work."""

    site: Site
    entered: Tensor  # [b, ...]
    left: Act | None  # a leaf; None: that of ``wanted``
    wanted: str  # the step whose leaf's derivative this site needs
    dim: int  # of a client's value, along which the examples lie
    more: tuple[Any, ...] = ()


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
        self.sites, self.preludes = planned(stacked, model, layout)
        self.dims: dict[tuple[int, ...], dict[str, int]] = {}

    def __call__(
        self,
        x: Tensor,
        inputs: Tensor,
        y: Tensor,
        mask: Tensor | None,
        keys: Tensor | None,
        places: Sequence[int],
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
            places: the examples' dimension of what is dropped, see ``fedsim.models.mask_dims``.
            bound: the norm to which gradients are clipped, of all clients or [b].
            less: [b, d] models whose gradients are subtracted before clipping, or None.

        Raises:
            Unstackable: a layer sees other rows than one per example.
        """
        b = len(x)
        if less is not None:  # both models in one pass, as 2b clients: first those at x, then those at ``less``
            x, inputs, y = torch.cat([x, less]), torch.cat([inputs, inputs]), torch.cat([y, y])
            keys = None if keys is None else torch.cat([keys, keys])
        params = with_keys(self.layout.views(x), keys, places)
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
        dims, seen, constants = self._dims(params, inputs), dict[str, _Seen](), dict[str, Any]()
        m = y.shape[1]

        def watch(step: StackedStep, params: Params, *args: Any, **kwargs: Any) -> Any:
            site = self.sites.get(step.target)
            if site is None:
                out = step.run(params, *args, **kwargs)
                if step.fixed:
                    constants[step.target] = out
                return out
            if site.kind == "prelude":
                return _spread(step, args, site, dims[step.target], m, seen)
            out = step.run(params, *args, **kwargs)
            if site.kind == "recurrence":
                if dims[step.target] != 1:
                    raise Unstackable("the examples lie along the steps")
                gates, weight, bias, kind, backwards, state, _ = args
                states = plain(out[0])
                first = states.new_zeros(states[:, 0].shape) if state is None else by_client(state, gates.b)
                before = before_each(states.flip(1) if backwards else states, first).detach()
                more = (kind, backwards, raised(plain(gates).detach(), self.stacked.lower), weight, bias)
                seen[step.target] = _Seen(site, before, None, step.reads[0], 1, more)
                return out
            # Gradients by what left the layer are asked for, never by a parameter. Without a parameter that requires
            # them nothing would, so the first layer's result becomes a leaf.
            data = out.data if out.data.requires_grad else out.data.detach().requires_grad_()
            left, entered = out._replace(data=data), plain(args[0]).detach()
            seen[step.target] = _Seen(site, entered, left, step.target, dims[step.target])
            return out._replace(data=data.clone())  # the next layer may write into it

        with torch.enable_grad():
            losses = self.loss(self.stacked.watched(params, inputs, watch), y)
            left = {name: one.left for name, one in seen.items() if one.left is not None}
            asked = [act.data for act in left.values()]
            grads = torch.autograd.grad(losses.sum(), asked, allow_unused=True, materialize_grads=True)
        deltas = {name: plain(act._replace(data=g)) for (name, act), g in zip(left.items(), grads, strict=True)}
        found: dict[str, Piece] = {}
        for name, one in seen.items():
            entered, delta = (raised(t, self.stacked.lower) for t in (one.entered, deltas[one.wanted]))
            if one.site.kind == "recurrence":
                found |= _of_recurrence(one._replace(entered=entered), delta, half)
            elif one.site.kind == "prelude":
                found |= self._of_prelude(name, one, delta, params, constants, half)
            else:
                a, left_by = (sites.examples_first(one.site, t, one.dim) for t in (entered, delta))
                found |= sites.layer_pieces(one.site, a, left_by, half)
        return found, losses.detach()

    def _dims(self, params: Params, inputs: Tensor) -> dict[str, int]:
        """Of every site, the dimension of what enters along which the examples lie: the one that grows with them."""
        shape = tuple(inputs.shape[2:])
        if shape not in self.dims:
            one = {name: p[:1].detach() for name, p in params.items() if name not in (KEYS, DIMS)}
            keys = params[KEYS][:1, :1] if KEYS in params else None  # of trial passes, whose masks play no part
            few, more = (
                self._shapes(
                    with_keys(one, None if keys is None else keys.expand(1, m)), inputs[:1, :1].expand(1, m, *shape)
                )
                for m in (2, 3)
            )
            found = {}
            for name, small in few.items():
                pairs = list(zip(small, more[name], strict=True)) if len(small) == len(more[name]) else []
                grows = [dim for dim, pair in enumerate(pairs) if pair[0] != pair[1]]
                if len(grows) != 1 or pairs[grows[0]] != (2, 3):
                    raise Unstackable(f"{name} sees rows that are not examples")
                found[name] = grows[0]
            self.dims[shape] = found
        return self.dims[shape]

    @torch.no_grad()
    def _shapes(self, params: Params, inputs: Tensor) -> dict[str, tuple[int, ...]]:
        """What enters every site, or is met by a prelude."""
        shapes: dict[str, tuple[int, ...]] = {}

        def watch(step: StackedStep, params: Params, *args: Any, **kwargs: Any) -> Any:
            out = step.run(params, *args, **kwargs)
            site = self.sites.get(step.target)
            if site is not None:
                shapes[step.target] = out.shape if site.kind == "prelude" else args[0].shape
            return out

        self.stacked.watched(params, inputs, watch)
        return shapes

    def _of_prelude(
        self,
        name: str,
        one: _Seen,
        delta: Tensor,
        params: Params,
        constants: dict[str, Any],
        half: int | None,
    ) -> dict[str, Piece]:
        """Of parameters that are changed before they meet the examples: each example has a copy of them."""
        delta = delta.movedim(one.dim + 1, 1)
        b, m = delta.shape[:2]
        if m * sum(params[own].numel() for own in one.site.biases) > NUMBERS:
            raise Unstackable(f"{name} has gradients by example of more than {NUMBERS:,} numbers")
        copies = {own: params[own].detach().repeat_interleave(m, 0).requires_grad_() for own in one.site.biases}
        values: dict[str, Any] = {}

        def value(node: fx.Node) -> Any:
            return values[node.name] if node.name in values else constants[node.name]

        with torch.enable_grad():
            for step in self.preludes[name]:
                args, kwargs = fx.map_arg(step.args, value), fx.map_arg(step.kwargs, value)
                values[step.target] = step.run(copies, *args, **kwargs)
            last = plain(values[self.preludes[name][-1].target])
            grads = torch.autograd.grad(last, list(copies.values()), delta.reshape(last.shape))
        return {own: sites.formed(g.reshape(b, m, -1), half) for own, g in zip(copies, grads, strict=True)}


def _spread(step: StackedStep, args: tuple[Any, ...], site: Site, dim: int, m: int, seen: dict[str, _Seen]) -> Any:
    """A sum or product with a value that all of a client's examples share, which each example now has for itself."""
    at = next(k for k, node in enumerate(step.args) if isinstance(node, fx.Node) and node.name == site.weight)
    shared, other = args[at], args[1 - at]
    dims = max(shared.dim, other.dim if isinstance(other, Act) else 0)
    own = plain(shared).detach().reshape(shared.b, *(1,) * (dims - shared.dim), *shared.shape)
    if own.shape[dim + 1] != 1:
        raise Unstackable("has a value for each example")
    sizes = list(own.shape)
    sizes[dim + 1] = m
    leaf = own.expand(sizes).clone().requires_grad_()
    seen[step.target] = _Seen(site, leaf, Act(leaf, shared.b), step.target, dim)
    mine = [Act(leaf, shared.b) if k == at else arg for k, arg in enumerate(args)]
    return step.run({}, *mine)


def _of_recurrence(one: _Seen, delta: Tensor, half: int | None) -> dict[str, Piece]:
    """Gradients by example of the weight of a recurrence's state."""
    kind, backwards, gates, weight, bias = one.more
    if backwards:
        gates, delta = gates.flip(1), delta.flip(1)
    w = by_client(weight, len(gates)).detach()
    shift = None if bias is None else by_client(bias, len(gates)).detach()
    rows = sites.of_state(kind, gates, one.entered, w, shift, delta).transpose(1, 2)
    found = {str(one.site.weight): sites.weight_piece(one.site, one.entered.transpose(1, 2), rows, half)}
    return found | {name: sites.formed(rows.sum(2), half) for name in one.site.biases}


def factors(norms: Tensor, bound: Tensor | float, mask: Tensor | None) -> Tensor:
    """Factors [..., m] that clip gradients: min(1, bound / norm) of norms [..., m] and a bound [...], 0 for padding."""
    bound = bound.unsqueeze(-1) if isinstance(bound, Tensor) else bound
    each = (bound / norms.clamp(min=torch.finfo(norms.dtype).tiny)).clamp(max=1.0)
    return each if mask is None else each * mask
