"""More layers of ``torch.nn`` for b clients at once, beside those of ``stacked_ops``; and those without parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedsim.ground.frozen_norm import FrozenNorm
from fedsim.kernels.stacked_ops import Act, Kernel, Names, Params, Unstackable, grouped, plain
from fedsim.kernels.stacked_shapes import along, unflatten
from fedsim.kernels.stacked_values import affine


def _own(module: nn.Module, names: Names, params: Params, which: str) -> Act | Tensor | None:
    """A parameter of a layer: each client's own, or the module's where it is not trained."""
    value = getattr(module, which)
    if value is None or id(value) not in names:
        return value  # type: ignore[no-any-return]
    mine = params[names[id(value)]]
    return Act(mine, mine.shape[0])


def rms_norm(module: nn.RMSNorm, names: Names) -> Kernel:
    """Division by the root of the mean square of the last dimensions, then each client's own scale."""

    def run(params: Params, x: Act) -> Act:
        out = F.rms_norm(plain(x), module.normalized_shape, eps=module.eps)
        return Act(affine(out, _own(module, names, params, "weight"), None, x.b), x.b)

    return run


def prelu(module: nn.PReLU, names: Names) -> Kernel:
    """Each client's own slope below zero, one or one for each channel."""

    def run(params: Params, x: Act) -> Act:
        data, slope = plain(x), _weight(module, names, params, x.b)
        slope = slope.reshape(x.b, *(1,) * min(1, x.dim - 1), -1, *(1,) * (x.dim - 2))
        return Act(data.clamp(min=0) + slope * data.clamp(max=0), x.b)

    return run


def _weight(module: nn.Module, names: Names, params: Params, b: int) -> Tensor:
    """[b, ...] the weight of a layer."""
    found = _own(module, names, params, "weight")
    return found.data if isinstance(found, Act) else found.expand(b, *found.shape)  # type: ignore[union-attr]


def _shift(module: nn.Module, names: Names, params: Params, b: int) -> Tensor | None:
    """[b * channels] the shift of a layer, or None."""
    found = _own(module, names, params, "bias")
    if found is None:
        return None
    return (found.data if isinstance(found, Act) else found.expand(b, -1)).reshape(-1)


def conv1d(module: nn.Conv1d, names: Names) -> Kernel:
    """One convolution with b times the groups, all clients side by side in the channels."""
    if module.padding_mode != "zeros":
        raise Unstackable(f"Conv1d pads with {module.padding_mode}")

    def run(params: Params, x: Act) -> Act:
        if x.dim != 3:
            raise Unstackable(f"values of {x.dim} dimensions, need [m, c, l]")
        b, m, c, length = (data := plain(x)).shape
        weight, shift = _weight(module, names, params, b).flatten(0, 1), _shift(module, names, params, b)
        side = data.transpose(0, 1).reshape(m, b * c, length)
        groups = b * module.groups
        out = F.conv1d(side, weight, shift, module.stride, module.padding, module.dilation, groups)
        return Act(out.view(m, b, -1, out.shape[-1]).transpose(0, 1), b)

    return run


def conv_transpose2d(module: nn.ConvTranspose2d, names: Names) -> Kernel:
    """One transposed convolution with b times the groups."""
    if module.padding_mode != "zeros":
        raise Unstackable(f"ConvTranspose2d pads with {module.padding_mode}")
    stride, more = module.stride, module.output_padding
    padding: Any = module.padding  # never a word, unlike a convolution's

    def run(params: Params, x: Act) -> Act:
        if x.dim != 4:
            raise Unstackable(f"values of {x.dim} dimensions, need images [m, c, h, w]")
        weight, shift = _weight(module, names, params, x.b).flatten(0, 1), _shift(module, names, params, x.b)
        groups = x.b * module.groups
        out = F.conv_transpose2d(grouped(x), weight, shift, stride, padding, more, groups, module.dilation)
        return Act(out, x.b, True)

    return run


