"""What a model must be so that many clients can share one set of kernels, one flat vector and one address space."""

from __future__ import annotations

from typing import get_args

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from fedsim.errors import InputError, require
from fedsim.models.policy import OWNED, Policy, converted


def validate(model: nn.Module, batchnorm: Policy = "error") -> nn.Module:
    """Refuse a model that clients cannot share: running statistics, integer or no parameters.

    Parameters with ``requires_grad=True`` are trained and communicated. Frozen ones and buffers are constants, shared
    by all clients of all rounds and never communicated; ``fedsim.models.build`` checks that ``forward`` leaves them
    alone. With ``local`` and ``average`` buffers that ``forward`` writes have an owner.

    Args:
        model: changed in place when batch normalisation is converted.
        batchnorm: ``groupnorm`` replaces every BatchNorm of c channels by GroupNorm of two groups, or of one when c
            is odd or below 4 (a group of one channel would erase a 1x1 image); weight and bias are kept. ``frozen``
            replaces it by one that uses its stored statistics in training mode too. ``local`` and ``average`` leave it.

    Returns:
        The model.

    Raises:
        InputError: names the module or parameter.
    """
    # Long because it is a list: each check names one thing that a model may not have, and what to do instead.
    require(isinstance(model, nn.Module), "model", "be or give a torch.nn.Module", type(model).__name__)
    require(batchnorm in get_args(Policy), "batchnorm", f"be one of {', '.join(get_args(Policy))}", batchnorm)
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        raise InputError(
            "model must be an ordinary torch.nn.Module, got one made by torch.jit.script or torch.jit.trace, whose "
            "forward cannot be looked into; give the module that it was made of"
        )
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta:
            raise InputError(
                f"model's {name} must hold numbers, got a tensor on the device 'meta', which has none; build the model "
                "on the cpu"
            )
    model = converted(model, batchnorm)
    for path, module in model.named_modules():
        kind = type(module).__name__
        if (
            batchnorm not in OWNED
            and isinstance(module, _NormBase)
            and (module.track_running_stats or "BatchNorm" in kind)
        ):
            mixes = " and which mixes samples, so that per-sample gradients do not exist" if "BatchNorm" in kind else ""
            raise InputError(
                f"model has {kind} at {path or 'the top'}, whose running statistics have no owner when clients share "
                f"a round{mixes}; use model=resnet18_gn, a model with GroupNorm, or model.batchnorm=groupnorm to "
                "convert it; frozen, local and average keep it"
            )
    parameters = dict(model.named_parameters())
    for name, parameter in parameters.items():
        if isinstance(parameter, nn.UninitializedParameter):
            raise InputError(f"model parameter {name} must have a shape, got one of a lazy module; give its sizes")
    require(len(parameters) > 0, "model", "have parameters to train", type(model).__name__)
    left, none = any(p.requires_grad for p in parameters.values()), "every one frozen (requires_grad=False)"
    require(left, "model", "have parameters to train", none, "leave some of them requires_grad=True")
    for name, parameter in parameters.items():
        if not parameter.is_floating_point():
            raise InputError(f"model parameter {name} must be floating point, got {parameter.dtype}; make it a buffer")
    kinds = sorted({str(p.dtype).removeprefix("torch.") for p in parameters.values()})
    must = "have parameters of one dtype, which engine.dtype then changes as a whole"
    require(len(kinds) == 1, "model", must, ", ".join(kinds), "cast none of its parts")
    refuse_parameter_hooks(model)
    return model


def refuse_parameter_hooks(model: nn.Module) -> None:
    """Hooks on a parameter's gradient are lost when torch copies the parameter, and workers have copies.

    Raises:
        InputError: names the parameter.
    """
    for name, parameter in model.named_parameters():
        if parameter._backward_hooks or parameter._post_accumulate_grad_hooks:
            raise InputError(
                f"model parameter {name} has a hook on its gradient, which torch loses when the model is copied for "
                "the workers; change it in forward instead, for example by w * mask + (w * (1 - mask)).detach()"
            )
