"""One layer for b clients at once: the kernels behind ``fedsim.kernels.stacked``.

A value of the interpreted model is an ``Act`` in one of two layouts. *Plain*, [b, ...]: what each client's own run
would hold, with the clients in front. *Grouped*, [m, b*c, h, w]: the images of all clients side by side in the channel
dimension, so that one grouped convolution, pooling or group normalisation serves all. On the CPU grouped tensors lie
in memory channels last, [m, h, w, b*c]: max-pooling is 8 times faster there, grouped convolution twice. Conversions
happen where a layer needs the other layout: images become grouped once, and plain again when they are flattened.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedsim.kernels.stacked_products import normalised, rows_times
from fedsim.models.dropout import dim_of

Params: TypeAlias = Mapping[str, Tensor]
"""{name: [b, *shape]}; the leading stride may be anything, 0 included."""

KEYS = ".keys"
"""Where ``Params`` has the keys [b, m] of the examples' dropout: no parameter can have this name."""

DIMS = ".dims"
"""Where they have the examples' dimension of what is dropped, [places] int64 (``fedsim.models.mask_dims``)."""

Names: TypeAlias = Mapping[int, str]
"""id of a trained parameter of the model -> its name in the layout (one name for tied parameters)."""


class Act(NamedTuple):
    """A stacked value."""

    data: Tensor  # plain [b, ...] or grouped [m, b*c, h, w]
    b: int  # clients
    grouped: bool = False
    shared: bool = False  # images that a constant weight made, of all clients in one batch: they stay plain

    @property
    def dim(self) -> int:
        """Dimensions of one client's value."""
        return self.data.dim() if self.grouped else self.data.dim() - 1

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one client's value."""
        if not self.grouped:
            return tuple(self.data.shape[1:])
        m, bc, h, w = self.data.shape
        return (m, bc // self.b, h, w)


Kernel: TypeAlias = Callable[..., Any]
"""(params, *values, **constants) -> value, where values are ``Act`` or Python numbers."""


class Unstackable(Exception):
    """The model has no stacked form; the message names the layer or the call and says why."""


def with_keys(params: Params, keys: Tensor | None, dims: Sequence[int] | None = None) -> Params:
    """Parameters, and beside them the keys [b, m] of the examples and where these lie in what is dropped."""
    if keys is None:
        return params
    return {**params, KEYS: keys, **({} if dims is None else {DIMS: torch.tensor(dims, dtype=torch.int64)})}


def mask_dim(params: Params, place: int) -> int:
    """The examples' dimension of what is dropped at a place."""
    return dim_of(params[DIMS].tolist() if DIMS in params else None, place)


def plain(act: Act) -> Tensor:
    """[b, ...] of a value, a view where possible."""
    if not act.grouped:
        return act.data
    m, bc, h, w = act.data.shape
    return act.data.view(m, act.b, bc // act.b, h, w).transpose(0, 1)


def grouped(act: Act) -> Tensor:
    """[m, b*c, h, w] of a value of images [b, m, c, h, w]."""
    if act.grouped:
        return act.data
    b, m, c, h, w = act.data.shape
    if act.data.is_cuda:
        return act.data.transpose(0, 1).reshape(m, b * c, h, w)
    # Channels last in memory, for which the grouped convolutions of the CPU are fastest (see ``conv2d``).
    pixels = act.data.permute(1, 3, 4, 0, 2).contiguous()  # reshape alone would leave a view when c = 1
    return pixels.view(m, h, w, b * c).permute(0, 3, 1, 2)


def operand(parameter: Tensor, names: Names) -> Callable[[Params, int], Tensor]:
    """How a kernel of b clients finds a weight [b, *shape]: each one's own, or a constant that all of them read."""
    name = names.get(id(parameter))
    if name is None:
        return lambda params, b: parameter.detach().expand(b, *parameter.shape)
    return lambda params, b: params[name]


def elementwise(op: Callable[..., Tensor]) -> Kernel:
    """Kernel of an operation that treats every number alone; the layout stays."""

    def run(params: Params, x: Act, *args: Any, **kwargs: Any) -> Act:
        return x._replace(data=op(x.data, *args, **kwargs))

    return run


def per_channel(op: Callable[..., Tensor]) -> Kernel:
    """Kernel of an operation that treats every channel of an image alone (pooling)."""

    def run(params: Params, x: Act, *args: Any, **kwargs: Any) -> Act:
        if x.dim != 4:
            raise Unstackable(f"values of {x.dim} dimensions, need images [m, c, h, w]")
        out = op(x.data.flatten(0, 1) if x.shared else grouped(x), *args, **kwargs)
        if not isinstance(out, Tensor):
            raise Unstackable("indices asked for")
        return x._replace(data=out.view(x.b, -1, *out.shape[1:])) if x.shared else Act(out, x.b, True)

    return run


def broadcast(op: Callable[..., Any]) -> Kernel:
    """Kernel of an operation on two values, or a value and a number, with each client's own broadcasting."""

    def run(params: Params, x: Any, y: Any) -> Any:
        if not (isinstance(x, Act) and isinstance(y, Act)):
            known = x if isinstance(x, Act) else y
            if isinstance(x, Tensor) or isinstance(y, Tensor):  # what all clients share, of any rank
                rank = max(v.dim if isinstance(v, Act) else v.dim() for v in (x, y))
                wide = (plain(v).reshape(v.b, *(1,) * (rank - v.dim), *v.shape) if v is known else v for v in (x, y))
                return Act(op(*wide), known.b)
            bare = [v.data if isinstance(v, Act) else v for v in (x, y)]
            return known._replace(data=op(*bare)) if isinstance(known, Act) else op(*bare)
        if x.shape == y.shape and (x.grouped or y.grouped):  # a shortcut of a ResNet: no copy into another layout
            return Act(op(grouped(x), grouped(y)), x.b, True)
        # Broadcasting aligns last dimensions. With [b] in front, a value of fewer dimensions would meet another
        # client's.
        rank = max(x.dim, y.dim)
        left, right = (plain(v).reshape(v.b, *(1,) * (rank - v.dim), *v.shape) for v in (x, y))
        return Act(op(left, right), x.b, shared=x.shared and y.shared)

    return run


def reshape(params: Params, x: Act, *sizes: Any) -> Act:
    """``x.view(...)`` or ``x.reshape(...)`` of each client's value."""
    if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)):
        sizes = tuple(sizes[0])
    return Act(plain(x).reshape(x.b, *sizes), x.b)


