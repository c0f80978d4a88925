"""The batched-gradient oracle: one client's gradient outside vmap, every client's of a block in one pass inside it.

Each operation is opaque to torch.func: outside vmap it is plain autograd on the user's own module; under vmap its rule
sees stacked parameters [b, d] and stacked data [b, m, ...] and runs the *stacked* model (``engine.stacked``) with one
plain backward of the summed losses, which are independent across clients. Models without stacked kernels go through
``vmap(grad(functional_call))``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedsim.engine.stacked import StackedModel, stack
from fedsim.layout import Layout
from fedsim.losses import Loss
from fedsim.types import Batch

Kernel = Literal["stacked", "vmap", "loop"]


def _mean(per_example: Tensor, mask: Tensor | None) -> Tensor:
    """[..., m] -> [...]: mean over the unmasked examples."""
    if mask is None:
        return per_example.mean(-1)
    return (per_example * mask).sum(-1) / mask.sum(-1).clamp(min=1)


class ModelOracle:
    """Losses and gradients of one model on one device.

    Args:
        model: the module; the oracle owns it and uses its parameters as scratch space.
        loss: per-example loss.
        kernel: how blocks are computed under vmap; ``loop`` when they never are.
    """

    def __init__(self, model: nn.Module, loss: Loss, kernel: Kernel):
        self.model, self.loss, self.kernel = model, loss, kernel
        self.layout = Layout.of(model)
        self.parameters = list(model.parameters())
        self.stacked: StackedModel | None = stack(model, self.layout) if kernel == "stacked" else None

    def value(self, x: Tensor, batch: Batch) -> Tensor:
        """Mean loss at x [d], a scalar."""
        value: Tensor = _value(x, batch.x, batch.y, batch.mask, self)
        return value

    def grad(self, x: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Gradient [d] of the mean loss at x [d], and that loss."""
        g, loss = _grad(x, batch.x, batch.y, batch.mask, self)
        return g, loss

    def descend(self, x: Tensor, batch: Batch, lr: float) -> tuple[Tensor, Tensor]:
        """x - lr * gradient of the mean loss at x [d], and that loss."""
        y, loss = _descend(x, batch.x, batch.y, batch.mask, lr, self)
        return y, loss

    def example_grads(self, x: Tensor, batch: Batch) -> Tensor:
        """Gradient of each example's loss at x [d], [m, d]; zero rows for padding."""
        g: Tensor = _example_grads(x, batch.x, batch.y, self)
        return g if batch.mask is None else g * batch.mask[:, None]

    def features(self, x: Tensor, batch: Batch) -> Tensor:
        """Input of ``model.head`` at x [d], [m, f]."""
        features: Tensor = _features(x, batch.x, self)
        return features

    def at(self, x: Tensor) -> nn.Module:
        """The module with its parameters set to views of x [d]."""
        for p, view in zip(self.parameters, self.layout.views(x).values(), strict=True):
            p.data = view
        return self.model

    def outputs(self, x: Tensor, inputs: Tensor) -> Tensor:
        """Outputs of b clients' models: [b, d], [b, m, ...] -> [b, m, ...]."""
        return self._run(self.layout.views(x), inputs)

    def _run(self, parameters: dict[str, Tensor], inputs: Tensor) -> Tensor:
        if self.stacked is not None:
            return self.stacked(parameters, inputs)
        each = torch.func.vmap(lambda p, i: functional_call(self.model, p, (i,)))
        outputs: Tensor = each(parameters, inputs)
        return outputs

    def alone(
        self, x: Tensor, inputs: Tensor, y: Tensor, mask: Tensor | None, lr: float | None = None
    ) -> tuple[Tensor, Tensor]:
        """One client: gradient [d] (or with ``lr`` the new x) and loss, by plain autograd on the module itself."""
        model = self.at(x)
        with torch.enable_grad():
            loss = _mean(self.loss(model(inputs), y), mask)
            grads = torch.autograd.grad(loss, self.parameters, allow_unused=True, materialize_grads=True)
        return self._flat(x, grads, lr), loss.detach()

    def together(
        self, x: Tensor, inputs: Tensor, y: Tensor, mask: Tensor | None, lr: float | None = None
    ) -> tuple[Tensor, Tensor]:
        """b clients at once: x [b, d] -> gradients [b, d] (or with ``lr`` the new x) and losses [b].

        One backward of the summed losses, which are independent across clients.
        """
        with torch.enable_grad():
            leaves = {n: v.detach().requires_grad_() for n, v in self.layout.views(x).items()}
            loss = _mean(self.loss(self._run(leaves, inputs), y), mask)
            grads = torch.autograd.grad(loss.sum(), list(leaves.values()), allow_unused=True, materialize_grads=True)
        return self._flat(x, grads, lr), loss.detach()

    def _flat(self, x: Tensor, grads: Sequence[Tensor], lr: float | None) -> Tensor:
        """Gradients per parameter as one [..., d] tensor, or x - lr * gradient written in one pass."""
        if lr is None:
            return torch.cat([g.reshape(*x.shape[:-1], -1) for g in grads], dim=-1)
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        for old, new, g in zip(self.layout.views(x).values(), self.layout.views(out).values(), grads, strict=True):
            torch.sub(old, g, alpha=lr, out=new)
        return out


