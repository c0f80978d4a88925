"""What a step of a stacked model may be given, and operations on several values at once.

A value is an ``Act``, each client's own; or a tensor that no client's parameters or examples have changed, the same
for all (a mask, positions, a buffer); or Python's: a number, a shape. A client's dimensions count within its own value
and broadcasting aligns last dimensions, so that a client's value never meets another's.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from fedsim.kernels.stacked_ops import Act, Kernel, Params, Unstackable, plain
from fedsim.kernels.stacked_products import rows_times


def by_client(value: Any, b: int) -> Tensor:
    """[b, ...] of a value; what all clients share is repeated without a copy."""
    if isinstance(value, Act):
        return plain(value)
    if isinstance(value, Tensor):
        return value.expand(b, *value.shape)
    raise Unstackable(f"a value of type {type(value).__name__}, need a tensor")


def clients(*values: Any) -> int:
    """How many clients the values are of."""
    for value in values:
        if isinstance(value, Act):
            return value.b
    raise Unstackable("no value of a client's own")


def rank(value: Any) -> int:
    """Dimensions of one client's value; 0 for a number."""
    return value.dim if isinstance(value, Act) else value.dim() if isinstance(value, Tensor) else 0


def shape_of(value: Any) -> tuple[int, ...]:
    """Shape of one client's value."""
    return value.shape if isinstance(value, Act) else tuple(value.shape)


def axis(dim: int, dims: int) -> int:
    """A dimension of one of a client's ``dims`` dimensions, in the stacked value."""
    if not -dims <= dim < dims:
        raise Unstackable(f"dimension {dim} of a value of {dims}")
    return dim + 1 if dim >= 0 else dim


def lifted(value: Any, dims: int) -> Any:
    """An operand whose broadcasting with values of up to ``dims`` dimensions is each client's own."""
    if isinstance(value, Act):
        return plain(value).reshape(value.b, *(1,) * (dims - value.dim), *value.shape)
    return value


def together(op: Callable[..., Tensor]) -> Kernel:
    """Kernel of an operation that treats places of several values alone, with each client's own broadcasting."""

    def run(params: Params, *values: Any, **kwargs: Any) -> Act:
        known = [*values, *kwargs.values()]
        acts = [v for v in known if isinstance(v, Act)]
        if len(acts) == 1 and not any(isinstance(v, Tensor) for v in known):  # a value and numbers: its layout stays
            bare = {k: v.data if isinstance(v, Act) else v for k, v in kwargs.items()}
            return acts[0]._replace(data=op(*(v.data if isinstance(v, Act) else v for v in values), **bare))
        dims = max(rank(v) for v in known)
        named = {k: lifted(v, dims) for k, v in kwargs.items()}
        return Act(op(*(lifted(v, dims) for v in values), **named), clients(*acts))

    return run


def join(op: Callable[..., Tensor]) -> Kernel:
    """Kernel of ``torch.cat``, or of ``torch.stack``, whose dimension is of the result."""
    more = int(op is torch.stack)

    def run(params: Params, tensors: Any, dim: int = 0) -> Act:
        b = clients(*tensors)
        return Act(op([by_client(t, b) for t in tensors], axis(dim, rank(tensors[0]) + more)), b)

    return run


def matmul(params: Params, x: Any, y: Any) -> Act:
    """``x @ y`` of each client, with its own broadcasting of the dimensions before the last two."""
    b, (left, right) = clients(x, y), (rank(x), rank(y))
    if min(left, right) < 1:
        raise Unstackable("a product with a number")
    if isinstance(y, Tensor) and right <= 2:
        return Act(torch.matmul(plain(x), y), b)
    first, second = by_client(x, b), by_client(y, b)
    if left > 2 and right == 2:  # one matrix for all rows
        return Act(torch.bmm(first.flatten(1, -2), second).view(*first.shape[:-1], -1), b)
    first, second = first.unsqueeze(1) if left == 1 else first, second.unsqueeze(-1) if right == 1 else second
    dims = max(first.dim(), second.dim()) - 1
    first, second = (v.reshape(b, *(1,) * (dims - v.dim() + 1), *v.shape[1:]) for v in (first, second))
    out = torch.matmul(first, second)
    out = out.squeeze(-1) if right == 1 else out
    return Act(out.squeeze(-1 if right == 1 else -2) if left == 1 else out, b)


def einsum(params: Params, equation: str, *values: Any) -> Act:
    """``torch.einsum`` of each client, its output dimensions given."""
    before, arrow, after = equation.replace(" ", "").partition("->")
    if not arrow or "." in equation:
        raise Unstackable(f"einsum {equation!r}; give it the form 'ij,jk->ik'")
    free = next(letter for letter in string.ascii_letters if letter not in equation)
    given = zip(before.split(","), values, strict=True)
    marked = ",".join(free + term if isinstance(value, Act) else term for term, value in given)
    bare = [plain(v) if isinstance(v, Act) else v for v in values]
    return Act(torch.einsum(f"{marked}->{free}{after}", *bare), clients(*values))


def linear_of(params: Params, x: Act, weight: Any, bias: Any = None) -> Act:
    """``F.linear`` with a weight that forward uses by itself."""
    data, b = by_client(x, clients(x, weight)), clients(x, weight)
    if isinstance(weight, Tensor) and isinstance(bias, Tensor | None):
        return Act(torch.nn.functional.linear(data, weight, bias), b)
    if rank(weight) != 2 or rank(x) < 2:
        raise Unstackable(f"a weight of {rank(weight)} dimensions for values of {rank(x)}")
    shift = None if bias is None else by_client(bias, b)
    out = rows_times(data.reshape(b, -1, data.shape[-1]), by_client(weight, b), shift)
    return Act(out.view(*data.shape[:-1], -1), b)


def affine(out: Tensor, weight: Any, bias: Any, b: int) -> Tensor:
    """Each client's own scale and shift of the last dimensions of [b, ...]."""
    for op, value in ((torch.mul, weight), (torch.add, bias)):
        if value is not None:
            own = by_client(value, b)
            out = op(out, own.reshape(b, *(1,) * (out.dim() - own.dim()), *own.shape[1:]))
    return out


def layer_norm_of(
    params: Params, x: Act, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: Any = 1e-5
) -> Act:
    """``F.layer_norm`` with a scale and a shift that forward uses by themselves."""
    out = torch.nn.functional.layer_norm(plain(x), tuple(normalized_shape), eps=eps)
    return Act(affine(out, weight, bias, x.b), x.b)


def shared_call(how: str, target: Any) -> Kernel:
    """Kernel of a call on numbers and on tensors that all clients share, as it stands."""
    if how == "call_method":
        return lambda params, x, *args, **kwargs: getattr(x, target)(*args, **kwargs)
    return lambda params, *args, **kwargs: target(*args, **kwargs)


def constant(value: Tensor) -> Kernel:
    """Kernel of a tensor that the module holds and does not train: the same for all clients."""
    return lambda params: value


def positions(kernel: Kernel) -> Kernel:
    """Kernel of a layer on what all clients share, as an embedding of positions: each client's own result."""

    def run(params: Params, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        b = next(iter(params.values())).shape[0]
        return kernel(params, Act(by_client(x, b), b), *args, **kwargs)

    return run


def flat(values: Any) -> Iterator[Any]:
    """The values inside lists and tuples."""
    for value in values:
        yield from flat(value) if isinstance(value, (list, tuple)) and not isinstance(value, Act) else (value,)