def flatten(params: Params, x: Act, start_dim: int = 0, end_dim: int = -1) -> Act:
    """``torch.flatten`` of each client's value."""
    start, end = (v + 1 if v >= 0 else v for v in (start_dim, end_dim))
    return Act(plain(x).flatten(start, end), x.b)


def flatten_as(start_dim: int, end_dim: int) -> Kernel:
    """Kernel of ``nn.Flatten(start_dim, end_dim)``."""
    return lambda params, x: flatten(params, x, start_dim, end_dim)


def size(params: Params, x: Act, dim: int | None = None) -> Any:
    """``x.size()`` of each client's value."""
    return x.shape if dim is None else x.shape[dim]


def shape(params: Params, x: Act, name: str) -> tuple[int, ...]:
    """``x.shape`` of each client's value."""
    return x.shape


def parameter(name: str) -> Kernel:
    """Kernel of a parameter that forward uses by itself, outside any layer: each client's own, [b, *shape]."""
    return lambda params: Act(params[name], params[name].shape[0])


def linear(module: nn.Linear, names: Names) -> Kernel:
    """[b, ..., f] -> [b, ..., o] by one batched matrix product.

    One row for each example is taken as W x^T, so that the gradient of W comes out in the layout of W: 1.3 to 3 times
    faster, gradient included, than x W^T, whose gradient has to be transposed. A constant W takes all clients' rows in
    one product.
    """
    if id(module.weight) not in names:
        return _shared_linear(module, names)
    weight, bias = names[id(module.weight)], None if module.bias is None else operand(module.bias, names)

    def run(params: Params, x: Act) -> Act:
        data, w, shift = plain(x), params[weight], None if bias is None else bias(params, x.b)
        if data.dim() == 3:
            return Act(_product(w, data.transpose(1, 2), shift).transpose(1, 2), x.b)
        if data.dim() == 2:
            return Act(_product(w, data.unsqueeze(2), shift).squeeze(2), x.b)
        rows = rows_times(data.reshape(x.b, -1, data.shape[-1]), w, shift)  # a sequence: what follows wants its rows
        return Act(rows.view(*data.shape[:-1], -1), x.b)

    return run


