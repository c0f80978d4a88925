"""A function that is called again and again: computed with Python at first, from then on as a recording.

The recording is compared with the function itself once, on other tensors, before it takes its place.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

from torch import Tensor

from fedsim.ground.recorded import Stale, recorded
from fedsim.ground.tree import leaves
from fedsim.models.pure import identical

FIRST = 3
"""Which computation is recorded: many runs are over before, and a recording costs as much as some of them."""

KEPT = 128
"""Recordings of each kind of work at most, those that were not used for longest going first."""


class Replay:
    """A function of trees of tensors of one form.

    Args:
        first: which computation is recorded.
    """

    def __init__(self, first: int = FIRST) -> None:
        self.first, self.computed = first, 0
        self._recording: Callable[..., Any] | None = None
        self.trusted = False

    @property
    def refused(self) -> bool:
        """Whether there was a recording and it cannot take the place of the function."""
        return self.computed >= self.first and self._recording is None

    def __call__(self, function: Callable[..., Any], *trees: Any) -> Any:
        """``function(*trees)``; the function may be another object each time, if it does the same."""
        if self.trusted and self._recording is not None:
            try:
                return self._recording(*trees)
            except Stale:  # by somebody who may do it again
                self.forget()
        self.computed += 1
        if self.computed == self.first:
            return self._record(function, *trees)
        out = function(*trees)
        if self._recording is not None:
            try:
                again = self._recording(*trees)
            except Stale:
                self.forget()
                return out
            self.trusted = all(map(identical, leaves(out), leaves(again)))
            self._recording = self._recording if self.trusted else None
        return out

    def forget(self) -> None:
        """Compute it with Python for good."""
        self._recording, self.trusted = None, False

    def _record(self, function: Callable[..., Any], *trees: Any) -> Any:
        try:
            out, self._recording = recorded(function, *trees)
        except Exception:  # not to be recorded, or at fault: then it says so now
            return function(*trees)
        return out


class Replays(dict[Hashable, Replay]):
    """Those of each form, which are lost where there are too many of them."""

    def of(self, form: Hashable, make: Callable[[], Replay]) -> Replay:
        """That of a form, made if there is none."""
        found = self.pop(form, None) or make()
        self[form] = found  # the last one: the first is the one that was not used for longest
        if len(self) > KEPT:
            del self[next(iter(self))]
        return found


def form_of(tensor: Tensor | None) -> Hashable:
    """What operations on a tensor may depend on, its numbers apart."""
    return None if tensor is None else (tensor.shape, tensor.stride(), tensor.dtype)
