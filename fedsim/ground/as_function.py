"""A recorded graph as one plain Python function, in which nothing is computed again that is the same every time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

KEPT = 2**20
"""Bytes of a value that is computed once and kept; larger ones are computed again, but views of what is kept anyway."""

_aten = torch.ops.aten
_OF_SHAPES = (_aten.zeros_like.default, _aten.ones_like.default, _aten.new_zeros.default, _aten.new_ones.default)
"""Operations that look at no number of the tensor that they get."""


def as_function(graph: fx.Graph, held: dict[str, Tensor], values: Mapping[fx.Node, Tensor]) -> Callable[..., Any]:
    """The function of a graph: takes its placeholders' tensors in order, and returns a tuple.

    Args:
        graph: of calls of functions; it is changed.
        held: its constants, by the names of their nodes ``get_attr``; extended by what is computed once.
        values: what its nodes had come to when it was recorded.
    """
    _fold(graph, held, values)
    graph.eliminate_dead_code()
    return _function(graph, held)


def _fold(graph: fx.Graph, held: dict[str, Tensor], values: Mapping[fx.Node, Tensor]) -> None:
    """Put constants in the places of values that follow from constants and shapes alone."""
    calls = [node for node in graph.nodes if node.op == "call_function"]
    if any(_writes(node.target) for node in calls):
        return  # one of them might be what is written into
    fixed = {node for node in graph.nodes if node.op == "get_attr"}
    for node in calls:
        if node.target in _OF_SHAPES or fixed.issuperset(node.all_input_nodes):
            fixed.add(node)
    given_back = _ancestors(next(node for node in graph.nodes if node.op == "output"), fixed)
    owned = {value.untyped_storage().data_ptr() for value in held.values()}
    for node in calls:
        value = values.get(node)
        if node not in fixed or node in given_back or value is None:
            continue
        storage = value.untyped_storage()
        if storage.nbytes() > KEPT and storage.data_ptr() not in owned:
            continue
        held[f"computed_{len(held)}"] = value
        with graph.inserting_before(node):
            node.replace_all_uses_with(graph.create_node("get_attr", f"computed_{len(held) - 1}"))


def _writes(function: Any) -> bool:
    """Whether an operation writes into a tensor that it gets."""
    return isinstance(function, torch._ops.OpOverload) and function._schema.is_mutable


def _ancestors(last: fx.Node, among: set[fx.Node]) -> set[fx.Node]:
    """Those ``among`` some nodes that ``last`` is made of, through such nodes alone: somebody may write into these."""
    found: set[fx.Node] = set()
    left = [last]
    while left:
        new = [node for node in left.pop().all_input_nodes if node in among and node not in found]
        found.update(new)
        left += new
    return found


def _function(graph: fx.Graph, held: Mapping[str, Tensor]) -> Callable[..., Any]:
    """Python's own function, whose calls go to torch's operations without what torch has around them in Python."""
    names: dict[str, Any] = {}
    nodes = list(graph.nodes)
    last = {before: node for node in nodes for before in node.all_input_nodes}
    lines = [f"def again({', '.join(node.name for node in nodes if node.op == 'placeholder')}):"]

    def called(value: Any) -> str:
        """The name of a value of this function, by which its lines know it."""
        name = f"value_{len(names)}"
        names[name] = value
        return name

    def written(value: Any) -> str:
        if isinstance(value, fx.Node):
            return value.name
        if isinstance(value, (list, tuple)):
            inside = "".join(f"{written(one)}, " for one in value)
            return f"[{inside}]" if isinstance(value, list) else f"({inside})"
        return repr(value) if value is None or type(value) in (int, bool) else called(value)

    for node in nodes:
        if node.op == "get_attr":
            names[node.name] = held[str(node.target)]
        elif node.op == "call_function":
            arguments = [written(value) for value in node.args]
            arguments += [f"{name}={written(value)}" for name, value in node.kwargs.items()]
            lines.append(f"{node.name} = {called(getattr(node.target, '_op', node.target))}({', '.join(arguments)})")
        elif node.op == "output":
            lines.append(f"return {written(tuple(node.args[0]))}")
        over = [before.name for before in node.all_input_nodes if last[before] is node and before.op != "get_attr"]
        if over and node.op == "call_function":
            lines.append(f"del {', '.join(over)}")
    exec("\n    ".join(lines), names)
    again: Callable[..., Any] = names["again"]
    return again
