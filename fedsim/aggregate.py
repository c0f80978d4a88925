"""Server rules: from the cohort's messages to the one message the server steps on.

A linear rule never moves messages: workers return weighted sums in float64. The sums of all jobs are added along a
fixed binary tree (jobs 0 and 1, 2 and 3, then 0-1 and 2-3, ...), so that the result does not depend on who computed
what: a worker that holds both siblings adds them itself and moves one sum instead of two, with the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from fedsim.types import Message

Sums = dict[str, np.ndarray]

COLUMNS = 2**14
"""Coordinates summed at once: their float64 copies stay in the cache."""


@dataclass(frozen=True)
class Mean:
    """Weighted mean of the cohort's messages.

    Attributes:
        weights: ``examples``: client i weighs n_i (McMahan et al. 2017); ``uniform``: every client weighs the same.
    """

    weights: Literal["uniform", "examples"] = "examples"

    def weight(self, sizes: np.ndarray) -> np.ndarray:
        """[b] examples of each client -> [b] float64 weights, not normalised."""
        return np.ones(len(sizes)) if self.weights == "uniform" else sizes.astype(np.float64)

    def add(self, sums: dict[str, Tensor], messages: Message, weights: np.ndarray) -> dict[str, Tensor]:
        """Add b messages [b, ...] to float64 sums; ``sums`` may be empty and is updated in place."""
        for name, stacked in messages.items():
            total = sums.setdefault(name, torch.zeros(stacked.shape[1:], dtype=torch.float64, device=stacked.device))
            by_client, flat = stacked.reshape(len(weights), -1), total.view(-1)
            weight = torch.from_numpy(weights).to(stacked.device)
            for first in range(0, len(flat), COLUMNS):
                columns = slice(first, first + COLUMNS)
                flat[columns].addmv_(by_client[:, columns].double().t(), weight)
        return sums

    def finish(self, sums: Sums, total_weight: float, dtype: torch.dtype) -> Message:
        """The sums over the whole cohort -> the mean message."""
        return {name: torch.from_numpy(np.asarray(s / total_weight)).to(dtype) for name, s in sums.items()}


Parts = dict[tuple[int, int], dict[str, Any]]
"""{(first job, number of jobs): {field: sum over those jobs}}; the sums are arrays or tensors."""


def fold(parts: Parts) -> Parts:
    """Add sibling sums as far as both are here."""
    count = 1
    while any(span >= count for _, span in parts):
        for first in sorted(first for first, span in parts if span == count and first % (2 * count) == 0):
            if (right := parts.pop((first + count, count), None)) is not None:
                left = parts.pop((first, count))
                parts[first, 2 * count] = {name: left[name] + right[name] for name in left}
        count *= 2
    return parts
