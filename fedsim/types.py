"""The shapes that travel through fedsim.

Letters: n clients in all, c in this round, b in one block, d parameters, k local steps, m examples in a minibatch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor


class Owned(NamedTuple):
    """Rows of which a client has some: prototypes of the classes that it holds. Only those rows travel."""

    values: Tensor  # [r, ...] zero where the client has no such row
    mask: Tensor  # [r] bool


class Known(NamedTuple):
    """What every receiver can compute from earlier messages, handed over for free: a model that all update alike.

    Only broadcasts have such fields; ``local`` gets the value itself.
    """

    value: Tensor


Message: TypeAlias = dict[str, Any]
"""Named fields of ONE client, tensors, ``Owned`` rows or what is ``Known``, for example ``{"update": [d]}``."""

State: TypeAlias = Any
"""A NamedTuple of tensors declared beside the algorithm that owns it; ``()`` for "no state"."""


class SavedRows(NamedTuple):
    """The part of a saved state that grows during a run: one row for each client, say, that ever took part."""

    ids: Any  # [r] int64, whose they are: clients for example
    values: Any  # tree of [r, ...] arrays or tensors, or of what is read in parts (``ground.streamed``)


class Batch(NamedTuple):
    """One client's minibatch."""

    x: Tensor  # [m, ...] inputs
    y: Tensor  # [m] classes (int64), [m] targets (float) or [m, t] next tokens
    mask: Tensor | None = None  # [m] 1 for a real example, 0 for padding; None: every example is real
    keys: Tensor | None = None  # [m] int64, of which each example's dropout follows; None where nothing is dropped


class Stretch(NamedTuple):
    """Local steps ``first`` to ``end`` - 1, at which the same clients of a block work."""

    first: int
    end: int
    among: int | None = None  # those who work are among that many first clients of the block; None: all work
    active: Tensor | None = None  # whether this client works (scalar bool); None: all do


@dataclass(frozen=True)
class Round:
    """A synchronous round, or one wave of asynchronous events on disjoint clients."""

    index: int  # 0-based
    clients: tuple[int, ...]  # [c] who computes, ascending
    population: int  # n
    smallest: int = 1  # n_min, examples of the client that has fewest
    now: Tensor = field(default_factory=lambda: torch.zeros(()))  # scalar, virtual time of this client's event
    noise: Any = field(default=None, compare=False, repr=False)  # the server's random numbers (``channel.base.Noise``)
