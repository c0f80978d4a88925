"""A model for many clients at once: stacked parameters {name: [b, *shape]} and inputs [b, m, ...].

The model is traced once with ``torch.fx`` (layers of ``torch.nn`` stay whole) and the graph is run node by node with
the kernels of ``fedsim.kernels.stacked_ops``, under plain autograd. Each client's outputs and gradients are those of
its own model to rounding, and no client's numbers depend on another's. A model with a layer or a call that has no
stacked kernel is refused with the reason; it then runs under vmap or one client at a time.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fedsim.errors import InputError, first_line
from fedsim.ground.frozen_norm import FrozenNorm
from fedsim.ground.layout import Layout
from fedsim.kernels import stacked_attention as attention
from fedsim.kernels import stacked_dropout as drop
from fedsim.kernels import stacked_layers as layers
from fedsim.kernels import stacked_ops as ops
from fedsim.kernels import stacked_shapes as shapes
from fedsim.kernels import stacked_values as operands
from fedsim.kernels import traced
from fedsim.kernels.precision import lowered, raised
from fedsim.kernels.stacked_ending import Ending
from fedsim.kernels.stacked_ops import Act, Kernel, Names, Params, Unstackable
from fedsim.kernels.tuning import Tuning

__all__ = ["StackedModel", "Unstackable", "stack"]


@dataclass(frozen=True)
class StackedStep:
    """One node of the graph: ``target = run(params, *args, **kwargs)``, then forget ``last``."""

    target: str
    label: str
    path: str | None  # of the layer, where it is one
    parameter: str | None  # its name in the layout, where forward uses one by itself
    kind: Any  # a type of layers, a function or the name of a method
    run: Kernel
    args: tuple[Any, ...]  # fx.Node where a value goes
    kwargs: dict[str, Any]
    fixed: bool  # whether the value is no client's own
    reads: tuple[str, ...]  # values
    last: tuple[str, ...]  # values that nobody needs after this step


Watch: TypeAlias = Callable[..., Any]
"""(step, params, *args, **kwargs) -> what ``step.run(params, *args, **kwargs)`` gives the next steps."""


@dataclass(frozen=True)
class StackedModel:
    """A traced model.

    Attributes:
        steps: the nodes of the graph in order, inputs and outputs left out.
        source: name of the input.
        result: name of the value that holds the outputs.
        head_input: name of the value that enters ``model.head``, or None when there is no such layer.
        ending: the linear layer that makes the outputs, or None where something else does.
    """

    steps: tuple[StackedStep, ...]
    source: str
    result: str
    head_input: str | None
    ending: Ending | None = None
    lower: torch.dtype | None = None  # in which products are taken, where it is not that of the parameters

    def __call__(self, params: Params, inputs: Tensor) -> Tensor:
        """Outputs of every client.

        Args:
            params: {name: [b, *shape]}; a leading stride of 0 (one model for all) is fine.
            inputs: [b, m, ...] each client's examples.

        Returns:
            [b, m, ..., outputs].
        """
        return self._run(params, inputs, self.result)[0]

    def answers(self, params: Params, inputs: Tensor) -> tuple[Tensor, Tensor | None]:
        """Outputs of every client, and their features where the model has a head; arguments as for a call."""
        wanted = [self.result, *([] if self.head_input is None else [self.head_input])]
        outputs, *features = self._run(params, inputs, *wanted)
        return outputs, features[0] if features else None

    def features(self, params: Params, inputs: Tensor) -> Tensor:
        """[b, m, ..., f]: what enters ``model.head``; arguments as for a call.

        Raises:
            InputError: the model has no layer named head.
        """
        if self.head_input is None:
            raise InputError("model must have a submodule named head, called once, to give features; name it so")
        return self._run(params, inputs, self.head_input)[0]

    def mean_loss(self, params: Params, inputs: Tensor, y: Tensor, mask: Tensor | None) -> Tensor | None:
        """Mean cross-entropy [b] over all places of the unmasked examples, the outputs never being there at once.

        Args:
            params: as for a call.
            inputs: as for a call.
            y: [b, m, t] the class at each place.
            mask: [b, m] or None.

        Returns:
            None where the model does not end so, or where it is not worth while.
        """
        end = self.ending
        if end is None or self.lower is not None or not end.takes(y):
            return None
        (x,) = self._run(params, inputs, end.source)
        if x.dim() != 4 or x.shape[:-1] != y.shape:  # the loss itself will say it
            return None
        return end.mean_loss(params, x, y, mask)

    def watched(self, params: Params, inputs: Tensor, watch: Watch) -> Tensor:
        """Outputs of every client, while ``watch`` runs every step; arguments as for a call."""
        return self._run(params, inputs, self.result, watch=watch)[0]

    def _run(self, params: Params, inputs: Tensor, *wanted: str, watch: Watch | None = None) -> list[Tensor]:
        """The wanted values, which must be among those that are kept."""
        values: dict[str, Any] = {self.source: Act(inputs, inputs.shape[0])}

        def value(node: fx.Node) -> Any:
            return values[node.name]

        with lowered(inputs.device, self.lower):
            for step in self.steps:
                if all(name in values for name in wanted):  # features do not need the head
                    break
                args, kwargs = fx.map_arg(step.args, value), fx.map_arg(step.kwargs, value)
                run = step.run if watch is None else partial(watch, step)
                try:
                    values[step.target] = run(params, *args, **kwargs)
                except Unstackable as error:
                    raise Unstackable(f"{step.label}: {error}") from None
                for name in step.last:
                    del values[name]
        return [raised(ops.plain(values[name]), self.lower) for name in wanted]


def stack(model: nn.Module, layout: Layout, wide: int = Tuning.wide) -> StackedModel:
    """The stacked form of a model.

    Args:
        model: its structure is used, and its frozen parameters; those that are trained are not.
        layout: names of its parameters.
        wide: from how many input channels convolutions run client by client, as of ``Tuning``.

    Raises:
        Unstackable: names the layer or call that has no stacked kernel.
    """
    for path, module in model.named_modules():
        if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
            raise Unstackable(f"{type(module).__name__} at {path or 'the top'} has hooks")
    # Tracing runs the user's forward, which may keep what it sees; a proxy left behind would fail in the next real
    # call.
    own = [(module, dict(vars(module))) for module in model.modules()]
    try:
        with torch.set_grad_enabled(model.training):  # and as before afterwards, whatever forward does
            tracer = _Tracer()
            graph = tracer.trace(model)
        held = {n.target: operator.attrgetter(str(n.target))(model) for n in graph.nodes if n.op == "get_attr"}
    except Unstackable:
        raise
    except Exception as error:  # fx raises many types; user code runs inside
        raise Unstackable(f"torch.fx cannot trace {type(model).__name__}: {first_line(error)}") from error
    finally:
        for module, attributes in own:  # fx leaves the tensors that it met in the module, forward may leave proxies
            vars(module).clear()
            vars(module).update(attributes)
    if tracer.switched:
        raise Unstackable(f"forward of {type(model).__name__} {tracer.switched}")
    # Tied weights have several names and one place in the flat vector: all names lead to the one that the layout has.
    # Frozen ones have none: a kernel takes them from the module.
    parameters = dict(model.named_parameters(remove_duplicate=False))
    names = {id(parameters[name]): name for name in layout.names}
    modules = dict(model.named_modules())
    for node in reversed(graph.nodes):  # last states and weights of attention that forward does not use
        if not node.users and node.op == "call_function" and node.target in _UNUSED:
            graph.erase_node(node)
    nodes = list(graph.nodes)
    sources = [node for node in nodes if node.op == "placeholder"]
    result = nodes[-1].args[0]
    if len(sources) != 1:
        raise Unstackable(f"forward of {type(model).__name__} takes {len(sources)} inputs, need one")
    if not isinstance(result, fx.Node):
        raise Unstackable(f"forward of {type(model).__name__} returns {type(result).__name__}, need one tensor")
    head = tracer.head_inputs[0] if len(tracer.head_inputs) == 1 else None
    keep = {result, *tracer.head_inputs}
    fixed: set[fx.Node] = set()
    dropouts = _dropouts(nodes, modules)
    kernels = {
        n: dropouts[n] if n in dropouts else _kernel(n, modules, held, names, fixed, wide)
        for n in nodes[:-1]
        if n.op != "placeholder"
    }
    steps: list[StackedStep] = []
    seen: set[fx.Node] = set()
    # Backwards, so that the first step that reads a value is the last one that needs it: activations of a whole block
    # are large, and those that autograd does not keep are freed there.
    for node in reversed(nodes[:-1]):
        last = tuple(n.name for n in node.all_input_nodes if n not in seen and n not in keep)
        seen.update(node.all_input_nodes)
        if node in kernels:
            path = str(node.target) if node.op == "call_module" else None
            parameter = names.get(id(held[node.target])) if node.op == "get_attr" else None
            about = (node.name, _describe(node, modules), path, parameter, _kind(node, modules), kernels[node])
            reads = tuple(n.name for n in node.all_input_nodes)
            steps.append(StackedStep(*about, node.args, node.kwargs, node in fixed, reads, last))
    ends = (None if head is None else head.name, Ending.of(result, modules, names))
    return StackedModel(tuple(reversed(steps)), sources[0].name, result.name, *ends)


class _Tracer(fx.Tracer):
    """``fx.Tracer`` that remembers what enters ``model.head``, and the modes in which a graph cannot be."""

    def __init__(self) -> None:
        super().__init__()
        self.head_inputs: list[fx.Node] = []
        self.switched = ""
        self.modes = _modes()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        leaf = type(m) is FrozenNorm or super().is_leaf_module(m, module_qualified_name)
        return type(m) not in traced.APART and leaf

    def iter(self, obj: Any) -> Iterator[Any]:
        if obj.node.target in ("chunk", torch.chunk):  # of all that can be unpacked the one whose length is said
            count = obj.node.args[1] if len(obj.node.args) > 1 else obj.node.kwargs.get("chunks")
            if isinstance(count, int):
                return iter([obj[k] for k in range(count)])
        return super().iter(obj)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(*args, **kwargs)
        for name, before, now in zip(("gradients", "inference mode", "autocast"), self.modes, _modes(), strict=True):
            if before != now and not self.switched:
                self.switched = f"switches {name} {'on' if now else 'off'} at {node.name}, which a trace forgets"
        return node

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if self.path_of_module(m) == "head" and args:
            self.head_inputs.append(args[0].node)
        if type(m) in traced.APART:
            forward = partial(traced.APART[type(m)], m)
        return super().call_module(m, forward, args, kwargs)


def _modes() -> tuple[bool, bool, bool]:
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")


_WITH_PARAMETERS: dict[type[nn.Module], Callable[[Any, Names], Kernel]] = {
    nn.Linear: ops.linear,
    nn.GroupNorm: ops.group_norm,
    nn.LayerNorm: ops.layer_norm,
    nn.Embedding: ops.embedding,
    **layers.WITH_PARAMETERS,
}
_ELEMENTWISE = (
    nn.ReLU, nn.GELU, nn.Tanh, nn.Sigmoid, nn.SiLU, nn.LeakyReLU, nn.Softplus, nn.ELU, nn.Identity,
    F.relu, F.gelu, F.tanh, F.sigmoid, F.silu, F.leaky_relu, F.softplus, F.elu,
    torch.relu, torch.tanh, torch.sigmoid, *layers.ELEMENTWISE,
)  # fmt: skip
_PER_CHANNEL = (
    nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d,
    F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, torch.max_pool2d,
)  # fmt: skip
BROADCAST = (
    operator.add, operator.sub, operator.mul, operator.truediv, operator.iadd, operator.isub, operator.imul,
    torch.add, torch.sub, torch.mul,
)  # fmt: skip
_METHODS: dict[str, Kernel] = {
    "view": ops.reshape,
    "reshape": ops.reshape,
    "flatten": ops.flatten,
    "size": ops.size,
    "relu": ops.elementwise(torch.relu),
    "tanh": ops.elementwise(torch.tanh),
    "sigmoid": ops.elementwise(torch.sigmoid),
    "contiguous": ops.elementwise(Tensor.contiguous),
}
_KERNELS: dict[Any, Kernel] = {
    **shapes.KERNELS,
    **layers.FUNCTIONS,
    F.scaled_dot_product_attention: attention.scaled_dot_product_attention,
    **{kernel: kernel for kernel in traced.OWN},
}
_UNUSED = (*traced.OWN, operator.getitem, torch.stack)
_IN_PLACE = (operator.iadd, operator.isub, operator.imul)
_VIEWS = ("view", "reshape", "flatten", "contiguous", torch.flatten, nn.Flatten, nn.Identity, *drop.LAYERS, *drop.CALLS)


def _dropouts(nodes: list[fx.Node], modules: dict[str, nn.Module]) -> dict[fx.Node, Kernel]:
    """Kernels of the nodes that drop something, each with its place among them."""
    found: dict[fx.Node, Kernel] = {}
    places = 0
    for node in nodes:
        module = modules[str(node.target)] if node.op == "call_module" else None
        kind: Any = node.target if module is None else type(module)
        if kind in attention.DROPPING and attention.dropping(node) > 0:
            places += kind is not attention.attention_weights  # which shows those of the attention before
            found[node] = partial(_KERNELS[kind], place=places - 1)
        if kind not in (drop.LAYERS if module is not None else drop.CALLS):
            continue
        _refuse_shared_writes(node, modules, kind)
        if node.all_input_nodes != list(node.args[:1]):
            raise Unstackable(f"{_describe(node, modules)} has no stacked kernel for these arguments")
        p = drop.rate(node, modules)
        inplace = bool(node.kwargs.get("inplace") or getattr(module, "inplace", False))
        found[node] = drop.dropout(kind, p, places, inplace)
        places += p > 0
    return found


def _kernel(
    node: fx.Node,
    modules: dict[str, nn.Module],
    held: dict[Any, Tensor],
    names: Names,
    fixed: set[fx.Node],
    wide: int,
) -> Kernel:
    """The kernel of one node.

    Args:
        node: of the traced graph.
        modules: by path.
        held: parameters and other tensors of the module that forward uses by themselves, by their paths.
        names: id of a trained parameter -> its name in the layout.
        fixed: nodes whose values are no client's own, as sizes and masks; extended by this node where its is.
        wide: as of ``stack``.

    Raises:
        Unstackable: there is none.
    """
    inputs = node.all_input_nodes
    if node.op == "get_attr":
        value = held[node.target]
        if id(value) in names:
            return ops.parameter(names[id(value)])
        fixed.add(node)
        return operands.constant(value)
    kind = _kind(node, modules)
    if inputs and fixed.issuperset(inputs) and (node.op == "call_method" or callable(node.target)):
        fixed.add(node)
        return operands.shared_call(node.op, node.target)
    _refuse_shared_writes(node, modules, kind)
    if kind in BROADCAST and not node.kwargs:
        return ops.broadcast(kind)
    if kind in _KERNELS:
        return _KERNELS[kind]
    if not inputs or not node.args or node.args[0] is not inputs[0] or not fixed.issuperset(inputs[1:]):
        raise Unstackable(f"{_describe(node, modules)} has no stacked kernel for these arguments")
    if node.op == "call_module":
        kernel = _module_kernel(str(node.target), modules[str(node.target)], names, wide)
        return operands.positions(kernel) if inputs[0] in fixed else kernel
    if kind is getattr and node.args[1] in shapes.ATTRIBUTES:
        if node.args[1] in ("device", "dtype", "ndim"):
            fixed.add(node)
        return shapes.ATTRIBUTES[str(node.args[1])]
    if kind == "size" or (kind is getattr and node.args[1] == "shape"):
        fixed.add(node)
        return ops.size if kind == "size" else ops.shape
    if kind in shapes.FIXED:
        fixed.add(node)
        return shapes.FIXED[kind]
    if node.op == "call_method" and node.target in _METHODS:
        return _METHODS[str(node.target)]
    if kind is torch.flatten:
        return ops.flatten
    if kind in _ELEMENTWISE:
        return ops.elementwise(kind)
    if kind in _PER_CHANNEL:
        return ops.per_channel(kind)
    raise Unstackable(f"{_describe(node, modules)} has no stacked kernel")


def _kind(node: fx.Node, modules: dict[str, nn.Module]) -> Any:
    """The exact type of a layer, since a subclass may compute something else in its forward; else what is called."""
    return type(modules[str(node.target)]) if node.op == "call_module" else node.target


def _module_kernel(path: str, module: nn.Module, names: Names, wide: int) -> Kernel:
    kind: Any = type(module)
    if isinstance(module, nn.Conv2d) and module.padding_mode != "zeros":
        raise Unstackable(f"Conv2d at {path} pads with {module.padding_mode}, which has no stacked kernel")
    if isinstance(module, nn.Embedding) and (option := _option(module)):
        raise Unstackable(f"Embedding at {path} has {option}, which has no stacked kernel")
    if kind is nn.Conv2d and isinstance(module, nn.Conv2d):
        return ops.conv2d(module, names, wide)
    if kind in _WITH_PARAMETERS:
        return _WITH_PARAMETERS[kind](module, names)
    if isinstance(module, nn.Flatten):
        return ops.flatten_as(module.start_dim, module.end_dim)
    if kind in _ELEMENTWISE:
        return ops.elementwise(module)
    if kind in _PER_CHANNEL:
        return ops.per_channel(module)
    if kind in layers.WITHOUT:
        return layers.WITHOUT[kind](module)
    raise Unstackable(f"{kind.__name__} at {path} has no stacked kernel")


def _option(module: nn.Embedding) -> str:
    """Which option of an embedding changes its gradient or its table: its name, or ""."""
    for name in ("max_norm", "padding_idx"):
        if getattr(module, name) is not None:
            return name
    return "scale_grad_by_freq" if module.scale_grad_by_freq else ""


def _refuse_shared_writes(node: fx.Node, modules: dict[str, nn.Module], kind: Any) -> None:
    """Writing in place is safe only into a value that nobody else reads: layouts may have made copies of it."""
    module = modules.get(str(node.target)) if node.op == "call_module" else None
    if not (kind in _IN_PLACE or node.kwargs.get("inplace") or getattr(module, "inplace", False)):
        return
    source: Any = node.args[0]
    while isinstance(source, fx.Node):
        if len(source.users) > 1 or source.op in ("placeholder", "get_attr"):
            raise Unstackable(f"{_describe(node, modules)} writes in place into a value that is used elsewhere")
        made_by = type(modules[str(source.target)]) if source.op == "call_module" else source.target
        source = source.args[0] if made_by in _VIEWS or made_by in _KERNELS else None


def _describe(node: fx.Node, modules: dict[str, nn.Module]) -> str:
    if node.op == "call_module":
        return f"{type(modules[str(node.target)]).__name__} at {node.target}"
    return f"the call {node.target if node.op == 'call_method' else getattr(node.target, '__name__', node.target)}"
