"""Server rules: from the cohort's messages to the one message the server steps on.

Workers return sums over their clients, in float64. The sums of all jobs are merged along a fixed binary tree (jobs 0
and 1, 2 and 3, then 0-1 and 2-3, ...), so that the result does not depend on who computed what: a worker that holds
both siblings merges them itself and moves one sum instead of two, with the same bits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from fedsim.fields import check_fields
from fedsim.ground.layout import aligned
from fedsim.ground.tree import tree_map
from fedsim.traits import RuleTraits
from fedsim.types import Message, Owned

Sums = dict[str, Any]
"""{field: array or ``Owned``}: what the clients of some jobs come to."""

COLUMNS = 2**14
"""Coordinates summed at once on the CPU: their float64 copies stay in the cache."""

NUMBERS = 2**27
"""Numbers summed at once on a GPU, where each sum has a price and float64 copies need memory."""


class Aggregate(Protocol):
    """A server rule: how a cohort's messages become the one message on which the server steps."""

    @property
    def weights(self) -> Literal["uniform", "examples"]:
        """What a client weighs: 1 (``uniform``), or as many as it has examples (``examples``)."""
        ...

    def add(self, sums: Sums, clients: tuple[int, ...], messages: Message, weights: Tensor) -> Sums:
        """The sums with b more clients.

        Args:
            sums: trees of tensors so far, ``{}`` at the start; may be written in place.
            clients: [b] their numbers.
            messages: [b, ...] what they sent.
            weights: [b] float64, not normalised.
        """
        ...

    def merge(self, left: Sums, right: Sums) -> Sums:
        """The sums of two groups of clients together, ``left`` being those of the earlier jobs."""
        ...

    def finish(self, sums: Sums, total: float, dtype: torch.dtype) -> Message:
        """The sums over the whole cohort and its total weight -> what the server receives."""
        ...


def weights_of(rule: Aggregate, sizes: np.ndarray) -> np.ndarray:
    """[b] examples of each client -> [b] float64 weights, not normalised."""
    return np.ones(len(sizes)) if rule.weights == "uniform" else sizes.astype(np.float64)


@dataclass(frozen=True)
class Mean:
    """Weighted mean of the cohort's messages; of rows that not all clients have, over those who have them.

    >>> weights_of(Mean(), np.array([10, 30])).tolist()  # of two clients, by their numbers of examples
    [10.0, 30.0]
    >>> weights_of(Mean(weights="uniform"), np.array([10, 30])).tolist()
    [1.0, 1.0]

    Attributes:
        weights: ``examples``: client i weighs n_i (McMahan et al. 2017); ``uniform``: every client weighs the same.
    """

    traits: ClassVar[RuleTraits] = RuleTraits(linear=True)
    weights: Literal["uniform", "examples"] = "examples"

    def __post_init__(self) -> None:
        check_fields(self)

    def add(self, sums: Sums, clients: tuple[int, ...], messages: Message, weights: Tensor) -> Sums:
        """{field: weighted sum}; of ``Owned`` rows the sums of the rows and of their owners' weights."""
        for name, value in messages.items():
            if isinstance(value, Owned):
                mask = value.mask.to(value.values.dtype)
                rows = value.values * mask.view(*mask.shape, *[1] * (value.values.dim() - 2))
                total = sums.setdefault(name, Owned(_zeros(rows), _zeros(mask)))
                _add(total.values, rows, weights)
                _add(total.mask, mask, weights)
            else:
                _add(sums.setdefault(name, _zeros(value)), value, weights)
        return sums

    def merge(self, left: Sums, right: Sums) -> Sums:
        """Their sums."""
        return tree_map(np.add, left, right)  # type: ignore[no-any-return]

    def finish(self, sums: Sums, total: float, dtype: torch.dtype) -> Message:
        """The mean message; rows that nobody has are zero and not in the mask."""

        def mean(value: Any) -> Any:
            if not isinstance(value, Owned):
                return aligned(torch.from_numpy(np.asarray(value / total)).to(dtype))
            had = value.mask > 0
            by = np.where(had, value.mask, 1.0).reshape(-1, *[1] * (value.values.ndim - 1))
            return Owned(aligned(torch.from_numpy(value.values / by).to(dtype)), torch.from_numpy(had))

        return {name: mean(value) for name, value in sums.items()}


