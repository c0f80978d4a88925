"""A recorded graph as one plain Python function, in which nothing is computed again that is the same every time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

_aten = torch.ops.aten
_METHODS = {
    _aten.split_with_sizes.default: "split_with_sizes",
    _aten.view.default: "view",
    _aten.transpose.int: "transpose",
    _aten.unsqueeze.default: "unsqueeze",
    _aten.expand.default: "expand",
    _aten.squeeze.dim: "squeeze",
    _aten.bmm.default: "bmm",
    _aten.baddbmm.default: "baddbmm",
    _aten.relu.default: "relu",
}
"""Operations of most layers by the names of their methods, which are called in half of the time."""


def as_function(
    graph: fx.Graph, held: dict[str, Tensor], fixed: set[fx.Node], values: Mapping[fx.Node, Tensor]
) -> Callable[..., Any]:
    """The function of a graph: takes its placeholders' tensors in order, and returns a tuple.

    Args:
        graph: of calls of functions; it is changed.
        held: its constants, by the names of their nodes ``get_attr``; extended by what is computed once.
        fixed: nodes that follow from constants and shapes alone.
        values: what such nodes had come to when it was recorded, where that may be kept.
    """
    _fold(graph, held, fixed, values)
    graph.eliminate_dead_code()
    return _function(graph, held)


def _fold(graph: fx.Graph, held: dict[str, Tensor], fixed: set[fx.Node], values: Mapping[fx.Node, Tensor]) -> None:
    """Put constants in the places of values that follow from constants and shapes alone."""
    calls = [node for node in graph.nodes if node.op == "call_function"]
    if any(_writes(node.target) for node in calls):
        return  # one of them might be what is written into
    given_back = _ancestors(next(node for node in graph.nodes if node.op == "output"), fixed)
    for node in calls:
        if node in given_back or node not in values:
            continue
        held[f"computed_{len(held)}"] = values[node]
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
            if node.target in _METHODS and not node.kwargs:
                function, arguments = f"{arguments[0]}.{_METHODS[node.target]}", arguments[1:]
            else:
                function = called(getattr(node.target, "_op", node.target))
            lines.append(f"{node.name} = {function}({', '.join(arguments)})")
        elif node.op == "output":
            lines.append(f"return {written(tuple(node.args[0]))}")
        over = [before.name for before in node.all_input_nodes if last[before] is node and before.op != "get_attr"]
        if over and node.op == "call_function":
            lines.append(f"del {', '.join(over)}")
    exec("\n    ".join(lines), names)
    again: Callable[..., Any] = names["again"]
    return again
