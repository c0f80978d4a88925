"""What evaluation finds of each test sample, and what metrics make of it; in workers and in the driver alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedsim.data.losses import Loss, Task, guess
from fedsim.data.metrics import Metric, each, probabilities, value
from fedsim.pool.block import to_numpy


class Scores(NamedTuple):
    """The answer to an evaluation job, per example; only what a metric asks for travels."""

    losses: np.ndarray  # [rows]
    values: np.ndarray  # [rows, metrics of examples]
    guesses: np.ndarray  # [rows, ...] predicted classes; empty where nothing asks for them
    outputs: np.ndarray  # [rows, ...] outputs; likewise


Found = tuple[Tensor, Tensor, Tensor, Tensor]
"""Scores as tensors, still on the device."""


@dataclass(frozen=True)
class Measures:
    """What is measured beside the loss.

    Attributes:
        task: of the data.
        metrics: recorded as ``eval/NAME``.
        shared: those of them that are also reported of clients and of peers.
    """

    task: Task
    metrics: tuple[Metric, ...] = ()
    shared: tuple[Metric, ...] = ()

    @property
    def examples(self) -> tuple[Metric, ...]:
        """The metrics of examples, in the order of ``Scores.values``."""
        return tuple(metric for metric in self.metrics if metric.of == "examples")

    @property
    def guesses(self) -> bool:
        """Whether predicted classes are kept."""
        return self.task.classes or any(metric.of == "classes" for metric in self.metrics)

    @property
    def outputs(self) -> bool:
        """Whether outputs are kept, as many numbers for each test sample as the model gives."""
        return any(metric.of in ("outputs", "probabilities") for metric in self.metrics)

    def scores(self, loss: Loss, outputs: Tensor, y: Tensor) -> Scores:
        """What is kept of the outputs [n, ...] for some test samples."""
        return answered([self.found(loss, outputs, y)])[0]

    def found(self, loss: Loss, outputs: Tensor, y: Tensor) -> Found:
        """The same, still on the device."""
        values = [each(metric, outputs, y) for metric in self.examples]
        guesses = torch.empty(len(y), 0, dtype=torch.int64)
        if self.guesses:
            guesses = (outputs > 0).long() if self.task.outputs == "labels" else guess(outputs)
        kept = outputs if self.outputs else outputs.new_empty(len(y), 0)
        found = torch.stack(values, -1) if values else outputs.new_empty(len(y), 0)
        return loss(outputs, y), found, guesses, kept

    def of(self, metric: Metric, found: Scores, y: np.ndarray) -> dict[str, float]:
        """A metric of some samples: its value under "", or several under their words."""
        if metric.of == "examples":
            column = np.ascontiguousarray(found.values[:, self.examples.index(metric)]).astype(np.float64)
            mean = float(column.mean())
            return {"": mean if metric.after is None else metric.after(mean)}
        predictions = torch.from_numpy(found.guesses if metric.of == "classes" else found.outputs)
        targets = torch.from_numpy(y)
        targets = targets.double() if targets.is_floating_point() else targets
        if self.task.outputs == "tokens":  # positions are examples
            predictions, targets = predictions.flatten(0, 1), targets.flatten()
        if metric.of == "probabilities":
            predictions = probabilities(predictions, self.task.outputs)
        return value(metric, predictions if metric.of == "classes" else predictions.double(), targets)


def answered(parts: Sequence[Found]) -> list[Scores]:
    """Scores as workers send them, all in one copy from the device."""
    return [Scores(*arrays) for arrays in to_numpy(tuple(parts))]


def joined(parts: Sequence[Scores]) -> Scores:
    """The scores of all parts, one after the other."""
    return Scores(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