def _leads(b: int, in_dims: Sequence[int | None], *arguments: Any) -> list[Any]:
    """Bring the client dimension of vmapped arguments to the front; what all clients share is expanded to [b, ...]."""
    out = []
    for dim, t in zip(in_dims, arguments, strict=False):
        out.append(t if t is None else t.expand(b, *t.shape) if dim is None else t.movedim(dim, 0))
    return out


class _Op(torch.autograd.Function):
    """Common to the operations below: nothing is saved, nothing is differentiated through."""

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.mark_non_differentiable(*(output if isinstance(output, tuple) else (output,)))


class _Grad(_Op):
    @staticmethod
    def forward(x: Tensor, inputs: Tensor, y: Tensor, mask: Tensor | None, oracle: ModelOracle) -> Any:
        return oracle.alone(x, inputs, y, mask)

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Any, inputs: Any, y: Any, mask: Any, oracle: ModelOracle) -> Any:
        x, inputs, y, mask = _leads(info.batch_size, in_dims, x, inputs, y, mask)
        return oracle.together(x, inputs, y, mask), (0, 0)


class _Descend(_Op):
    @staticmethod
    def forward(x: Tensor, inputs: Tensor, y: Tensor, mask: Tensor | None, lr: float, oracle: ModelOracle) -> Any:
        return oracle.alone(x, inputs, y, mask, lr)

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Any, inputs: Any, y: Any, mask: Any, lr: float, oracle: ModelOracle) -> Any:
        x, inputs, y, mask = _leads(info.batch_size, in_dims, x, inputs, y, mask)
        return oracle.together(x, inputs, y, mask, lr), (0, 0)


class _Value(_Op):
    @staticmethod
    def forward(x: Tensor, inputs: Tensor, y: Tensor, mask: Tensor | None, oracle: ModelOracle) -> Any:
        return _mean(oracle.loss(oracle.at(x)(inputs), y), mask)

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Any, inputs: Any, y: Any, mask: Any, oracle: ModelOracle) -> Any:
        x, inputs, y, mask = _leads(info.batch_size, in_dims, x, inputs, y, mask)
        return _mean(oracle.loss(oracle.outputs(x, inputs), y), mask), 0


class _ExampleGrads(_Op):
    """Every example as a client of its own: m (or b times m) clients with one example each."""

    @staticmethod
    def forward(x: Tensor, inputs: Tensor, y: Tensor, oracle: ModelOracle) -> Tensor:
        if oracle.kernel == "loop":
            return torch.stack([oracle.alone(x, i[None], t[None], None)[0] for i, t in zip(inputs, y, strict=True)])
        return oracle.together(x.expand(len(inputs), -1), inputs[:, None], y[:, None], None)[0]

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Any, inputs: Any, y: Any, oracle: ModelOracle) -> Any:
        x, inputs, y = _leads(info.batch_size, in_dims, x, inputs, y)
        b, m = y.shape[:2]
        one_each = x[:, None].expand(b, m, -1).reshape(b * m, -1)
        g = oracle.together(one_each, inputs.flatten(0, 1)[:, None], y.flatten(0, 1)[:, None], None)[0]
        return g.view(b, m, -1), 0


class _Features(_Op):
    @staticmethod
    def forward(x: Tensor, inputs: Tensor, oracle: ModelOracle) -> Tensor:
        body = oracle.at(x).get_submodule("body")
        return torch.as_tensor(body(inputs))

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Any, inputs: Any, oracle: ModelOracle) -> Any:
        x, inputs = _leads(info.batch_size, in_dims, x, inputs)
        parameters = oracle.layout.views(x)
        if oracle.stacked is not None:
            return oracle.stacked.features(parameters, inputs), 0
        body = oracle.model.get_submodule("body")
        mine = {n.removeprefix("body."): v for n, v in parameters.items() if n.startswith("body.")}
        return torch.func.vmap(lambda p, i: functional_call(body, p, (i,)))(mine, inputs), 0


_grad: Callable[..., Any] = _Grad.apply
_descend: Callable[..., Any] = _Descend.apply
_value: Callable[..., Any] = _Value.apply
_example_grads: Callable[..., Any] = _ExampleGrads.apply
_features: Callable[..., Any] = _Features.apply
