"""Server rules: from the cohort's messages to the one message the server steps on.

A linear rule never moves messages: every worker returns the weighted sum of its job's messages in float64, and the
driver adds those sums in plan order, so that the result does not depend on who computed what or finished first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fedsim.types import Message

Sums = dict[str, np.ndarray]

COLUMNS = 8192
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
                flat[columns] += weight @ by_client[:, columns].double()
        return sums

    def finish(self, parts: Sequence[Sums], total_weight: float, dtype: torch.dtype) -> Message:
        """Sums of the jobs, in plan order -> the mean message."""
        out: Message = {}
        for name in parts[0]:
            total = parts[0][name].copy()
            for part in parts[1:]:
                total += part[name]
            out[name] = torch.from_numpy(np.asarray(total / total_weight)).to(dtype)
        return out
