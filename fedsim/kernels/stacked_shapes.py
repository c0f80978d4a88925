"""Operations on dimensions of one value, for b clients at once: every dimension counts within one client's value."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fedsim.kernels import stacked_values as values
from fedsim.kernels.stacked_ops import Act, Kernel, Params, Unstackable, elementwise, plain
from fedsim.kernels.stacked_values import axis


def _acts(out: Any, b: int) -> Any:
    """A tensor, or several, as values."""
    return Act(out, b) if isinstance(out, Tensor) else tuple(Act(part, b) for part in out)


def along(op: Callable[..., Any]) -> Kernel:
    """Kernel of an operation along one dimension or several, which must be said."""

    def run(params: Params, x: Act, dim: Any = None, *args: Any, **kwargs: Any) -> Any:
        if dim is None or (isinstance(dim, (tuple, list)) and not dim):
            raise Unstackable("goes over the examples of a client; say dim=")
        dims = tuple(axis(d, x.dim) for d in dim) if isinstance(dim, (tuple, list)) else axis(dim, x.dim)
        return _acts(op(plain(x), dims, *args, **kwargs), x.b)

    return run


def _sizes(sizes: tuple[Any, ...]) -> tuple[int, ...]:
    """(2, 3), ((2, 3),) or ([2, 3],) -> (2, 3)."""
    return tuple(sizes[0]) if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)) else sizes


def transpose(params: Params, x: Act, dim0: int, dim1: int) -> Act:
    """``x.transpose(dim0, dim1)``."""
    return Act(plain(x).transpose(axis(dim0, x.dim), axis(dim1, x.dim)), x.b)


def permute(params: Params, x: Act, *dims: Any, **named: Any) -> Act:
    """``x.permute(dims)``."""
    return Act(plain(x).permute(0, *(axis(d, x.dim) % (x.dim + 1) for d in _sizes(dims or (named["dims"],)))), x.b)


def turned(params: Params, x: Act, name: str = "mT") -> Act:
    """``x.mT``."""
    return transpose(params, x, -1, -2)


def unsqueeze(params: Params, x: Act, dim: int) -> Act:
    """``x.unsqueeze(dim)``."""
    return Act(plain(x).unsqueeze(axis(dim, x.dim + 1)), x.b)


def split(params: Params, x: Act, split_size_or_sections: Any, dim: int = 0) -> Any:
    """``x.split(sizes, dim)``."""
    sizes: Any = split_size_or_sections
    return _acts(torch.split(plain(x), list(sizes) if isinstance(sizes, tuple) else sizes, axis(dim, x.dim)), x.b)


def chunk(params: Params, x: Act, chunks: int, dim: int = 0) -> Any:
    """``x.chunk(chunks, dim)``."""
    return _acts(plain(x).chunk(chunks, axis(dim, x.dim)), x.b)


def unbind(params: Params, x: Act, dim: int = 0) -> Any:
    """``x.unbind(dim)``."""
    return _acts(plain(x).unbind(axis(dim, x.dim)), x.b)


def narrow(params: Params, x: Act, dim: int, start: int, length: int) -> Act:
    """``x.narrow(dim, start, length)``."""
    return Act(plain(x).narrow(axis(dim, x.dim), start, length), x.b)


def flip(params: Params, x: Act, *dims: Any, **named: Any) -> Act:
    """``x.flip(dims)``."""
    return Act(plain(x).flip([axis(d, x.dim) for d in _sizes(dims or (named["dims"],))]), x.b)


def unflatten(params: Params, x: Act, dim: int, sizes: Any) -> Act:
    """``x.unflatten(dim, sizes)``."""
    return Act(torch.unflatten(plain(x), axis(dim, x.dim), tuple(sizes)), x.b)


def expanded(params: Params, x: Act, *sizes: Any) -> Act:
    """``x.expand(sizes)``."""
    sizes = _sizes(sizes)
    return Act(values.lifted(x, len(sizes)).expand(x.b, *sizes), x.b)


def repeat(params: Params, x: Act, *sizes: Any) -> Act:
    """``x.repeat(sizes)``."""
    sizes = _sizes(sizes)
    return Act(values.lifted(x, len(sizes)).repeat(1, *sizes), x.b)


def getitem(params: Params, x: Any, index: Any) -> Any:
    """``x[index]`` of each client's value, by numbers, slices and at most one tensor of whole numbers."""
    if not isinstance(x, Act):
        return x[index]
    parts = index if isinstance(index, tuple) and not isinstance(index, Act) else (index,)
    for part in parts:
        tensor = isinstance(part, Tensor) and part.dtype in (torch.int64, torch.int32)
        if not (part is None or part is Ellipsis or isinstance(part, (int, slice)) or tensor) or isinstance(part, bool):
            raise Unstackable(f"an index of type {type(part).__name__}")
    if sum(isinstance(part, Tensor) for part in parts) > 1:
        raise Unstackable("several tensors as indices")
    every = (slice(None), *parts)
    return Act(plain(x)[every], x.b)


