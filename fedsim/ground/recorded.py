"""A function of tensors as the operations that it comes to, which can be run again without the Python between them.

On small models the Python between two operations (vmap, autograd, trees, the algorithm's own lines) takes several times
as long as the operations. Recorded they are the same operations of torch in the same order, so the same bits.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from operator import getitem
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._python_dispatch import TorchDispatchMode

from fedsim.ground.as_function import as_function
from fedsim.ground.tree import leaves, tree_map

MOST = 500
"""Operations of a recording: beyond these Python is no longer what takes the time."""

_SAME = (torch.ops.aten.detach.default, torch.ops.aten.alias.default, torch.ops.aten.lift_fresh.default)
"""Operations that without gradients give back what they get."""


class Unrecordable(Exception):
    """The function looks at numbers, draws some, or is too long."""


def recorded(function: Callable[..., Any], *trees: Any) -> tuple[Any, Callable[..., Any]]:
    """What ``function`` gives for some trees, and a function that does the same with others of the same shapes.

    Args:
        function: takes trees of tensors and returns one. What it does must depend on nothing else that changes; every
            other tensor that it uses is a constant.
        trees: of tensors.

    Raises:
        Unrecordable: in the middle of it, where it cannot be recorded.
    """
    given = leaves(trees)
    recorder = _Recorder(given)
    token = _RECORDER.set(recorder)
    try:
        with recorder:
            out = function(*trees)
    finally:
        _RECORDER.reset(token)
    results = [recorder.node(leaf) for leaf in leaves(out)]
    if any(node.op == "get_attr" for node in results):
        raise Unrecordable("a constant is given back, into which somebody may write")
    recorder.graph.output(results)
    run = as_function(recorder.graph, recorder.constants, dict(recorder.seen.values()))
    form = tree_map(lambda leaf: None, out)

    def again(*others: Any) -> Any:
        values = iter(run(*leaves(others)))
        return tree_map(lambda _: next(values), form)

    return out, again


def outside(function: Callable[..., Tensor], *given: Tensor) -> Tensor:
    """``function(*given)``, which computes with something else than torch: recordings call it as it is.

    Args:
        function: returns a new tensor, which depends on what is given and on nothing that changes.
        given: tensors.
    """
    recorder = _RECORDER.get()
    return function(*given) if recorder is None else recorder.called(function, given)


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes down every operation that runs below it."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else the first operation imports torch's compiler, which takes seconds

    def __init__(self, given: list[Tensor]):
        super().__init__()  # type: ignore[no-untyped-call]
        self.graph: fx.Graph = fx.Graph()
        self.constants: dict[str, Tensor] = {}
        self.seen: dict[int, tuple[fx.Node, Tensor]] = {}  # by id, and alive, so that no other tensor gets the id
        for number, tensor in enumerate(given):
            self.seen[id(tensor)] = self.graph.placeholder(f"given_{number}"), tensor

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if {torch.Tag.data_dependent_output, torch.Tag.nondeterministic_seeded} & {*func.tags}:
            raise Unrecordable(str(func))
        if len(self.graph.nodes) > MOST:
            raise Unrecordable(f"more than {MOST} operations")
        out = func(*args, **kwargs)
        if func in _SAME or (func is torch.ops.aten.permute.default and [*args[1]] == [*range(len(args[1]))]):
            self.seen[id(out)] = self.node(args[0]), out
            return out
        node = self.graph.call_function(func, self._nodes(args), self._nodes(kwargs))
        if isinstance(out, Tensor):
            self.seen[id(out)] = node, out
        elif isinstance(out, (tuple, list)):
            for number, one in enumerate(out):
                self.seen[id(one)] = self.graph.call_function(getitem, (node, number)), one
        else:
            raise Unrecordable(str(func))
        return out

    def called(self, function: Callable[..., Tensor], given: tuple[Tensor, ...]) -> Tensor:
        """What a function gives that is called as a whole."""
        mode: Any = self  # whose methods torch does not annotate
        mode.__exit__(None, None, None)  # what happens inside is the function's own
        try:
            out = function(*given)
        finally:
            mode.__enter__()
        self.seen[id(out)] = self.graph.create_node("call_function", function, self._nodes(given), {}, "outside"), out
        return out

    def node(self, value: Any) -> Any:
        """The node of a tensor; anything else stays what it is."""
        if not isinstance(value, Tensor):
            return value
        if id(value) not in self.seen:
            name = f"constant_{len(self.seen)}"
            self.constants[name] = value
            self.seen[id(value)] = self.graph.create_node("get_attr", name), value
        return self.seen[id(value)][0]

    def _nodes(self, value: Any) -> Any:
        if isinstance(value, (tuple, list)):
            return type(value)(self._nodes(v) for v in value)
        return {k: self._nodes(v) for k, v in value.items()} if isinstance(value, dict) else self.node(value)


_RECORDER: ContextVar[_Recorder | None] = ContextVar("recorder", default=None)
