"""One client's risk F_i, as an algorithm sees it: written and read for one client, on flat vectors x [d]."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from fedsim.engine.opaque import depth
from fedsim.tree import tree_map
from fedsim.types import Batch

T = TypeVar("T")


class Oracle(Protocol):
    """What the engine provides for one model: losses and gradients at x [d] on a minibatch of m examples."""

    def value(self, x: Tensor, batch: Batch) -> Tensor:
        """Mean loss over the unmasked examples, a scalar."""
        ...

    def grad(self, x: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Gradient [d] of the mean loss, and that loss."""
        ...

    def descend(self, x: Tensor, batch: Batch, lr: float) -> tuple[Tensor, Tensor]:
        """x - lr * gradient [d], and the loss at x."""
        ...

    def example_grads(self, x: Tensor, batch: Batch) -> Tensor:
        """Gradient of every example's own loss, [m, d]."""
        ...

    def features(self, x: Tensor, batch: Batch) -> Tensor:
        """What the model's head receives, [m, f]."""
        ...


class Minibatches(Protocol):
    """A client's minibatches of this round."""

    length: int

    def __call__(self, k: int) -> Batch:
        """The k-th minibatch."""
        ...

    def active(self, k: int) -> Tensor | None:
        """Whether the client works at step k (scalar bool); None when every client of the block does."""
        ...


class Objective:
    """One client's F_i(x) = mean over its examples of the loss, with the minibatches of this round.

    Attributes:
        steps: K_i, the client's local steps this round (scalar tensor; clients of one block may differ).
        examples: n_i, the client's examples (scalar tensor).
    """

    def __init__(self, oracle: Oracle, batches: Minibatches, steps: Tensor, examples: Tensor):
        self._oracle, self._batches = oracle, batches
        self.steps, self.examples = steps, examples
        self._losses: list[Tensor] = []  # telemetry: the first loss seen in each local step
        self._depth = depth()

    def value(self, x: Tensor, batch: Batch) -> Tensor:
        """Mean loss over the unmasked examples at x [d], a scalar."""
        return self._oracle.value(x, batch)

    def grad(self, x: Tensor, batch: Batch) -> Tensor:
        """Gradient [d] of the mean loss over the unmasked examples at x [d]."""
        g, loss = self._oracle.grad(x, batch)
        self._note(loss)
        return g

    def descend(self, x: Tensor, batch: Batch, lr: float) -> Tensor:
        """A plain SGD step, ``x - lr * grad(x, batch)`` [d], without the gradient ever being a vector of its own."""
        y, loss = self._oracle.descend(x, batch, lr)
        self._note(loss)
        return y

    def _note(self, loss: Tensor) -> None:
        """Remember a loss, unless it is one of many inside the algorithm's own vmap, which it must not outlive."""
        if depth() == self._depth:
            self._losses.append(loss)

    def example_grads(self, x: Tensor, batch: Batch) -> Tensor:
        """Gradient of each example's own loss at x [d]: [m, d]; rows of padding are zero."""
        return self._oracle.example_grads(x, batch)

    def features(self, x: Tensor, batch: Batch) -> Tensor:
        """What the model's head receives for each example at x [d]: [m, f]."""
        return self._oracle.features(x, batch)

    def run(self, step: Callable[[T, Batch], T], carry: T) -> T:
        """The local loop: ``carry = step(carry, batch)`` for each of the client's K_i minibatches.

        Clients of one block may have different K_i; padding steps leave the carry unchanged.
        """
        mean = torch.zeros_like(self.steps, dtype=torch.get_default_dtype())
        for k in range(self._batches.length):
            self._losses.clear()
            new = step(carry, self._batches(k))
            active = self._batches.active(k)
            if self._losses:
                loss = self._losses[0] / self.steps
                mean = mean + (loss if active is None else torch.where(active, loss, 0.0))
            carry = new if active is None else tree_map(lambda n, o, a=active: torch.where(a, n, o), new, carry)
        self._losses[:] = [mean]
        return carry

    @property
    def loss(self) -> Tensor:
        """Mean over the local steps of the minibatch loss where each step began; 0 when no gradient was computed."""
        return self._losses[0] if self._losses else torch.zeros_like(self.steps, dtype=torch.get_default_dtype())