def attribute(params: Params, x: Any, name: str) -> Any:
    """``x.device`` and ``x.dtype``, which all clients share, and ``x.ndim``."""
    return x.dim if name == "ndim" else getattr(x.data, name)


def dimensions(params: Params, x: Act) -> int:
    """``x.dim()``."""
    return x.dim


def new(name: str) -> Kernel:
    """Kernel of ``x.new_zeros(...)`` and its like: a tensor of one client's shape, the same for all."""
    return lambda params, x, *args, **kwargs: getattr(x.data, name)(*args, **kwargs)


def _softmin(x: Tensor, dim: Any, **kwargs: Any) -> Tensor:
    return F.softmin(x, dim, **kwargs)


FIXED: dict[Any, Kernel] = {"dim": dimensions, **{f"new_{n}": new(f"new_{n}") for n in ("zeros", "ones", "full")}}
"""Calls on a client's value whose result is no client's own."""

ATTRIBUTES: dict[str, Kernel] = {
    "device": attribute,
    "dtype": attribute,
    "ndim": attribute,
    "mT": turned,
    "values": lambda params, x, name: x[0],
    "indices": lambda params, x, name: x[1],
}

_ALONG = {
    name: along(getattr(torch, name))
    for name in (
        "softmax", "log_softmax", "mean", "sum", "amax", "amin", "logsumexp", "var", "std", "cumsum", "prod",
        "argmax", "argmin", "max", "min",
    )
}  # fmt: skip
_ONE: dict[str, Kernel] = {
    "transpose": transpose, "swapaxes": transpose, "permute": permute, "unsqueeze": unsqueeze, "split": split,
    "chunk": chunk, "unbind": unbind, "narrow": narrow, "flip": flip, "unflatten": unflatten,
    "squeeze": along(torch.squeeze), **_ALONG,
}  # fmt: skip
_PLACES: dict[str, Kernel] = {
    name: values.together(getattr(torch, name))
    for name in (
        "add", "sub", "mul", "div", "true_divide", "pow", "maximum", "minimum", "masked_fill", "eq", "ne", "lt", "le",
        "gt", "ge", "logical_and", "logical_or", "addcmul", "lerp",
    )
}  # fmt: skip
_EACH: dict[str, Kernel] = {
    name: elementwise(getattr(torch, name))
    for name in (
        "exp", "log", "log1p", "expm1", "sqrt", "rsqrt", "abs", "neg", "sin", "cos", "square", "clamp", "sign", "erf",
        "reciprocal", "detach", "clone", "logical_not", "tril", "triu", "softplus",
    )
    if hasattr(torch, name)
}  # fmt: skip
_OPERATORS = (
    operator.pow, operator.floordiv, operator.mod, operator.eq, operator.ne, operator.lt, operator.le, operator.gt,
    operator.ge, operator.and_, operator.or_,
)  # fmt: skip

KERNELS: dict[Any, Kernel] = {
    **{name: kernel for table in (_ONE, _PLACES, _EACH) for name, kernel in table.items()},
    **{getattr(torch, n): k for t in (_ONE, _PLACES, _EACH) for n, k in t.items() if hasattr(torch, n)},
    **{op: values.together(op) for op in _OPERATORS},
    **{name: elementwise(getattr(Tensor, name)) for name in ("float", "double", "long", "type_as", "to", "bool")},
    operator.getitem: getitem,
    operator.neg: elementwise(operator.neg),
    operator.invert: elementwise(operator.invert),
    "expand": expanded,
    "repeat": repeat,
    "where": lambda params, x, condition, other: values.together(torch.where)(params, condition, x, other),
    torch.where: values.together(torch.where),
    torch.cat: values.join(torch.cat),
    torch.concat: values.join(torch.cat),
    torch.stack: values.join(torch.stack),
    "matmul": values.matmul,
    "bmm": values.matmul,
    operator.matmul: values.matmul,
    torch.matmul: values.matmul,
    torch.bmm: values.matmul,
    torch.einsum: values.einsum,
    torch.zeros_like: elementwise(torch.zeros_like),
    torch.ones_like: elementwise(torch.ones_like),
    F.linear: values.linear_of,
    F.layer_norm: values.layer_norm_of,
    F.softmax: along(F.softmax),
    F.log_softmax: along(F.log_softmax),
    F.softmin: along(_softmin),
    F.glu: lambda params, x, dim=-1: along(F.glu)(params, x, dim),
    F.one_hot: lambda params, x, num_classes: Act(F.one_hot(plain(x), num_classes), x.b),
}
"""Kernels of functions, and by their names of methods, on one value or several."""
