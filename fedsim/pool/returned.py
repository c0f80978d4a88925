"""Whether what an algorithm's methods gave back is of the kinds that travel, and fits where it is kept."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fedsim.ground.tree import tree_map
from fedsim.types import Message, Owned, State


def check_model(models: Any, b: int, d: int, method: str) -> None:
    """Raise TypeError unless these are the models [b, d] that b clients predict with."""
    if not isinstance(models, Tensor) or models.shape != (b, d):
        found = list(models.shape[1:]) if isinstance(models, Tensor) else type(models).__name__
        raise TypeError(f"{method} must return the client's model [{d}], got {found}")


def check_returned(message: Any, new: State, old: State, method: str = "local") -> None:
    """Raise TypeError unless b clients' message and new states are of the kinds that travel and fit the store."""
    check_message(message)
    before, after = (tree_map(_kind, state) for state in (old, new))
    if before != after:
        was, now = (tree_map(_said, state) for state in (old, new))
        raise TypeError(f"{method} must return a client state like the one it got, {was}, got {now}")


def check_message(message: Any) -> Message:
    """The message; raises TypeError unless it is of a kind that travels."""
    if not isinstance(message, dict) or not all(isinstance(t, (Tensor, Owned)) for t in message.values()):
        raise TypeError("local must return a message of tensors by name, and the client's new state")
    return message


def _kind(rows: Any) -> Any:
    return (rows.dtype, rows.shape[1:]) if isinstance(rows, Tensor) else type(rows)


def _said(rows: Any) -> str:
    return f"{str(rows.dtype)[6:]}{list(rows.shape[1:])}" if isinstance(rows, Tensor) else type(rows).__name__