def _shared_linear(module: nn.Linear, names: Names) -> Kernel:
    bias = None if module.bias is None else operand(module.bias, names)

    def run(params: Params, x: Act) -> Act:
        out = F.linear(plain(x), module.weight.detach())
        shift = None if bias is None else bias(params, x.b)
        return Act(out if shift is None else out + shift.reshape(x.b, *(1,) * (out.dim() - 2), -1), x.b)

    return run


def _product(weight: Tensor, columns: Tensor, bias: Tensor | None) -> Tensor:
    """[b, o, f] @ [b, f, m] + [b, o] -> [b, o, m]."""
    if bias is None:
        return torch.bmm(weight, columns)
    return torch.baddbmm(bias.unsqueeze(2), weight, columns)


def input_channels(module: nn.Conv2d) -> int:
    """Input channels of each group, by which a convolution is wide or not."""
    return module.in_channels // module.groups


def conv2d(module: nn.Conv2d, names: Names, wide: int) -> Kernel:
    """One convolution with b times the groups, or what is faster at its shape.

    Measured on one AVX-512 core, forward and backward: grouped channels last wins up to 16 input channels (1.2 to 2.5
    times over one convolution per client), loses from 32 = ``wide`` on; at 2x2 pixels and less channels first is 1.8
    times faster; where only one pixel comes out, a matrix product of the taps that touch the image is 6 times faster.
    With a constant weight the images of all clients are one batch.
    """
    weight, bias = operand(module.weight, names), None if module.bias is None else operand(module.bias, names)
    constant_weight = id(module.weight) not in names
    simple = module.groups == 1 and module.dilation == (1, 1) and not isinstance(module.padding, str)
    one_client_fills = input_channels(module) >= wide

    def convolve(data: Tensor, w: Tensor, shift: Tensor | None, groups: int) -> Tensor:
        return F.conv2d(data, w, shift, module.stride, module.padding, module.dilation, groups)

    def one_by_one(data: Tensor, w: Tensor, shift: Tensor | None) -> Tensor:
        form = torch.contiguous_format if prod(_result(module, data)) <= 4 else torch.channels_last
        images = (image.contiguous(memory_format=form) for image in data.chunk(len(w), 1))
        shifts = (None,) * len(w) if shift is None else shift.unbind()
        each = zip(images, w.unbind(), shifts, strict=True)
        return torch.cat([convolve(*one, module.groups) for one in each], 1)

    def run(params: Params, x: Act) -> Act:
        if x.dim != 4:
            raise Unstackable(f"values of {x.dim} dimensions, need images [m, c, h, w]")
        shift = None if bias is None else bias(params, x.b)
        if constant_weight:
            out = convolve(plain(x).flatten(0, 1), module.weight.detach(), None, module.groups)
            out = out.view(x.b, -1, *out.shape[1:])
            return Act(out if shift is None else out + shift[:, None, :, None, None], x.b, shared=True)
        data, w = grouped(x), weight(params, x.b)
        if simple and _result(module, data) == (1, 1):
            out = _one_pixel(module, data, w, shift)
        elif one_client_fills and not data.is_cuda:
            out = one_by_one(data, w, shift)
        else:
            out = convolve(data, w.flatten(0, 1), None if shift is None else shift.reshape(-1), x.b * module.groups)
        return Act(out, x.b, True)

    return run


