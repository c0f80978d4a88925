"""One function for all clients of a block at once, and operations that this does not look into.

An *opaque* operation has its own code for one client and for b clients. ``torch.autograd.Function`` with a ``vmap``
staticmethod does the same, at 0.9 ms a call under vmap (measured; torch 2.13), ten times the price of the operation
itself for small models; this costs 0.06 ms. What it needs of torch's private interface is wrapped here, and nowhere
else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any, NamedTuple

from torch import Tensor
from torch._C import _functorch
from torch._functorch.predispatch import lazy_load_decompositions
from torch._functorch.pyfunctorch import VmapInterpreter, retrieve_current_functorch_interpreter

from fedsim.ground.tree import leaves, tree_map


def at_once(function: Callable[..., Any], *trees: Any) -> Any:
    """``function`` of every client, all of them at once: ``torch.func.vmap`` for fedsim's own trees.

    Torch's takes a tree of any classes apart, in Python, which costs small models more than all that they compute.

    Args:
        function: takes the trees of one client and returns a tree of tensors.
        trees: of tensors [b, ...].

    Returns:
        What it returns, stacked: a tree of tensors [b, ...].
    """
    _prepared()
    b = len(leaves(trees)[0])
    level = _functorch._vmap_increment_nesting(b, "error")
    try:
        mine = tree_map(lambda leaf: _functorch._add_batch_dim(leaf, 0, level), trees)
        return tree_map(lambda leaf: _stacked(leaf, level, b), function(*mine))
    finally:
        _functorch._vmap_decrement_nesting()


_prepared = cache(lazy_load_decompositions)


def _stacked(leaf: Any, level: int, b: int) -> Tensor:
    """[b, ...] of what a function returned for one client."""
    if not isinstance(leaf, Tensor):
        raise TypeError(f"what is computed for one client must be tensors, got {type(leaf).__name__}")
    out: Tensor = _functorch._remove_batch_dim(leaf, level, b, 0)
    return out


class _Few(NamedTuple):
    """The clients of one vmap that are computed."""

    level: int  # of that vmap
    clients: int


_FEW: ContextVar[_Few | None] = ContextVar("few", default=None)


@contextmanager
def first_only(count: int | None) -> Iterator[None]:
    """In here opaque operations compute the first ``count`` clients of the innermost vmap; the others' results are 0.

    The one client of ``count = 1`` is computed as outside vmap. None: all clients.
    """
    if count is None or _functorch.peek_interpreter_stack() is None:
        yield
        return
    token = _FEW.set(_Few(retrieve_current_functorch_interpreter().level(), count))
    try:
        yield
    finally:
        _FEW.reset(token)


def opaque(alone: Callable[..., Any], together: Callable[..., Any], *arguments: Any) -> Any:
    """Call ``alone(*arguments)``, or inside vmap ``together`` on the stacked arguments of all clients.

    A vmap inside that one (an algorithm that evaluates its client at many points) makes b times as many "clients".

    Args:
        alone: takes one client's arguments, returns a tensor or a tuple of tensors.
        together: takes them with a leading client dimension [b] on every tensor, and returns tensors with one. A tensor
            that all clients share arrives expanded (its leading stride is 0).
        arguments: tensors, and whatever else both need; only tensors are stacked.
    """
    if _functorch.peek_interpreter_stack() is None:
        return alone(*arguments)
    interpreter = retrieve_current_functorch_interpreter()
    if not isinstance(interpreter, VmapInterpreter):
        raise TypeError("an objective's value and gradients cannot be differentiated; use obj.grad and obj.value")
    level, b = interpreter.level(), interpreter.batch_size()
    unwrapped = [_unwrap(a, level) for a in arguments]
    with interpreter.lower():
        stacked = [
            a if dim == 0 or not isinstance(a, Tensor) else a.expand(b, *a.shape) if dim is None else a.movedim(dim, 0)
            for a, dim in unwrapped
        ]
        few = _FEW.get()
        if few is not None and few.level == level and few.clients < b:
            out = _of_first(few.clients, b, alone, together, stacked)
        else:
            out = opaque(together, _merged(together), *stacked)
    if isinstance(out, tuple):
        return tuple(_functorch._add_batch_dim(t, 0, level) for t in out)
    return _functorch._add_batch_dim(out, 0, level)


def _of_first(
    count: int, b: int, alone: Callable[..., Any], together: Callable[..., Any], stacked: list[Any]
) -> Tensor | tuple[Tensor, ...]:
    """What ``together`` gives for the first clients, and zeros for the others: tensors [b, ...]."""
    if count == 1:
        one = opaque(alone, together, *(a[0] if isinstance(a, Tensor) else a for a in stacked))
        out = tuple(t[None] for t in one) if isinstance(one, tuple) else one[None]
    else:
        out = opaque(together, _merged(together), *(a[:count] if isinstance(a, Tensor) else a for a in stacked))
    return tuple(_padded(t, b) for t in out) if isinstance(out, tuple) else _padded(out, b)


def _padded(some: Tensor, b: int) -> Tensor:
    """[count, ...] -> [b, ...]."""
    out = some.new_zeros(b, *some.shape[1:])
    out[: len(some)] = some
    return out


def depth() -> int:
    """How many transforms of ``torch.func`` enclose this call."""
    return int(_functorch.get_dynamic_layer_stack_depth())


def _merged(together: Callable[..., Any]) -> Callable[..., Any]:
    """``together`` for tensors [b, s, ...] of two enclosing vmaps: as b * s clients."""

    def run(*arguments: Any) -> Any:
        sizes = next(a for a in arguments if isinstance(a, Tensor)).shape[:2]
        out = together(*(a.flatten(0, 1) if isinstance(a, Tensor) else a for a in arguments))
        return tuple(t.unflatten(0, sizes) for t in out) if isinstance(out, tuple) else out.unflatten(0, sizes)

    return run


def _unwrap(argument: Any, level: int) -> tuple[Any, int | None]:
    """An argument without this vmap's wrapper, and the position of its client dimension (None: shared by all)."""
    if isinstance(argument, Tensor) and _functorch.maybe_get_level(argument) == level:
        return _functorch.get_unwrapped(argument), _functorch.maybe_get_bdim(argument)
    return argument, None
