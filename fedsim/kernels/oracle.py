"""Losses and gradients of a model: of one client outside vmap, of all clients of a block in one pass inside it.

Each operation is opaque to vmap (``ground.opaque``): outside it is plain autograd on the user's own module; inside it
sees stacked parameters [b, d] and stacked data [b, m, ...] and runs the *stacked* model (``kernels.stacked``) with one
plain backward of the summed losses, which are independent across clients. Models without stacked kernels go through
``vmap(functional_call)``.

That these are the gradients of the module itself is checked before a run starts, by ``assembly.agreement``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedsim.data.losses import Loss, Term, next_token
from fedsim.errors import InputError
from fedsim.ground.buffers import Buffers
from fedsim.ground.layout import Layout, aligned, trained
from fedsim.ground.opaque import opaque
from fedsim.kernels.channels_last import ChannelsLast
from fedsim.kernels.example_pieces import NUMBERS
from fedsim.kernels.example_sums import ExampleSums, factors
from fedsim.kernels.kernel import ALONE, Kernel
from fedsim.kernels.precision import in_lower
from fedsim.kernels.replaying import Replay, Replays, form_of
from fedsim.kernels.stacked import StackedModel, Unstackable, stack
from fedsim.kernels.stacked_ops import with_keys
from fedsim.kernels.tuning import Tuning
from fedsim.models import twin
from fedsim.models.dropout import Masks, draws
from fedsim.models.mask_dims import mask_dims
from fedsim.types import Batch

LANES = 4
"""Clients that evaluation pretends to have."""

STEPS = 32
"""Which gradient of minibatches of one shape is recorded: a recording costs as much as some dozens of them gain."""


def _of_steps() -> Replay:
    return Replay(STEPS)


def _as(given: Sequence[Tensor | None], some: Sequence[Tensor]) -> list[Any]:
    """Other tensors in the places where there is one."""
    left = iter(some)
    return [None if t is None else next(left) for t in given]


def _mean(per_example: Tensor, mask: Tensor | None) -> Tensor:
    """[..., m] -> [...]: mean over the unmasked examples."""
    if mask is None:
        return per_example.mean(-1)
    return (per_example * mask).sum(-1) / mask.sum(-1).clamp(min=1)


def _stacked(found: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    first, second = zip(*found, strict=True)
    return torch.stack(first), torch.stack(second)


def answer(model: nn.Module, run: Callable[[Tensor], Any], inputs: Tensor) -> tuple[Tensor, Tensor | None]:
    """Outputs ``run(inputs)`` of a model, and its features: what entered its layer ``head``.

    The features are None where the model has no such layer, or calls it more or less often than once.
    """
    seen: list[Tensor] = []
    head = getattr(model, "head", None)
    if not isinstance(head, nn.Module):
        return run(inputs), None
    with head.register_forward_pre_hook(lambda _, received: seen.extend(received[:1])):
        outputs = run(inputs)
    return outputs, seen[0].to(outputs.dtype) if len(seen) == 1 else None


def _dense(grads: Sequence[Tensor]) -> list[Tensor]:
    """Gradients as ordinary tensors; those of ``nn.Embedding(sparse=True)`` are sparse, and do not concatenate."""
    return [g.to_dense() if g.is_sparse else g for g in grads]


class ModelOracle:
    """Losses and gradients of one model on one device.

    Args:
        model: the module; the oracle owns it and uses its parameters as scratch space.
        loss: per-example loss.
        kernel: how blocks are computed under vmap; ``loop`` and ``loop_last`` when they never are.
        training: whether the module is in training mode, else in evaluation mode; for good, since a trace knows one
            mode only.
        by_layer: whether clipped sums may be computed layer by layer, where the layers allow it.
        lower: in which dtype the model computes, if not in that of its parameters.
        written: names of the buffers that forward writes in training mode; such a model is computed one client at a
            time. Every pass begins with ``held``, and what it leaves is forgotten unless ``keep`` follows.
        wide: as of ``kernels.tuning.Tuning``, for ``stacked``.
        recorded: whether ``stacked`` gradients may be recorded and replayed: the loss is a function of what it gets.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        kernel: Kernel,
        *,
        training: bool = True,
        by_layer: bool = True,
        lower: torch.dtype | None = None,
        written: Sequence[str] = (),
        wide: int = Tuning.wide,
        recorded: bool = False,
    ):
        model.train(training)
        self.model, self.loss, self.by_layer, self.wide = model, loss, by_layer, wide
        self.kernel: Kernel = "loop" if kernel in ALONE else kernel
        self.images_last = kernel == "loop_last"
        self.layout = Layout.of(model)
        self.parameters = trained(model)
        self.draws = training and draws(model)
        self.replays = recorded and kernel == "stacked"
        self._replays = Replays()
        self._dims: dict[tuple[int, ...], tuple[int, ...]] = {}
        self.buffers = Buffers.of(model, written) if written else None
        self.held = self._left()  # [q] the written buffers of whoever is computed
        # Of a twin: what tracing leaves in a module must not be found in the one that computes.
        self.stacked: StackedModel | None = stack(twin(model), self.layout, wide) if kernel == "stacked" else None
        if lower is not None:
            self.stacked = None if self.stacked is None else replace(self.stacked, lower=lower)
            model.forward = in_lower(model.forward, self.parameters[0].device, lower)

    @cached_property
    def example_sums(self) -> ExampleSums | None:
        """Sums of clipped gradients layer by layer, or None where these are not to be had."""
        if not self.by_layer or (self.stacked is None and "forward" in vars(self.model)):  # of in_lower: no trace
            return None
        try:
            stacked = self.stacked if self.stacked is not None else stack(twin(self.model), self.layout, self.wide)
            return ExampleSums(stacked, self.model, self.layout, self.loss)
        except Unstackable:
            return None

    @torch.no_grad()  # and so that a forward that switches gradients on leaves no mark
    def value(self, x: Tensor, batch: Batch) -> Tensor:
        """Mean loss at x [d], a scalar."""
        value: Tensor = opaque(self._value, self._values, x, *batch)
        return value

    def grad(self, x: Tensor, batch: Batch, term: Term | None = None, *extras: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient [d] of the mean loss (with ``term``, of their sum) at x [d], and the mean loss without the term."""
        g, loss = opaque(self._alone, self._together, x, *batch, None, term, *extras)
        return g, loss

    def descend(self, x: Tensor, batch: Batch, lr: float) -> tuple[Tensor, Tensor]:
        """x - lr * gradient of the mean loss at x [d], and that loss."""
        y, loss = opaque(self._alone, self._together, x, *batch, lr)
        return y, loss

    def example_grads(self, x: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Gradient of each example's loss at x [d], [m, d], zero rows for padding; and the mean loss."""
        g, losses = opaque(self._by_example, self._by_example_of_many, x, batch.x, batch.y, batch.keys)
        return g if batch.mask is None else g * batch.mask[:, None], _mean(losses, batch.mask)

    def clipped_sum(self, x: Tensor, batch: Batch, bound: Tensor | float, less: Tensor | None) -> tuple[Tensor, Tensor]:
        """Sum of clipped gradients [d], see ``fedsim.objective.Objective.clipped_sum``, and the mean loss at x."""
        total, loss = opaque(self._clipped, self._clipped_of_many, x, *batch, bound, less)
        return total, loss

    @torch.no_grad()
    def outputs(self, x: Tensor, batch: Batch) -> Tensor:
        """Outputs of the model at x [d], [m, k]."""
        outputs: Tensor = opaque(self._output, self._outputs, x, batch.x, batch.keys)
        return outputs

    @torch.no_grad()
    def features(self, x: Tensor, batch: Batch) -> Tensor:
        """Input of ``model.head`` at x [d], [m, f]; raises InputError where no such layer is called once."""
        features: Tensor = opaque(self._body, self._bodies, x, batch.x, batch.keys)
        return features

    def at(self, x: Tensor) -> nn.Module:
        """The module with its trained parameters set to views of x [d], and its written buffers to those held."""
        for p, view in zip(self.parameters, self.layout.views(x).values(), strict=True):
            p.data = view  # the module's own parameters: hooks, tied weights and custom layers work as written
        if self.buffers is not None:
            self.buffers.load(self.model, self.held)
        return self.model

    def whole(self, model: Tensor) -> Tensor:
        """x [d] of a model [d + q] with its written buffers behind it, which are held from now on."""
        if self.buffers is None or len(model) == self.layout.d:
            return model
        self.held = model[self.layout.d :]
        return aligned(model[: self.layout.d])

    def keep(self) -> None:
        """Hold what the last forward pass left in the buffers."""
        self.held = self._left()

    def _left(self) -> Tensor:
        dtype = self.parameters[0].dtype
        return torch.empty(0, dtype=dtype) if self.buffers is None else self.buffers.flatten(self.model, dtype)

    @torch.no_grad()
    def predict(self, x: Tensor, inputs: Tensor) -> Tensor:
        """Outputs of one model for many examples: [d], [rows, ...] -> [rows, ...].

        With stacked kernels the examples are dealt to ``LANES`` clients who share x: grouped kernels are up to 3.5
        times faster than the plain module (small CNN, CPU).
        """
        if self.stacked is None:
            with self.around(None, ()):
                return torch.as_tensor(self.at(x)(inputs))
        rows, m = len(inputs), -(-len(inputs) // LANES)
        # Every lane needs equally many examples. The last one again, not zeros: a valid input wherever that matters.
        padded = torch.cat([inputs, inputs[-1:].expand(m * LANES - rows, *inputs.shape[1:])])
        shared = self.layout.views(x.expand(LANES, -1))
        return self.stacked(shared, padded.view(LANES, m, *inputs.shape[1:])).flatten(0, 1)[:rows]

    def dims(self, inputs: Tensor) -> tuple[int, ...]:
        """Where the examples lie in what the module drops from inputs [m, ...]; found once for each shape of these."""
        shape = tuple(inputs.shape[1:])
        if self.draws and shape not in self._dims:
            self._dims[shape] = mask_dims(self.model, inputs)
        return self._dims.get(shape, ())

    def around(self, keys: Tensor | None, dims: Sequence[int]) -> AbstractContextManager[Any]:
        """Around a forward pass of the module: dropout by the keys of its examples, which lie there; channels last."""
        masks = Masks(keys, dims) if self.draws else nullcontext()
        return ChannelsLast(masks) if self.images_last else masks

    def _run(self, parameters: dict[str, Tensor], inputs: Tensor, keys: Tensor | None) -> Tensor:
        self._require_pure()
        places = self.dims(inputs[0])
        if self.stacked is not None:
            return self.stacked(with_keys(parameters, keys, places), inputs)

        def one(mine: dict[str, Tensor], i: Tensor, keys: Tensor | None) -> Any:
            with self.around(keys, places):
                return functional_call(self.model, mine, (i,))

        dims = (0, 0, 0 if self.draws else None)
        outputs: Tensor = torch.func.vmap(one, dims)(parameters, inputs, keys if self.draws else None)
        return outputs

    def _output(self, x: Tensor, inputs: Tensor, keys: Tensor | None) -> Tensor:
        model, places = self.at(x), self.dims(inputs)
        with self.around(keys, places):
            return torch.as_tensor(model(inputs))

    def _outputs(self, x: Tensor, inputs: Tensor, keys: Tensor | None) -> Tensor:
        return self._run(self.layout.views(x), inputs, keys)

    def _loss(
        self, outputs: Tensor, features: Tensor | None, y: Tensor, mask: Tensor | None, term: Term | None, extras: Any
    ) -> tuple[Tensor, Tensor]:
        """Means [...] over the unmasked examples: of what is minimised, the loss with the term, and of the loss."""
        each = self.loss(outputs, y)
        plain = _mean(each, mask)
        return (plain if term is None else _mean(each + term(outputs, features, y, *extras), mask)), plain.detach()

    def _alone(
        self,
        x: Tensor,
        inputs: Tensor,
        y: Tensor,
        mask: Tensor | None,
        keys: Tensor | None,
        lr: float | None = None,
        term: Term | None = None,
        *extras: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """One client: gradient [d] (or with ``lr`` the new x) and plain loss, by autograd on the module itself."""
        model, places = self.at(x), self.dims(inputs)
        with torch.enable_grad():
            with self.around(keys, places):
                outputs, features = (model(inputs), None) if term is None else answer(model, model, inputs)
            minimised, loss = self._loss(outputs, features, y, mask, term, extras)
            grads = torch.autograd.grad(minimised, self.parameters, allow_unused=True, materialize_grads=True)
        return self._flat(x, _dense(grads), lr), loss

    def _together(
        self,
        x: Tensor,
        inputs: Tensor,
        y: Tensor,
        mask: Tensor | None,
        keys: Tensor | None,
        lr: float | None = None,
        term: Term | None = None,
        *extras: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """b clients at once: x [b, d] -> gradients [b, d] (or with ``lr`` the new x) and plain losses [b]."""
        given = (x, inputs, y, mask, keys)
        if term is not None or not self.replays or x.device.type != "cpu" or torch.is_grad_enabled():
            grads, loss = self._gradients(*given, term, *extras)
            return self._flat(x, grads, lr), loss
        # The same operations at every step with minibatches of this shape, of whatever algorithm.
        there = tuple(t for t in given if t is not None)
        replay = self._replays.of(tuple(map(form_of, given)), _of_steps)
        grads, loss = replay(lambda *some: self._gradients(*_as(given, some)), *there)
        return self._flat(x, grads, lr), loss

    def _gradients(
        self,
        x: Tensor,
        inputs: Tensor,
        y: Tensor,
        mask: Tensor | None,
        keys: Tensor | None,
        term: Term | None = None,
        *extras: Tensor,
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """Gradients [b, *shape] of every parameter at x [b, d], and plain losses [b]."""
        with torch.enable_grad():
            leaves = {n: v.detach().requires_grad_() for n, v in self.layout.views(x).items()}
            mean = self._mean_of_places(leaves, inputs, y, mask, keys) if term is None else None
            if mean is not None:
                minimised, loss = mean, mean.detach()
            else:
                answers = self._answers if term is not None else self._outputs_only
                minimised, loss = self._loss(*answers(leaves, inputs, keys), y, mask, term, extras)
            # Client i's loss depends on row i of each leaf alone, so the gradient of the sum is each one's own
            # gradient.
            wanted = list(leaves.values())
            grads = torch.autograd.grad(minimised.sum(), wanted, allow_unused=True, materialize_grads=True)
        return grads, loss

    def _mean_of_places(
        self, parameters: dict[str, Tensor], inputs: Tensor, y: Tensor, mask: Tensor | None, keys: Tensor | None
    ) -> Tensor | None:
        """Mean losses [b] of models of sequences, the last layer and the loss in one; None where that cannot be."""
        if self.stacked is None or self.loss is not next_token:
            return None
        self._require_pure()
        return self.stacked.mean_loss(with_keys(parameters, keys), inputs, y, mask)

    def _outputs_only(
        self, parameters: dict[str, Tensor], inputs: Tensor, keys: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        return self._run(parameters, inputs, keys), None

    def _flat(self, x: Tensor, grads: Sequence[Tensor], lr: float | None) -> Tensor:
        """Gradients per parameter as one [..., d] tensor, or x - lr * gradient written in one pass."""
        if lr is None:
            # The same order as the layout's, so that the result is a vector like x.
            return torch.cat([g.reshape(*x.shape[:-1], -1) for g in grads], dim=-1)
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        for old, new, g in zip(self.layout.views(x).values(), self.layout.views(out).values(), grads, strict=True):
            torch.sub(old, g, alpha=lr, out=new)
        return out

    def _value(self, x: Tensor, inputs: Tensor, y: Tensor, mask: Tensor | None, keys: Tensor | None) -> Tensor:
        return _mean(self.loss(self._output(x, inputs, keys), y), mask)

    def _values(self, x: Tensor, inputs: Tensor, y: Tensor, mask: Tensor | None, keys: Tensor | None) -> Tensor:
        return _mean(self.loss(self._run(self.layout.views(x), inputs, keys), y), mask)

    def _by_example(self, x: Tensor, inputs: Tensor, y: Tensor, keys: Tensor | None) -> tuple[Tensor, Tensor]:
        """Every example as a client of its own: [d], [m, ...] -> gradients [m, d] and losses [m]."""
        if self.kernel == "loop":
            each = zip(inputs, y, _rows(keys, len(y)), strict=True)
            return _stacked([self._alone(x, i[None], t[None], None, k if k is None else k[None]) for i, t, k in each])
        one_each = None if keys is None else keys[:, None]
        return self._together(x.expand(len(inputs), -1), inputs[:, None], y[:, None], None, one_each)

    def _by_example_of_many(self, x: Tensor, inputs: Tensor, y: Tensor, keys: Tensor | None) -> tuple[Tensor, Tensor]:
        """[b, d], [b, m, ...] -> [b, m, d] and [b, m]: b times m clients with one example each."""
        if self.kernel == "loop":
            return _stacked([self._by_example(*one) for one in zip(x, inputs, y, _rows(keys, len(y)), strict=True)])
        b, m = y.shape[:2]
        one_each = x[:, None].expand(b, m, -1).reshape(b * m, -1)
        data, targets = inputs.flatten(0, 1)[:, None], y.flatten(0, 1)[:, None]
        g, losses = self._together(one_each, data, targets, None, None if keys is None else keys.reshape(-1, 1))
        return g.view(b, m, -1), losses.view(b, m)

    def _clipped(
        self,
        x: Tensor,
        inputs: Tensor,
        y: Tensor,
        mask: Tensor | None,
        keys: Tensor | None,
        bound: Tensor | float,
        less: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """The clipped sum [d] and mean loss of one client, as a block of one: there is one code for both."""
        bounds = bound[None] if isinstance(bound, Tensor) else bound
        masks, mine, others = (None if a is None else a[None] for a in (mask, keys, less))
        totals, losses = self._clipped_of_many(x[None], inputs[None], y[None], masks, mine, bounds, others)
        return totals[0], losses[0]

    def _clipped_of_many(
        self,
        x: Tensor,
        inputs: Tensor,
        y: Tensor,
        mask: Tensor | None,
        keys: Tensor | None,
        bound: Tensor | float,
        less: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """[b, d], [b, m, ...] -> [b, d], [b]: layer by layer where that is possible, else from gradients by example."""
        if self.example_sums is not None:
            try:
                sums, each = self.example_sums(x, inputs, y, mask, keys, self.dims(inputs[0]), bound, less)
                return sums, _mean(each, mask)
            except Unstackable:  # a layer sees rows that are not examples, which only a pass over real data shows
                pass
        m = y.shape[1]
        size = max(1, NUMBERS // x.numel())  # examples at a time: all their gradients at once would be m models
        total = torch.zeros(x.shape, dtype=x.dtype, device=x.device)
        losses = []
        for some in (slice(first, first + size) for first in range(0, m, size)):
            few = inputs[:, some], y[:, some], None if keys is None else keys[:, some]
            g, mine = self._by_example_of_many(x, *few)
            losses.append(mine)
            if less is not None:
                g = g - self._by_example_of_many(less, *few)[0]
            norms = torch.linalg.vector_norm(g, dim=2)
            weights = factors(norms, bound, None if mask is None else mask[:, some])
            total += torch.bmm(weights.unsqueeze(1), g).squeeze(1)
        return total, _mean(torch.cat(losses, 1), mask)

    def _answers(
        self, parameters: dict[str, Tensor], inputs: Tensor, keys: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Outputs and features of b clients."""
        self._require_pure()
        places = self.dims(inputs[0])
        if self.stacked is not None:
            return self.stacked.answers(with_keys(parameters, keys, places), inputs)

        def one(mine: dict[str, Tensor], i: Tensor, keys: Tensor | None) -> tuple[Tensor, ...]:
            with self.around(keys, places):
                outputs, features = answer(self.model, lambda i: functional_call(self.model, mine, (i,)), i)
            return (outputs,) if features is None else (outputs, features)

        dims = (0, 0, 0 if self.draws else None)
        outputs, *features = torch.func.vmap(one, dims)(parameters, inputs, keys if self.draws else None)
        return outputs, features[0] if features else None

    def _require_pure(self) -> None:
        if self.buffers is not None:  # whose would the buffers be?
            raise InputError(
                f"model {type(self.model).__name__} writes buffers in forward, which many models at once do not have"
            )

    def _body(self, x: Tensor, inputs: Tensor, keys: Tensor | None) -> Tensor:
        model, places = self.at(x), self.dims(inputs)
        with self.around(keys, places):
            return _there(answer(model, model, inputs)[1])

    def _bodies(self, x: Tensor, inputs: Tensor, keys: Tensor | None) -> Tensor:
        parameters = self.layout.views(x)
        if self.stacked is not None:
            return self.stacked.features(with_keys(parameters, keys, self.dims(inputs[0])), inputs)
        return _there(self._answers(parameters, inputs, keys)[1])


def _rows(keys: Tensor | None, count: int) -> Sequence[Any]:
    """The keys of each of these, or nothing for each."""
    return (None,) * count if keys is None else tuple(keys)


def _there(features: Tensor | None) -> Tensor:
    if features is None:
        raise InputError("model must have a submodule named head, called once, to give features; name it so")
    return features