def _result(module: nn.Conv2d, data: Tensor) -> tuple[int, int]:
    """Height and width of a convolution of data [m, c, h, w]."""
    if isinstance(module.padding, str):  # "same" or "valid": the size matters for speed only
        return data.shape[2], data.shape[3]
    sides = zip(data.shape[2:], module.kernel_size, module.stride, module.padding, module.dilation, strict=True)
    height, width = ((side + 2 * p - d * (k - 1) - 1) // s + 1 for side, k, s, p, d in sides)
    return height, width


def _one_pixel(module: nn.Conv2d, data: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A convolution with one pixel as its result: [m, b*c, h, w] -> [m, b*o, 1, 1]."""
    for dim in (0, 1):
        k, p, side = module.kernel_size[dim], int(module.padding[dim]), data.shape[2 + dim]
        first, end = p, min(k, side + p)  # the other taps meet padding only
        weight = weight.narrow(3 + dim, first, end - first)
        data = data.narrow(2 + dim, 0, end - first)
    b, o = weight.shape[:2]
    columns = data.reshape(len(data), b, -1).permute(1, 2, 0)
    return _product(weight.flatten(2), columns, bias).permute(2, 0, 1).reshape(-1, b * o, 1, 1)


def group_norm(module: nn.GroupNorm, names: Names) -> Kernel:
    """Group normalisation: of images one call with b times the groups, of other values one with b times the rows."""
    affine = (operand(module.weight, names), operand(module.bias, names)) if module.affine else None

    def run(params: Params, x: Act) -> Act:
        if x.dim == 4 and not x.shared:
            scale, shift = (p(params, x.b).reshape(-1) for p in affine) if affine else (None, None)
            return Act(F.group_norm(grouped(x), x.b * module.num_groups, scale, shift, module.eps), x.b, True)
        data = plain(x)
        out = F.group_norm(data.flatten(0, 1), module.num_groups, eps=module.eps).view_as(data)
        if affine:
            shape = (x.b, 1, module.num_channels, *(1,) * (data.dim() - 3))
            scale, shift = (p(params, x.b).reshape(shape) for p in affine)
            out = torch.addcmul(shift, out, scale)
        return Act(out, x.b, shared=x.shared)

    return run


def layer_norm(module: nn.LayerNorm, names: Names) -> Kernel:
    """Normalisation of the last dimensions, then each client's own scale and shift."""
    weight, bias = (None if p is None else operand(p, names) for p in (module.weight, module.bias))

    def run(params: Params, x: Act) -> Act:
        data, shape = plain(x), tuple(module.normalized_shape)
        if weight is None:
            return Act(F.layer_norm(data, shape, eps=module.eps), x.b)
        shift = None if bias is None else bias(params, x.b)
        rows = data.reshape(x.b, -1, *shape)
        return Act(normalised(rows, shape, weight(params, x.b), shift, module.eps).view(data.shape), x.b)

    return run


def embedding(module: nn.Embedding, names: Names) -> Kernel:
    """A lookup in one table of b * vocabulary rows, in which client i's tokens are shifted by i * vocabulary."""
    if id(module.weight) not in names:
        return lambda params, x: Act(F.embedding(plain(x), module.weight.detach()), x.b)
    weight = names[id(module.weight)]

    def run(params: Params, x: Act) -> Act:
        tokens = plain(x)
        first = torch.arange(x.b, device=tokens.device).mul_(module.num_embeddings)
        shifted = tokens + first.view(-1, *(1,) * (tokens.dim() - 1))
        return Act(F.embedding(shifted, params[weight].flatten(0, 1)), x.b)

    return run
