"""One client's risk F_i, as an algorithm sees it: written and read for one client, on flat vectors x [d]."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from fedsim.channel.base import Noise
from fedsim.data.losses import Term
from fedsim.ground.layout import Layout
from fedsim.ground.opaque import depth, first_only
from fedsim.ground.tree import tree_map
from fedsim.types import Batch, Stretch

T = TypeVar("T")


class Oracle(Protocol):
    """What the engine provides for one model: losses and gradients at x [d] on a minibatch of m examples."""

    def value(self, x: Tensor, batch: Batch) -> Tensor:
        """Mean loss over the unmasked examples, a scalar."""
        ...

    def grad(self, x: Tensor, batch: Batch, term: Term | None = None, *extras: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient [d] of the mean loss (with ``term``, of their sum), and the mean loss without the term."""
        ...

    def descend(self, x: Tensor, batch: Batch, lr: float) -> tuple[Tensor, Tensor]:
        """x - lr * gradient [d], and the loss at x."""
        ...

    def example_grads(self, x: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Gradient of every example's own loss, [m, d], and the mean loss."""
        ...

    def clipped_sum(self, x: Tensor, batch: Batch, bound: Tensor | float, less: Tensor | None) -> tuple[Tensor, Tensor]:
        """Sum [d] of every example's own gradients, less those at ``less``, each clipped to norm ``bound``.

        And the mean loss at x.
        """
        ...

    def outputs(self, x: Tensor, batch: Batch) -> Tensor:
        """Outputs of the model, [m, k]."""
        ...

    def features(self, x: Tensor, batch: Batch) -> Tensor:
        """What the model's head receives, [m, f]."""
        ...

    @property
    def layout(self) -> Layout:
        """Where the parameters lie in x."""
        ...

    held: Tensor  # [q] the buffers that forward writes, of whoever is computed

    def keep(self) -> None:
        """Hold what the last forward pass left in these buffers."""
        ...


class Passes(Protocol):
    """A client's examples, minibatch by minibatch."""

    length: int
    expected: Tensor  # examples of a full minibatch, or expected in one (scalar)

    def __call__(self, k: int) -> Batch:
        """The k-th minibatch."""
        ...


class Minibatches(Passes, Protocol):
    """A client's minibatches of this round."""

    @property
    def stretches(self) -> Sequence[Stretch]:
        """The steps 0 to ``length`` - 1 in order, cut where clients of the block end."""
        ...

    def holds(self, k: int) -> Tensor | None:
        """Whether the client works at step k and its minibatch has examples (scalar bool); None: so it is for all."""
        ...


class Loss(NamedTuple):
    """What a client's local steps saw of its loss."""

    mean: Tensor  # scalar; 0 where nothing counts
    counts: Tensor  # scalar bool, whether anything does


class _Seen:
    """The losses that came with a client's gradients in one round, each with its weight in their mean."""

    def __init__(self) -> None:
        self.now: tuple[Tensor, Batch] | None = None  # the first of the local step, or part of a sweep, in progress
        self.keeps = False  # whether the client keeps what that pass left in the model's buffers
        self.steps: list[tuple[Tensor, Tensor | int]] = []  # (loss, 1), or (0, False) for a step that does not count
        self.parts: list[tuple[Tensor, Tensor | int]] = []  # (loss * examples, examples) of each part of a sweep


class Objective:
    """One client's F_i(x) = mean over its examples of the loss, with the minibatches of this round.

    Attributes:
        steps: K_i, the client's local steps this round (scalar tensor; clients of one block may differ).
        examples: n_i, the client's examples (scalar tensor).

    Args:
        oracle: of the client's model.
        batches: its minibatches of this round.
        steps: K_i.
        examples: n_i.
        noise: its random numbers in this round.
        everything: all its examples, once and as they are stored.
        oracles: of every architecture of the run.
    """

    def __init__(
        self,
        oracle: Oracle,
        batches: Minibatches,
        steps: Tensor,
        examples: Tensor,
        noise: Noise | None = None,
        everything: Passes | None = None,
        oracles: Sequence[Oracle] = (),
    ):
        self._noise = noise
        self._oracle, self._batches, self._everything, self._oracles = oracle, batches, everything, oracles
        self.steps, self.examples = steps, examples
        self._term: Term | None = None
        self._extras: Callable[[Batch], tuple[Tensor, ...]] = lambda batch: ()
        self._seen = _Seen()
        self._depth = depth()

    def value(self, x: Tensor, batch: Batch) -> Tensor:
        """Mean loss over the unmasked examples at x [d], a scalar."""
        return self._oracle.value(x, batch)

    def grad(self, x: Tensor, batch: Batch) -> Tensor:
        """Gradient [d] of the mean loss over the unmasked examples at x [d]."""
        extras = () if self._term is None else self._extras(batch)
        g, loss = self._oracle.grad(x, batch, self._term, *extras)
        self._note(loss, batch)
        return g

    def descend(self, x: Tensor, batch: Batch, lr: float) -> Tensor:
        """A plain SGD step, ``x - lr * grad(x, batch)`` [d], without the gradient ever being a vector of its own."""
        if self._term is not None:
            return x - lr * self.grad(x, batch)
        y, loss = self._oracle.descend(x, batch, lr)
        self._note(loss, batch)
        return y

    def _note(self, loss: Tensor, batch: Batch) -> None:
        """Remember a minibatch's mean loss if it is the first of its local step.

        Not if it is one of many inside the algorithm's own vmap, which it must not outlive.
        """
        if self._seen.now is None and depth() == self._depth:
            self._seen.now = loss, batch
            if self._seen.keeps:
                self._oracle.keep()

    def example_grads(self, x: Tensor, batch: Batch) -> Tensor:
        """Gradient of each example's own loss at x [d]: [m, d]; rows of padding are zero."""
        self._require_no_term("example_grads")
        g, loss = self._oracle.example_grads(x, batch)
        self._note(loss, batch)
        return g

    def clipped_sum(self, x: Tensor, batch: Batch, bound: Tensor | float, less: Tensor | None = None) -> Tensor:
        """Sum [d] over the examples of their own gradients at x [d], each clipped to norm ``bound``.

        With ``less`` [d], of the differences between each example's gradients at x and there. The gradients [m, d] do
        not exist at once: not at all in models of linear layers, a few examples or one layer at a time in others.
        """
        self._require_no_term("clipped_sum")
        total, loss = self._oracle.clipped_sum(x, batch, bound, less)
        self._note(loss, batch)
        return total

    def _require_no_term(self, method: str) -> None:
        """Gradients by example are of the plain loss; a term must not be lost in silence."""
        if self._term is not None:
            raise TypeError(f"this objective has a term beside the loss, which {method} does not know: use grad")

    def outputs(self, x: Tensor, batch: Batch) -> Tensor:
        """Outputs of the model for each example at x [d]: [m, k]."""
        return self._oracle.outputs(x, batch)

    def features(self, x: Tensor, batch: Batch) -> Tensor:
        """What the model's head receives for each example at x [d]: [m, f]."""
        return self._oracle.features(x, batch)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [d] -> the body's parameters and the head [k, f + 1], weights with the bias as last column."""
        return self._oracle.layout.split(x)

    def join(self, body: Tensor, head: Tensor) -> Tensor:
        """The inverse of ``split``."""
        return self._oracle.layout.join(body, head)

    def split_norms(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [d] -> all but the scales and shifts of BatchNorm [d - p], and these [p]."""
        return self._oracle.layout.split_norms(x)

    def join_norms(self, others: Tensor, norms: Tensor) -> Tensor:
        """The inverse of ``split_norms``."""
        return self._oracle.layout.join_norms(others, norms)

    def views(self, x: Tensor) -> dict[str, Tensor]:
        """The model's parameters in x [d], by name."""
        return self._oracle.layout.views(x)

    def of(self, architecture: int) -> Objective:
        """The same client and minibatches seen by another of the run's models (its losses are not in train/loss)."""
        return self._by_oracle(self._oracles[architecture])

    def plus(self, term: Term, extras: Callable[[Batch], tuple[Tensor, ...]]) -> Objective:
        """The same objective whose gradients are those of each example's loss plus a term.

        Args:
            term: see ``fedsim.data.losses.Term``; further arguments come from ``extras``.
            extras: the tensors of a minibatch that the term needs, which the gradient takes as constants.

        Raises:
            TypeError: the objective has a term already, which a second one would replace.
        """
        if self._term is not None:
            raise TypeError("this objective has a term already")
        other = self._by_oracle(self._oracle)
        other._term, other._extras, other._seen = term, extras, self._seen
        return other

    def _by_oracle(self, oracle: Oracle) -> Objective:
        return Objective(oracle, self._batches, self.steps, self.examples, self._noise, self._everything, self._oracles)

    @property
    def buffers(self) -> Tensor:
        """The buffers [q] that forward writes, as the client's last local step left them; see ``hold``."""
        return self._oracle.held

    def hold(self, buffers: Tensor) -> None:
        """Go on with these buffers [q].

        The first gradient of each local step renews them; no other pass does, and no step that does not count.
        """
        self._oracle.held = buffers

    @property
    def batch_size(self) -> Tensor:
        """Examples of a full minibatch, or with Poisson sampling the expected number (scalar tensor, never 0)."""
        return self._batches.expected

    @property
    def noise(self) -> Noise:
        """Random numbers of the client in this round; see ``fedsim.channel.base.Noise``."""
        if self._noise is None:
            raise TypeError("this objective has no random numbers")
        return self._noise

    def sweep(self, step: Callable[[T, Batch], T], carry: T) -> T:
        """``carry = step(carry, batch)`` over each of the client's examples once, as stored (no augmentation).

        Batches carry a mask where they are padded: use it.
        """
        if self._everything is None:
            raise TypeError("this objective knows the minibatches of the round only")
        for k in range(self._everything.length):
            self._seen.now = None
            carry = step(carry, self._everything(k))
            if self._seen.now is not None:
                loss, batch = self._seen.now
                examples = batch.y.shape[0] if batch.mask is None else batch.mask.sum()
                self._seen.parts.append((loss * examples, examples))
        return carry

    def run(self, step: Callable[[T, Batch], T], carry: T, *, counts: bool = True) -> T:
        """The local loop: ``carry = step(carry, batch)`` for each of the client's K_i minibatches.

        Clients of one block may have different K_i: who has made its steps keeps what they led to.

        Args:
            step: one local step.
            carry: a tree of tensors, what the first step begins with.
            counts: whether the losses of these steps enter ``loss``; not if the client goes through its minibatches
                for something else than its local steps.
        """
        ended = carry
        for first, end, among, active in self._batches.stretches:
            with first_only(among if depth() == self._depth else None):
                for k in range(first, end):
                    carry = self._step(step, carry, k, counts)
            # Who has ended goes on in ``carry`` with numbers that nobody needs; theirs stay in ``ended``.
            ended = carry if active is None else tree_map(lambda n, o, a=active: torch.where(a, n, o), carry, ended)
        return ended

    def _step(self, step: Callable[[T, Batch], T], carry: T, k: int, counts: bool) -> T:
        """The k-th local step, and its loss if it counts."""
        self._seen.now, self._seen.keeps = None, counts
        given = self._batches(k)
        new = step(carry, given)
        self._seen.keeps = False
        if counts and self._seen.now is not None:
            loss, used = self._seen.now
            held = self._batches.holds(k)
            if used.mask is not None and used.mask is not given.mask:  # the algorithm's own choice of examples
                held = used.mask.any() if held is None else held & used.mask.any()
            self._seen.steps.append((loss, 1) if held is None else (torch.where(held, loss, 0.0), held))
        return new

    @property
    def loss(self) -> Loss:
        """The client's part of ``train/loss``: mean over its local steps of the minibatch loss where each began.

        The plain loss, whatever term is added to it. Steps on minibatches without examples do not count. Where no step
        computed a gradient but a pass over all examples (``sweep``) did, it is the mean over those examples.
        """
        found = self._seen.steps or self._seen.parts
        if not found:
            none = torch.zeros_like(self.steps, dtype=torch.get_default_dtype())
            return Loss(none, none > 0)
        losses, weights = zip(*found, strict=True)
        total = sum(losses[1:], start=losses[0])
        counted = sum(w for w in weights if not isinstance(w, Tensor)) + torch.zeros_like(self.steps)
        if some := [w for w in weights if isinstance(w, Tensor)]:
            counted = counted + torch.stack(some).sum(0)
        return Loss(total / counted.clamp(min=1), counted > 0)