@dataclass(frozen=True)
class Stack:
    """Every client's own message: fields [c, ...] in client order, and ``weights`` [c], which sum to 1.

    Attributes:
        weights: as of ``Mean``.
    """

    traits: ClassVar[RuleTraits] = RuleTraits(stacks=True)
    weights: Literal["uniform", "examples"] = "uniform"

    def __post_init__(self) -> None:
        check_fields(self)

    def add(self, sums: Sums, clients: tuple[int, ...], messages: Message, weights: Tensor) -> Sums:
        """{field: the messages one above the other}, with ``clients`` and ``weights``."""
        if taken := {"clients", "weights"} & messages.keys():
            raise TypeError(f"a field of a message must not be named {min(taken)!r}, as the rows of the stack are")
        more = {**messages, "clients": torch.tensor(clients), "weights": weights}
        return tree_map(lambda a, b: torch.cat([a, b]), sums, more) if sums else more

    def merge(self, left: Sums, right: Sums) -> Sums:
        """One above the other."""
        return tree_map(lambda a, b: np.concatenate([a, b]), left, right)  # type: ignore[no-any-return]

    def finish(self, sums: Sums, total: float, dtype: torch.dtype) -> Message:
        """The messages in client order."""
        order = np.argsort(sums["clients"])
        rows = {name: value for name, value in sums.items() if name != "clients"} | {"weights": sums["weights"] / total}

        def ordered(array: np.ndarray) -> Tensor:
            tensor = aligned(torch.from_numpy(array[order]))
            return tensor.to(dtype) if tensor.is_floating_point() else tensor

        return {name: tree_map(ordered, value) for name, value in rows.items()}


def _zeros(stacked: Tensor) -> Tensor:
    """Room for the sum over the first dimension."""
    return torch.zeros(stacked.shape[1:], dtype=torch.float64, device=stacked.device)


def _add(total: Tensor, stacked: Tensor, weights: Tensor) -> None:
    """total [...] += sum over the b clients of weight [b] times stacked [b, ...], in place."""
    by_client, flat = stacked.reshape(len(weights), -1), total.view(-1)
    width = COLUMNS if total.device.type == "cpu" else max(COLUMNS, NUMBERS // len(weights))
    for first in range(0, len(flat), width):
        columns = slice(first, first + width)
        flat[columns].addmv_(by_client[:, columns].double().t(), weights)


Parts = dict[tuple[int, int], Sums]
"""{(first job, number of jobs): what those jobs come to}."""


def fold(parts: Parts, merge: Callable[[Sums, Sums], Sums]) -> Parts:
    """Merge neighbouring sums pairwise, as far as both are there: a fixed tree over the jobs of a round.

    Workers fold the jobs that they have, the driver folds what they send. Sums of floating-point numbers depend on the
    order of additions; the tree is given by the numbers of the jobs, so that it is the same for any number of workers.
    """
    count = 1
    while any(span >= count for _, span in parts):
        for first in sorted(first for first, span in parts if span == count and first % (2 * count) == 0):
            if (right := parts.pop((first + count, count), None)) is not None:
                parts[first, 2 * count] = merge(parts.pop((first, count)), right)
        count *= 2
    return parts


def merge_all(parts: Parts, merge: Callable[[Sums, Sums], Sums]) -> Sums:
    """The sums of all jobs as one: ``fold``, then from left to right what it leaves (jobs that are no power of two)."""
    folded = fold(parts, merge)
    return reduce(merge, (folded[place] for place in sorted(folded)))
