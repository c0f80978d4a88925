"""Whether a kernel has the plain module's numbers, found out before a run starts, on the run's own model and samples.

Two clients with different models and minibatches, one of which has a repeated sample and the other padding; samples
hold token 0 where any does. What the run will ask of the kernel is compared with the module itself: one module per
client, in training mode, ``loss.backward()``, nothing of ``torch.func``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from fedsim.data.batches import Feed, Samples
from fedsim.data.losses import Loss
from fedsim.errors import InputError, first_line
from fedsim.ground import addresses
from fedsim.ground.layout import Layout, trained
from fedsim.ground.rng import stream
from fedsim.kernels.kernel import Kernel
from fedsim.kernels.oracle import ModelOracle, answer
from fedsim.kernels.tuning import Tuning
from fedsim.models import pure, twin
from fedsim.models.dropout import Masks, draws
from fedsim.models.mask_dims import mask_dims
from fedsim.types import Batch

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}
"""Relative to the largest entry: eps (6e-8, 1e-16) times the square root of the 1e5 numbers in a sum of a convolution's
gradient, times 5 for sums that cancel, and a margin for float64, which is the judge."""

KINK = 1e-2
"""In float32 one ReLU or max-pool that decides otherwise, within rounding of its kink, moves a gradient by up to this
much of its largest entry. What differs by less, and agrees in float64, is rounding."""


WORDS = {
    "value": "the loss",
    "grad": "the gradient",
    "descend": "the gradient of a step",
    "term": "the gradient with a term beside the loss",
    "example_grads": "the gradients by example",
    "clipped_sum": "the sum of clipped gradients",
    "outputs": "what the model gives",
    "features": "what enters the head",
    "prediction": "what the model predicts in evaluation mode",
}
"""What a kernel is asked, in words."""

Answers: TypeAlias = list[list[Tensor]]
"""Of each client: the numbers that answer a question."""


class Trial(NamedTuple):
    """Two clients at work."""

    x: Tensor  # [2, d]
    inputs: Tensor  # [2, m, ...]
    y: Tensor  # [2, m, ...]
    mask: Tensor  # [2, m]

    @property
    def keys(self) -> Tensor:
        """Keys [2, m] of the examples' dropout."""
        return torch.arange(self.mask.numel()).view_as(self.mask)

    def real(self, client: int) -> tuple[Tensor, Tensor]:
        """A client's inputs and targets without padding."""
        some = self.mask[client] > 0
        return self.inputs[client][some], self.y[client][some]

    def double(self) -> Trial:
        """In float64."""
        return Trial(*(t.double() if t.is_floating_point() else t for t in self))


def trial(train: Samples, x0: Tensor, seed: int) -> Trial:
    """Models near x0 [d], both ways and nowhere zero, and samples from the start, the middle and the end."""
    feed = Feed(train, torch.device("cpu"), x0.dtype)
    first, middle, last = 0, len(feed.x) // 2, len(feed.x) - 1
    if not feed.x.is_floating_point() and feed.scale is None:
        zeros = (feed.x == 0).flatten(1).any(1).nonzero().flatten()
        first, last = (int(zeros[0]), int(zeros[-1])) if len(zeros) else (first, last)
    rows = torch.tensor([[first, middle, first], [last, last, middle]])
    inputs, y = feed.take_many(rows, None)
    few = torch.rand(4099, generator=stream(seed, addresses.AGREEMENT), dtype=torch.float64).to(x0.dtype)
    few += torch.where(few > 0.5, 1, -1)  # far from 0; repeated, for a large model's own would cost more than its steps
    move = few.repeat(-(-len(x0) // len(few)))[: len(x0)]
    move.mul_(x0.abs().mul_(0.03).masked_fill_(x0 == 0, 0.01))
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]], dtype=x0.dtype)
    return Trial(torch.stack([x0 + move, x0 - move]), inputs, y, mask)


