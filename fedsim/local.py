"""How much a client works in one round."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from fedsim.errors import require
from fedsim.fields import check_fields

MOST_STEPS = 10**6
"""Of a client in a round, and passes over its data, at most: the minibatches of a round are drawn before it works."""


@dataclass(frozen=True)
class Local:
    """A client's work in one round: ``steps`` minibatches, or ``epochs`` passes over its data.

    >>> local = Local(epochs=2, batch_size=10)
    >>> local.count(25)  # two passes over 25 examples in minibatches of 10, 10 and 5
    6
    >>> Local(steps=5, batch_size="full").batch(25)
    25

    Attributes:
        steps: local steps K per round, in 1..1000000; the client goes through its data in fresh random orders until it
            has made them. None: use ``epochs``.
        epochs: passes over the client's data per round, > 0; fractions allowed (0.5: half of the minibatches, rounded
            up). None together with ``steps`` None: one epoch.
        batch_size: examples in a minibatch, >= 1 (the last one of an epoch is smaller when sizes do not divide), or
            ``"full"``: all of the client's examples.
        sampling: ``shuffle``: minibatches go through the client's examples in random orders; ``poisson``: each example
            is in each minibatch independently, so that ``batch_size`` is the expected size and some minibatches may be
            empty: what privacy by sampling assumes.
    """

    steps: int | None = None
    epochs: float | None = None
    batch_size: int | Literal["full"] = 32
    sampling: Literal["shuffle", "poisson"] = "shuffle"

    def __post_init__(self) -> None:
        check_fields(self)
        if self.steps is not None:
            require(self.steps >= 1, "steps", "be >= 1", self.steps)
            require(self.steps <= MOST_STEPS, "steps", f"be <= {MOST_STEPS}", self.steps)
            require(self.epochs is None, "epochs", "be null when steps is given", self.epochs, "give one of the two")
        if self.epochs is not None:
            require(self.epochs > 0, "epochs", "be > 0", self.epochs)
            require(self.epochs <= MOST_STEPS, "epochs", f"be <= {MOST_STEPS}", self.epochs)
        if self.batch_size != "full":
            require(self.batch_size >= 1, "batch_size", "be an integer >= 1 or 'full'", self.batch_size)

    def batch(self, examples: int) -> int:
        """Examples of a full minibatch, or expected in one, for a client that holds ``examples``."""
        return examples if self.batch_size == "full" else min(self.batch_size, examples)

    def count(self, examples: int) -> int:
        """Local steps K_i of a client that holds ``examples``."""
        if self.steps is not None:
            return self.steps
        epochs = 1.0 if self.epochs is None else self.epochs
        per_epoch = math.ceil(examples / self.batch(examples))
        return max(1, math.ceil(epochs * per_epoch - 1e-9))