def row_by_row(op: Callable[..., Tensor], dims: int) -> Kernel:
    """Kernel of an operation that treats every row of a batch alone, on values of so many dimensions."""

    def run(params: Params, x: Act, *args: Any, **kwargs: Any) -> Act:
        if x.dim != dims:
            raise Unstackable(f"values of {x.dim} dimensions, need {dims}")
        out = op(plain(x).flatten(0, 1), *args, **kwargs)
        if not isinstance(out, Tensor):
            raise Unstackable("indices asked for")
        return Act(out.view(x.b, -1, *out.shape[1:]), x.b)

    return run


def frozen_norm(module: FrozenNorm, names: Names) -> Kernel:
    """A scale and a shift for each channel: the stored statistics are all clients' alike, weight and bias their own."""

    def run(params: Params, x: Act) -> Act:
        data, mean, variance = plain(x), module.get_buffer("running_mean"), module.get_buffer("running_var")
        weight, bias = (_own(module, names, params, which) for which in ("weight", "bias"))
        scale = (variance + module.eps).rsqrt()
        scale = scale if weight is None else scale * (weight.data if isinstance(weight, Act) else weight)
        shift = -mean * scale
        shift = shift if bias is None else shift + (bias.data if isinstance(bias, Act) else bias)
        shape = (-1, 1, module.num_features, *(1,) * (data.dim() - 3))
        return Act(torch.addcmul(shift.reshape(shape), data, scale.reshape(shape)), x.b)

    return run


def _said(module: Any) -> int:
    """The dimension of a softmax, which torch guesses where it is not said."""
    if module.dim is None:
        raise Unstackable(f"{type(module).__name__} has no dim; say it")
    return int(module.dim)


WITH_PARAMETERS: dict[type[nn.Module], Callable[[Any, Names], Kernel]] = {
    nn.RMSNorm: rms_norm,
    nn.PReLU: prelu,
    nn.Conv1d: conv1d,
    nn.ConvTranspose2d: conv_transpose2d,
    FrozenNorm: frozen_norm,
}

WITHOUT: dict[type[nn.Module], Callable[[Any], Kernel]] = {
    nn.Softmax: lambda layer: lambda params, x: along(F.softmax)(params, x, _said(layer)),
    nn.LogSoftmax: lambda layer: lambda params, x: along(F.log_softmax)(params, x, _said(layer)),
    nn.Softmin: lambda layer: lambda params, x: along(F.softmin)(params, x, _said(layer)),
    nn.GLU: lambda layer: lambda params, x: along(F.glu)(params, x, layer.dim),
    nn.Unflatten: lambda layer: lambda params, x: unflatten(params, x, layer.dim, layer.unflattened_size),
    **{
        kind: lambda layer, dims=dims: row_by_row(layer, dims)  # type: ignore[misc]
        for dims, kinds in {
            3: (nn.MaxPool1d, nn.AvgPool1d, nn.AdaptiveAvgPool1d, nn.AdaptiveMaxPool1d, nn.ZeroPad1d),
            4: (nn.AdaptiveMaxPool2d, nn.ZeroPad2d, nn.Upsample, nn.PixelShuffle),
        }.items()
        for kind in kinds
    },
}

ELEMENTWISE = (
    nn.Mish, nn.ReLU6, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.SELU, nn.CELU, nn.Softsign, nn.Tanhshrink,
    nn.Softshrink, nn.Hardshrink, nn.LogSigmoid, nn.Threshold,
    F.mish, F.relu6, F.hardtanh, F.hardswish, F.hardsigmoid, F.selu, F.celu, F.softsign, F.tanhshrink, F.softshrink,
    F.hardshrink, F.logsigmoid, F.threshold,
)  # fmt: skip

FUNCTIONS: dict[Any, Kernel] = {
    F.avg_pool1d: row_by_row(F.avg_pool1d, 3),
    F.max_pool1d: row_by_row(F.max_pool1d, 3),
    F.adaptive_avg_pool1d: row_by_row(F.adaptive_avg_pool1d, 3),
    F.interpolate: row_by_row(F.interpolate, 4),
}
