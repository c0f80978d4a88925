"""What becomes of a model's BatchNorm, and of whatever else its forward writes: ``model.batchnorm``."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from fedsim.errors import InputError
from fedsim.ground.frozen_norm import FrozenNorm
from fedsim.models.dropout import trial_masks

Policy: TypeAlias = Literal["error", "groupnorm", "frozen", "local", "average"]
"""``error``: no BatchNorm. ``groupnorm``: GroupNorm in its place. ``frozen``: it uses its stored statistics always.
``local``: every client keeps statistics of its own. ``average``: they are sent, averaged and broadcast."""

OWNED = ("local", "average")
"""Policies under which forward may write buffers in training mode: these have an owner."""


def policy_of(model: Any) -> Policy:
    """The policy that a factory was given; ``error`` where it was given none."""
    mine: Any = getattr(model, "batchnorm", None)
    if mine not in get_args(Policy):  # a module, a class or a function of a user's, with attributes of its own
        return "error"
    return policy_of(getattr(model, "model", None)) if mine == "error" else mine


def converted(module: nn.Module, policy: Policy) -> nn.Module:
    """The module with what the policy puts in the place of every BatchNorm inside it; changed in place.

    Raises:
        InputError: ``frozen`` for a layer that has no stored statistics.
    """
    if policy not in ("groupnorm", "frozen"):
        return module
    return _converted(module, policy, "", {})


def _converted(module: nn.Module, policy: Policy, path: str, done: dict[int, nn.Module]) -> nn.Module:
    """One layer may have several places: ``done`` holds what took the place of each module, by its id."""
    if id(module) not in done:
        done[id(module)] = module  # it may hold itself
        done[id(module)] = _instead(module, policy, path, done)
    return done[id(module)]


def _instead(module: nn.Module, policy: Policy, path: str, done: dict[int, nn.Module]) -> nn.Module:
    if policy == "groupnorm" and isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)):
        return _grouped(module)
    plain = isinstance(module, _BatchNorm) and type(module).forward in (_BatchNorm.forward, nn.SyncBatchNorm.forward)
    if policy == "frozen" and plain and isinstance(module, _BatchNorm):
        if module.running_mean is None or module.running_var is None:
            raise InputError(
                f"model has {type(module).__name__} at {path or 'the top'} with track_running_stats=False, which has "
                "no statistics that model.batchnorm=frozen could use; use groupnorm"
            )
        return FrozenNorm(module)
    for name, child in list(module._modules.items()):
        new = child if child is None else _converted(child, policy, f"{path}.{name}".lstrip("."), done)
        if new is not child:
            setattr(module, name, new)
    return module


def _grouped(module: _BatchNorm) -> nn.GroupNorm:
    c = module.num_features
    norm = nn.GroupNorm(2 if c % 2 == 0 and c >= 4 else 1, c, eps=module.eps, affine=module.affine)
    if module.affine:
        with torch.no_grad():
            norm.weight.copy_(module.weight)
            norm.bias.copy_(module.bias)
    return norm


def written_buffers(model: nn.Module, sample: Tensor) -> tuple[str, ...]:
    """The names of the buffers that a forward pass in training mode writes; ``model`` is a copy for this.

    Running statistics are, and whatever a pass on these samples writes beside.
    """
    model.train()
    norms = {
        f"{path}.{name}".lstrip(".")
        for path, module in model.named_modules()
        if isinstance(module, _NormBase) and module.track_running_stats
        for name, _ in module.named_buffers(recurse=False)
    }
    before = {name: (b, b._version) for name, b in model.named_buffers()}
    with torch.no_grad(), trial_masks(model):
        model(sample)
    return tuple(
        name
        for name, b in model.named_buffers()
        if name in norms or name not in before or before[name][0] is not b or before[name][1] != b._version
    )
