"""The few tree operations fedsim needs on states: tuples, NamedTuples and dicts of tensors or arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from fedsim.errors import InputError


def leaves(tree: Any) -> list[Any]:
    """Leaves in field order (dict keys in insertion order)."""
    if isinstance(tree, dict):
        return [leaf for value in tree.values() for leaf in leaves(value)]
    if isinstance(tree, tuple):
        return [leaf for value in tree for leaf in leaves(value)]
    return [tree]


def tensors(state: Any, method: str) -> list[Tensor]:
    """Leaves of a state that an algorithm's method returned; raises InputError when it holds anything but tensors."""
    for leaf in (found := leaves(state)):
        if not isinstance(leaf, Tensor):
            raise InputError(
                f"{method} of an algorithm must return a NamedTuple, tuple or dict of tensors, () for nothing, "
                f"got {type(leaf).__name__} {' '.join(repr(leaf).split())[:80]}"
            )
    return found


def tree_map(fn: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """Apply ``fn`` to corresponding leaves of trees of one structure, which the result keeps."""
    if isinstance(tree, dict):
        if not rest:  # the usual case; calls of Python are what small trees cost
            return {k: fn(v) if isinstance(v, Tensor) else tree_map(fn, v) for k, v in tree.items()}
        return {k: tree_map(fn, v, *(r[k] for r in rest)) for k, v in tree.items()}
    if isinstance(tree, tuple):
        if not rest:
            mapped = [fn(v) if isinstance(v, Tensor) else tree_map(fn, v) for v in tree]
        else:
            mapped = [tree_map(fn, *v) for v in zip(tree, *rest, strict=True)]
        return type(tree)(*mapped) if hasattr(tree, "_fields") else tuple(mapped)
    return fn(tree, *rest)
