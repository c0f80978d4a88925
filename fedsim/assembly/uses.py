"""What an algorithm asks of each model's oracle, found out by a rehearsal in which nothing is computed."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from fedsim.channel.noise import Addressed
from fedsim.data.batches import Feed
from fedsim.data.losses import Term
from fedsim.ground import addresses
from fedsim.ground.layout import Layout
from fedsim.ground.own_code import FAILURES
from fedsim.kernels.oracle import answer
from fedsim.models import twin
from fedsim.models.dropout import trial_masks
from fedsim.objective import Objective
from fedsim.pool.rehearsal import Two, first_round, require_round, tried
from fedsim.pool.worker import Setup
from fedsim.types import Batch, Round, State

QUESTIONS = frozenset({"value", "grad", "descend", "term", "example_grads", "clipped_sum", "outputs", "features"})
"""The methods of an oracle; ``term`` is ``grad`` with a term."""


def uses(setup: Setup, states: Sequence[State], x0: Any, rounds: int) -> list[frozenset[str]]:
    """What is asked of the oracle of each architecture, by clients of every architecture.

    The first two rounds and the last are rehearsed. An algorithm that fails here, where all gradients are zero, is
    rehearsed again with gradients of two samples, and if it does not fail again is taken to ask everything.

    Args:
        setup: of the run.
        states: a client's first state, of each architecture.
        x0: what the server starts from.
        rounds: of the run.

    Raises:
        InputError: it fails, or returns what it must not.
    """
    feed = Feed(setup.train, torch.device("cpu"), setup.dtype)
    two = Two(Batch(*feed.take(torch.zeros(2, dtype=torch.int64), None), keys=torch.arange(2)))
    sizes = setup.train.sizes()
    try:
        oracles = [_Silent(model, two.batch.x) for model in setup.models]
        with torch.no_grad():
            for (number, state), t in product(enumerate(states), tried(rounds)):
                rnd = Round(t, (number,), len(sizes), int(sizes.min()))
                noise = Addressed(setup.seed, addresses.REHEARSAL, t, torch.tensor(number))
                obj = Objective(oracles[number], two, torch.tensor(1), torch.tensor(2), noise, two, oracles)
                first_round(setup, obj, state, x0, rnd)
    except FAILURES:  # user code: any type
        require_round(setup, states, x0, rounds)
        return [QUESTIONS] * len(setup.models)
    return [frozenset(oracle.asked) for oracle in oracles]


class _Silent:
    """An oracle that answers with zeros and remembers what it was asked."""

    def __init__(self, model: nn.Module, inputs: Tensor):
        self.layout = Layout.of(model)
        self.asked: set[str] = set()
        self.held = torch.empty(0)  # or what an objective is told to hold
        with torch.no_grad():
            model = twin(model)  # what forward keeps is no part of the run
            with trial_masks(model):
                self._outputs, self._features = answer(model, model, inputs)

    def keep(self) -> None:
        """Nothing is computed."""

    def value(self, x: Tensor, batch: Batch) -> Tensor:
        self.asked.add("value")
        return x.new_zeros(())

    def grad(self, x: Tensor, batch: Batch, term: Term | None = None, *extras: Tensor) -> tuple[Tensor, Tensor]:
        self.asked.add("grad" if term is None else "term")
        return torch.zeros_like(x), x.new_zeros(())

    def descend(self, x: Tensor, batch: Batch, lr: float) -> tuple[Tensor, Tensor]:
        self.asked.add("descend")
        return x.clone(), x.new_zeros(())

    def example_grads(self, x: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        self.asked.add("example_grads")
        return x.new_zeros(len(batch.y), x.shape[-1]), x.new_zeros(())

    def clipped_sum(self, x: Tensor, batch: Batch, bound: Tensor | float, less: Tensor | None) -> tuple[Tensor, Tensor]:
        self.asked.add("clipped_sum")
        return torch.zeros_like(x), x.new_zeros(())

    def outputs(self, x: Tensor, batch: Batch) -> Tensor:
        self.asked.add("outputs")
        return torch.zeros_like(self._outputs)

    def features(self, x: Tensor, batch: Batch) -> Tensor:
        self.asked.add("features")
        return torch.zeros_like(self._features if self._features is not None else self._outputs)
