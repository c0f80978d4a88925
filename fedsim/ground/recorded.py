"""A function of tensors as the operations that it comes to, which can be run again without the Python between them.

On small models the Python between two operations (vmap, autograd, trees, the algorithm's own lines) takes several times
as long as the operations. Recorded they are the same operations of torch in the same order, so the same bits.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from operator import getitem
from typing import Any
from weakref import ref

import torch
from torch import Tensor, fx
from torch.utils._python_dispatch import TorchDispatchMode

from fedsim.ground.as_function import as_function
from fedsim.ground.tree import leaves, tree_map

MOST = 500
"""Operations of a recording: beyond these Python is no longer what takes the time."""

_SAME = (torch.ops.aten.detach.default, torch.ops.aten.alias.default, torch.ops.aten.lift_fresh.default)
"""Operations that without gradients give back what they get."""


_VIEWS = (
    torch.ops.aten.split_with_sizes.default,
    torch.ops.aten.view.default,
    torch.ops.aten.transpose.int,
    torch.ops.aten.unsqueeze.default,
)
"""Operations that give the same part of the same memory whenever they are called: once is enough."""

_OF_SHAPES = (
    torch.ops.aten.zeros_like.default,
    torch.ops.aten.ones_like.default,
    torch.ops.aten.new_zeros.default,
    torch.ops.aten.new_ones.default,
)
"""Operations that look at no number of the tensor that they get."""

KEPT = 2**20
"""Bytes of a value that is computed once and kept; larger ones are computed again, but views of what is kept anyway."""


class Unrecordable(Exception):
    """The function looks at numbers, draws some, is too long, or uses what is trained."""


class Stale(Exception):
    """A constant of the recording has been written into since."""


def recorded(function: Callable[..., Any], *trees: Any) -> tuple[Any, Callable[..., Any]]:
    """What ``function`` gives for some trees, and a function that does the same with others of the same shapes.

    Args:
        function: takes trees of tensors and returns one. What it does must depend on nothing else that changes; every
            other tensor that it uses is a constant.
        trees: of tensors.

    Raises:
        Unrecordable: in the middle of it, where it cannot be recorded.
        Stale: by the function that is returned, before it computes anything, if a constant has other numbers by now.
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
    used = list(recorder.constants.values())
    run = as_function(recorder.graph, recorder.constants, recorder.fixed, recorder.values)
    form = tree_map(lambda leaf: None, out)
    versions = [(t, t._version) for t in used]

    def again(*others: Any) -> Any:
        if any(t._version != version for t, version in versions):
            raise Stale
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
        self.held: set[int] = set()  # where the constants lie
        self.fixed: set[fx.Node] = set()  # nodes that come to the same every time
        self.values: dict[fx.Node, Tensor] = {}  # what they came to, where that may be kept
        self.seen: dict[int, tuple[fx.Node, Any]] = {}  # by id, as long as the tensor lives, which is not kept alive
        self.views: dict[tuple[Any, str], Any] = {}
        for number, tensor in enumerate(given):
            self._see(tensor, self.graph.placeholder(f"given_{number}"))

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if {torch.Tag.data_dependent_output, torch.Tag.nondeterministic_seeded} & {*func.tags}:
            raise Unrecordable(str(func))
        if len(self.graph.nodes) > MOST:
            raise Unrecordable(f"more than {MOST} operations")
        out = func(*args, **kwargs)
        if func in _SAME or (func is torch.ops.aten.permute.default and [*args[1]] == [*range(len(args[1]))]):
            self._see(out, self.node(args[0]))
            return out
        nodes = self._nodes(args)
        if func is torch.ops.aten.transpose.int and nodes[0].target is func and nodes[0].args[1:] == nodes[1:]:
            self._see(out, nodes[0].args[0])  # there and back
            return out
        called = func, repr(nodes)
        node: Any = self.views.get(called)
        if node is None:
            node = self._fixed(self.graph.call_function(func, nodes, self._nodes(kwargs)))
            if isinstance(out, (tuple, list)):
                each = (self.graph.call_function(getitem, (node, number)) for number in range(len(out)))
                node = [self._fixed(one) for one in each]
            if func in _VIEWS:
                self.views[called] = node
        if isinstance(out, Tensor):
            self._see(out, node)
        elif isinstance(out, (tuple, list)):
            for one, part in zip(out, node, strict=True):
                if isinstance(one, Tensor):
                    self._see(one, part)
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
        self._see(out, self.graph.create_node("call_function", function, self._nodes(given), {}, "outside"))
        return out

    def _fixed(self, node: fx.Node) -> fx.Node:
        """The node, noted as one that comes to the same every time where it follows from such nodes and shapes."""
        if node.target in _OF_SHAPES or self.fixed.issuperset(node.all_input_nodes):
            self.fixed.add(node)
        return node

    def _see(self, tensor: Tensor, node: fx.Node) -> None:
        if node in self.fixed:
            storage = tensor.untyped_storage()
            if storage.nbytes() <= KEPT or storage.data_ptr() in self.held:
                self.values[node] = tensor
        number = id(tensor)
        self.seen[number] = node, ref(tensor, lambda _: self.seen.pop(number, None))

    def node(self, value: Any) -> Any:
        """The node of a tensor; anything else stays what it is."""
        if not isinstance(value, Tensor):
            return value
        if id(value) not in self.seen:
            if value.requires_grad:  # of a module that is given other numbers each time
                raise Unrecordable("a parameter that is trained")
            name = f"constant_{len(self.graph.nodes)}"
            self.constants[name] = value
            self.held.add(value.untyped_storage().data_ptr())
            self._see(value, self.graph.create_node("get_attr", name))
            self.fixed.add(self.seen[id(value)][0])
        return self.seen[id(value)][0]

    def _nodes(self, value: Any) -> Any:
        if isinstance(value, (tuple, list)):
            return type(value)(self._nodes(v) for v in value)
        return {k: self._nodes(v) for k, v in value.items()} if isinstance(value, dict) else self.node(value)


_RECORDER: ContextVar[_Recorder | None] = ContextVar("recorder", default=None)
