"""What actors get: a run's set-up, its models' frozen parameters apart, so that they are read where they lie."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from fedsim.pool.constants import arrays, lent, put_back, without
from fedsim.pool.worker import Setup


class Carried(NamedTuple):
    """A set-up on its way to an actor."""

    setup: Setup  # whose models' frozen parameters hold nothing
    held: tuple[dict[str, np.ndarray], ...]  # of each architecture, by name

    @staticmethod
    def of(setup: Setup) -> Carried:
        """A set-up, packed; it is left as it is."""
        models = tuple(without(model) for model in setup.models)
        return Carried(replace(setup, models=models), tuple(arrays(model) for model in setup.models))

    def unpacked(self) -> Setup:
        """The set-up, its models' constants in the memory in which they came."""
        for model, held in zip(self.setup.models, self.held, strict=True):
            put_back(model, held)
        return self.setup

    @contextmanager
    def lent(self, setup: Setup) -> Iterator[None]:
        """A block in which the models of the set-up that was packed read their constants here too."""
        with ExitStack() as stack:
            for model, held in zip(setup.models, self.held, strict=True):
                stack.enter_context(lent(model, held))
            yield
