"""The end of a model of sequences, a linear layer and the cross-entropy of what it gives, one client after the other.

The outputs of one client stay in the cache, where they become probabilities and then gradients; those of a block, with
what autograd keeps of each, would go through memory seven times.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.autograd.function import once_differentiable

from fedsim.kernels.precision import written_out
from fedsim.kernels.stacked_ops import Names, Params, operand

LEAST = 10_000
"""Outputs of one example from which a client's own calls are cheaper than passes over the outputs of a block."""

_AT_ONCE = 400_000
"""Outputs at a time, which a cache holds."""


class Ending(NamedTuple):
    """A trained linear layer that makes the outputs of a model."""

    source: str  # name of the value that it is given
    outputs: int
    weight: str
    bias: Callable[[Params, int], Tensor] | None

    @staticmethod
    def of(result: fx.Node, modules: dict[str, nn.Module], names: Names) -> Ending | None:
        """Of a graph with this result; None where something else makes it."""
        layer = modules[str(result.target)] if result.op == "call_module" else None
        if type(layer) is not nn.Linear or id(layer.weight) not in names or len(result.args) != 1:
            return None
        bias = None if layer.bias is None else operand(layer.bias, names)
        source = result.args[0]
        if not isinstance(source, fx.Node):
            return None
        return Ending(source.name, layer.out_features, names[id(layer.weight)], bias)

    def takes(self, y: Tensor) -> bool:
        """Whether classes [b, m, t] are such that it is worth while: many to choose from, and all of them count."""
        if y.is_cuda or y.dim() != 3 or self.outputs < 2 or y.shape[2] * self.outputs < LEAST:
            return False
        return not bool((y < 0).any())

    def mean_loss(self, params: Params, x: Tensor, y: Tensor, mask: Tensor | None) -> Tensor:
        """Mean loss [b] over the unmasked examples and all places.

        Args:
            params: {name: [b, *shape]}.
            x: [b, m, t, f] what the layer is given.
            y: [b, m, t] the classes.
            mask: [b, m] or None.
        """
        b, m, t = y.shape
        each = y.new_ones(b, m, dtype=x.dtype) if mask is None else mask.to(x.dtype)
        share = (each / (each.sum(1, keepdim=True).clamp(min=1) * t)).unsqueeze(2).expand(b, m, t)
        bias = None if self.bias is None else self.bias(params, b)
        rows = x.reshape(b, m * t, -1)
        classes, shares = y.reshape(b, -1), share.reshape(b, -1)
        mean: Tensor = written_out(_MeanLoss, rows, params[self.weight], bias, classes, shares, lower=False)
        return mean


class _MeanLoss(torch.autograd.Function):
    """Sum over the rows of share times cross-entropy; gradients are found in the forward pass, while outputs exist."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, y: Tensor, share: Tensor) -> Tensor:
        """[b, n, f], [b, k, f], [b, k], [b, n], [b, n] -> [b]."""
        shifts = weight.new_zeros(weight.shape[:2]) if bias is None else bias
        found = [t.new_empty(t.shape) for t in (x, weight, shifts)]
        losses = [_of_client(*one) for one in zip(x, weight, shifts, y, share, *found, strict=True)]
        ctx.save_for_backward(*found[:2], None if bias is None else found[2])
        return torch.stack(losses)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients, as they are where the losses are added up."""
        found = ctx.saved_tensors
        if not bool((g == 1).all()):
            found = [t if t is None else t * g.view(-1, *(1,) * (t.dim() - 1)) for t in found]
        return (*(t if need else None for t, need in zip(found, ctx.needs_input_grad, strict=False)), None, None)


def _of_client(x: Tensor, weight: Tensor, bias: Tensor, y: Tensor, share: Tensor, *out: Tensor) -> Tensor:
    """The loss of one client; its gradients by x [n, f], weight [k, f] and bias [k] are written into ``out``."""
    at_x, at_weight, at_bias = out
    n, k, columns = len(x), len(weight), weight.t()
    buffer, total = x.new_empty(max(1, min(n, _AT_ONCE // k)), k), x.new_zeros(())
    for first in range(0, n, len(buffer)):
        rows = slice(first, min(first + len(buffer), n))
        inputs, classes, part = x[rows], y[rows].unsqueeze(1), share[rows]
        outputs = torch.addmm(bias, inputs, columns, out=buffer[: len(inputs)])
        torch.softmax(outputs, 1, out=outputs)
        chances = outputs.gather(1, classes)
        total += torch.dot(part, _losses(chances[:, 0], inputs, weight, bias, classes[:, 0]))
        outputs.scatter_(1, classes, chances - 1)  # the gradient by each row's outputs; what it counts comes below
        torch.mm(outputs, weight, out=at_x[rows]).mul_(part.unsqueeze(1))
        counted, gradients = inputs * part.unsqueeze(1), outputs.t()
        if first == 0:
            torch.mm(gradients, counted, out=at_weight)
            torch.mv(gradients, part, out=at_bias)
        else:
            at_weight.addmm_(gradients, counted)
            at_bias.addmv_(gradients, part)
    return total


def _losses(chances: Tensor, x: Tensor, weight: Tensor, bias: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy [n] by the probability of each row's class; by the outputs themselves where it vanishes."""
    losses = -chances.log()
    lost = chances < 1e-30
    if bool(lost.any()):
        losses[lost] = F.cross_entropy(F.linear(x[lost], weight, bias), y[lost], reduction="none")
    return losses
