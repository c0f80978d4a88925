"""Local work that is the same in every round: computed with Python a few times, from then on as a recording."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any

from torch import Tensor

from fedsim.data.batches import Work
from fedsim.kernels import replaying
from fedsim.types import Round

KEPT = 1024
"""Blocks whose minibatches are remembered."""


class Same:
    """The minibatches of blocks that have the same in every round, as long as nobody writes into them."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, ...], tuple[Work, dict[str, Tensor], list[int]]] = {}

    def get(self, clients: tuple[int, ...]) -> tuple[Work, dict[str, Tensor]] | None:
        """Those of a block, and their lanes."""
        if clients not in self._known:
            return None
        work, lane, versions = self._known[clients]
        return (work, lane) if versions == _versions(lane) else None

    def keep(self, clients: tuple[int, ...], work: Work, lane: dict[str, Tensor]) -> None:
        """Remember those of a block."""
        if len(self._known) == KEPT:
            self._known.clear()
        self._known[clients] = work, lane, _versions(lane)

    def __contains__(self, clients: object) -> bool:
        return clients in self._known


def _versions(lane: dict[str, Tensor]) -> list[int]:
    return [t._version for t in lane.values()]


def shares_memory(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors lie in the same storage."""
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


@dataclass(frozen=True)
class Asked(Round):
    """A round that knows what it was asked: what depends on the round is not the same in the next one."""

    asked: list[str] = field(default_factory=list, compare=False)

    @staticmethod
    def of(rnd: Round) -> Asked:
        """A round that nobody has asked anything."""
        known = Asked(**{part.name: getattr(rnd, part.name) for part in fields(rnd)})
        known.asked.clear()
        return known

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name != "asked" and not name.startswith("__"):
            self.asked.append(name)
        return found


class RoundReplay(replaying.Replay):
    """A function of a round and of trees of tensors, which is recorded if it does not look at the round."""

    def __call__(self, function: Callable[..., Any], rnd: Round, *trees: Any) -> Any:
        """``function(rnd, *trees)``; the function may be another object each time, if it does the same."""
        known = Asked.of(rnd) if self.computed + 1 == self.first else rnd
        out = super().__call__(partial(function, known), *trees)
        if isinstance(known, Asked) and known.asked:
            self.forget()
        return out