class Agreement:
    """The plain module's numbers, and what differs from them.

    Args:
        model: as built, in the run's dtype; it is copied, never run.
        loss: of each example.
        at: the two clients.
        written: buffers that forward writes, which are what they were at every question.
        wide: as of ``kernels.tuning.Tuning``.
    """

    def __init__(self, model: nn.Module, loss: Loss, at: Trial, written: Sequence[str] = (), wide: int = Tuning.wide):
        self.model, self.loss, self.at = model, loss, at
        self.written, self.wide = written, wide
        self.name, self.layout, self.draws = type(model).__name__, Layout.of(model), draws(model)
        self._bounds: dict[tuple[torch.dtype, int], float] = {}  # of gradients, and of their differences
        self._modules: dict[tuple[torch.dtype, int], nn.Module] = {}
        self._known: dict[tuple[torch.dtype, str], Answers] = {}

    def training(self, kernel: Kernel, questions: Iterable[str], *, by_layer: bool = True) -> str:
        """What differs in training mode, or "".

        Args:
            kernel: to be tried.
            questions: of ``fedsim.assembly.uses.QUESTIONS``.
            by_layer: as of ``ModelOracle``.

        Raises:
            InputError: the module itself fails, or does more than compute.
        """

        oracles: dict[torch.dtype, ModelOracle] = {}

        def ask(at: Trial, question: str) -> Answers:
            dtype = at.x.dtype
            if dtype not in oracles:
                model = twin(self.model).to(dtype)
                both: dict[str, Any] = {"written": self.written, "wide": self.wide}
                oracles[dtype] = ModelOracle(model, self.loss, kernel, by_layer=by_layer, **both)
            return self._asked(oracles[dtype], at, question)

        return next((found for q in sorted(questions) if (found := self._differs(ask, q))), "")

    def prediction(self, kernel: Kernel) -> str:
        """What differs in evaluation mode, or ""; raises InputError as ``training``."""

        def ask(at: Trial, question: str) -> Answers:
            mine = twin(self.model).to(at.x.dtype)
            oracle = ModelOracle(mine, self.loss, kernel, training=False, wide=self.wide)
            return [[oracle.predict(at.x[i], at.inputs[i, 1:])] for i in range(2)]

        return self._differs(ask, "prediction")

    def _differs(self, ask: Callable[[Trial, str], Answers], question: str) -> str:
        dtype = self.at.x.dtype
        want = self._plain(dtype, question)
        try:
            got = ask(self.at, question)
        except Exception as error:  # user code, fx and vmap raise many types
            return f"{WORDS[question]} fails: {first_line(error)}"
        found = self._gap(got, want, question, TOLERANCE[dtype])
        if not found or dtype == torch.float64 or self._gap(got, want, question, KINK):
            return found
        try:  # the judge: rounding that decides at kinks is absent in float64
            got, want = ask(self.at.double(), question), self._plain(torch.float64, question)
        except Exception:  # a model of float32 only
            return found
        return self._gap(got, want, question, TOLERANCE[torch.float64])

    def _plain(self, dtype: torch.dtype, question: str) -> Answers:
        """The module's own answers for each client, found once."""
        if (dtype, question) not in self._known:
            try:
                answers = [self._alone(dtype, question, client) for client in range(2)]
            except InputError:
                raise
            except Exception as error:  # user code: any type
                how = "in evaluation mode" if question == "prediction" else "in training mode"
                raise InputError(
                    f"model {self.name} fails on training samples {how}: {type(error).__name__}: {first_line(error)}"
                ) from error
            self._known[dtype, question] = answers
        return self._known[dtype, question]

    def _alone(self, dtype: torch.dtype, question: str, client: int) -> list[Tensor]:
        at = self.at if dtype == self.at.x.dtype else self.at.double()
        if (dtype, client) not in self._modules or self.written:
            self._modules[dtype, client] = twin(self.model).to(dtype)
        model = self._modules[dtype, client]
        model.train(question != "prediction")
        x, (inputs, y) = at.x[client], at.real(client)
        parameters = list(model.parameters())
        for p, view in zip(trained(model), self.layout.views(x).values(), strict=True):
            p.data, p.grad = view, None
        if question == "prediction":
            with torch.no_grad(), pure(model, at.inputs[client], self.name):
                return [model(at.inputs[client, 1:])]
        before = [(p.data_ptr(), float(p.detach().sum())) for p in parameters]
        with torch.enable_grad():
            if question in ("example_grads", "clipped_sum"):
                return self._by_example(model, x, inputs, y, at, client, question)
            keys = at.keys[client][at.mask[client] > 0]
            dims = self._dims(model, inputs)
            with pure(model, inputs, self.name, self.written), self._masks(keys, dims):
                outputs, features = answer(model, model, inputs)
            if before != [(p.data_ptr(), float(p.detach().sum())) for p in parameters]:
                raise InputError(f"model {self.name} changes its parameters in forward, which belong to the algorithm")
            if question in ("outputs", "features"):
                found = outputs if question == "outputs" else features
                return [] if found is None else [found.detach()]
            each = self.loss(outputs, y)
            loss = each.mean()
            if question == "value":
                return [loss.detach()]
            if question == "term":  # which is minimised beside the loss, and not reported with it
                each = each + _term(outputs, features, y, _weights(at, client)[: len(y)])
            torch.autograd.backward(each.mean())
        g = self._gradient(model)
        return [g, loss.detach()]

    def _dims(self, model: nn.Module, inputs: Tensor) -> tuple[int, ...]:
        return mask_dims(model, inputs) if self.draws else ()

    def _masks(self, keys: Tensor, dims: tuple[int, ...]) -> AbstractContextManager[Any]:
        return Masks(keys, dims) if self.draws else nullcontext()

    def _gradient(self, model: nn.Module) -> Tensor:
        each = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained(model)]
        return torch.cat([(g.to_dense() if g.is_sparse else g).reshape(-1) for g in each])

    def _by_example(
        self, model: nn.Module, x: Tensor, inputs: Tensor, y: Tensor, at: Trial, client: int, question: str
    ) -> list[Tensor]:
        """One example after the other: their gradients, or the sums of these clipped; and their mean loss."""
        keys, dims = at.keys[client][at.mask[client] > 0], self._dims(model, inputs)

        def gradients(x: Tensor) -> tuple[Tensor, Tensor]:
            for p, view in zip(trained(model), self.layout.views(x).values(), strict=True):
                p.data = view
            rows, losses = [], []
            for k in range(len(y)):
                model.zero_grad()
                with self._masks(keys[k : k + 1], dims):
                    outputs = model(inputs[k : k + 1])
                loss = self.loss(outputs, y[k : k + 1]).sum()
                torch.autograd.backward(loss)
                rows.append(self._gradient(model))
                losses.append(loss.detach())
            return torch.stack(rows), torch.stack(losses).mean()

        g, mean = gradients(x)
        if question == "example_grads":
            return [g, mean]
        found: list[Tensor] = []
        for number, rows in enumerate((g, g - gradients(at.x[1 - client])[0])):
            norms = rows.norm(dim=1, keepdim=True).clamp(min=torch.finfo(rows.dtype).tiny)
            bound = self._bounds.setdefault((at.x.dtype, number), float(norms.mean()))  # some of them are clipped
            found += [(rows * (bound / norms).clamp(max=1.0)).sum(0), mean]
        return found

    def _asked(self, oracle: ModelOracle, at: Trial, question: str) -> Answers:
        """The oracle's answers for each client, padding left out."""

        known = self._plain(at.x.dtype, question)
        lr = 1.0
        if question == "descend":  # a step as large as x, so that rounding hides no more of it than of x
            lr = largest(at.x) / max(largest(known[0][0]), 1e-30)

        def one(
            x: Tensor, inputs: Tensor, y: Tensor, mask: Tensor | None, keys: Tensor, weights: Tensor, other: Tensor
        ) -> Any:
            batch = Batch(inputs, y, mask, keys)
            if question == "descend":
                return oracle.descend(x, batch, lr)
            if question == "term":
                return oracle.grad(x, batch, _term, weights)
            if question == "clipped_sum":
                bounds = [self._bounds[at.x.dtype, k] for k in range(2)]
                pairs = zip(bounds, (None, other), strict=True)
                return tuple(part for bound, less in pairs for part in oracle.clipped_sum(x, batch, bound, less))
            found = getattr(oracle, question)(x, batch)
            return found if isinstance(found, tuple) else (found,)

        weights = torch.stack([_weights(at, client) for client in range(2)])
        if question == "features" and not known[0]:
            return [[], []]  # there are none; whoever asks for them is told so
        with torch.no_grad():
            if oracle.kernel == "loop":
                real = [(*at.real(client), None, at.keys[client][at.mask[client] > 0]) for client in range(2)]
                got = [list(one(at.x[i], *real[i], weights[i][: len(real[i][1])], at.x[1 - i])) for i in range(2)]
            else:
                both = torch.func.vmap(one)(at.x, at.inputs, at.y, at.mask, at.keys, weights, at.x.flip(0))
                by_example = question in ("outputs", "features", "example_grads")
                got = [[p[i][at.mask[i] > 0] if by_example and p.dim() > 1 else p[i] for p in both] for i in range(2)]
            if question == "descend":  # compare what was subtracted
                for client, found in enumerate(got):
                    found[0] = found[0].sub_(at.x[client]).div_(-lr)
        return got

    def _gap(self, got: Answers, want: Answers, question: str, tolerance: float) -> str:
        """The first number that differs beyond the tolerance, in words, or ""."""
        for client, pair in enumerate(zip(got, want, strict=True)):
            for a, b in zip(*pair, strict=True):
                where = f"for the {('first', 'second')[client]} of two clients"
                if a.shape != b.shape:
                    return f"{WORDS[question]} has shape {list(a.shape)} for {list(b.shape)} {where}"
                if not torch.isfinite(b).all():  # nothing can be said where the model itself gives no numbers
                    continue
                names = self.layout.names if b.dim() and b.shape[-1] == self.layout.d else ("",)
                mine, theirs = (torch.split(t, self.layout.sizes, -1) if names != ("",) else (t,) for t in (a, b))
                sizes = [largest(q) for q in theirs]
                whole = max(sizes)
                for name, p, q, size in zip(names, mine, theirs, sizes, strict=True):
                    gap = largest(p - q)
                    if not gap <= tolerance * (size + 0.1 * whole):
                        what = f"{WORDS[question]}, at {name}," if name else WORDS[question]
                        return f"{what} is off by {gap / max(whole, 1e-300):.1e} of the largest entry {where}"
        return ""


def largest(t: Tensor) -> float:
    """The largest absolute number, 0 where there is none."""
    if not t.numel():
        return 0.0
    low, high = t.detach().aminmax()  # an order of magnitude faster than a norm
    return float(torch.maximum(-low, high))


def _term(outputs: Tensor, features: Tensor | None, y: Tensor, weights: Tensor) -> Tensor:
    """A term of everything that a term may be of; the weights are [..., m]."""
    m = weights.dim()
    term = weights * outputs.square().flatten(m).mean(-1)
    return term if features is None else term + weights * features.square().flatten(m).mean(-1)


def _weights(at: Trial, client: int) -> Tensor:
    return torch.linspace(0.5, 1.5, at.mask.shape[1], dtype=at.x.dtype) * (client + 1)
