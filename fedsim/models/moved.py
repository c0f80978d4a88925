"""A module to another device, with the tensors that it holds as plain attributes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def moved(model: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """The module itself, on a device and in a dtype.

    ``nn.Module.to`` leaves what is neither a parameter nor a buffer where it is: tensors that a constructor kept as
    ``self.name = ...``, also in lists, tuples and dictionaries. They come to the device too; their dtype stays.
    """
    model.to(device, dtype)
    if device.type == "cpu":
        return model
    for module in model.modules():
        for name, value in list(vars(module).items()):
            if name not in _OWN and (there := _there(value, device)) is not value:
                vars(module)[name] = there
    return model


_OWN = frozenset(vars(nn.Module()))
"""What every module has: its parameters, buffers, modules and hooks."""


def _there(value: Any, device: torch.device) -> Any:
    """The value, or where it holds tensors that lie elsewhere a copy on the device."""
    if isinstance(value, Tensor):
        return value.to(device)
    if type(value) in (list, tuple):
        found = [_there(one, device) for one in value]
        return type(value)(found) if any(a is not b for a, b in zip(found, value, strict=True)) else value
    if type(value) is dict:
        new = {key: _there(one, device) for key, one in value.items()}
        return new if any(new[key] is not one for key, one in value.items()) else value
    return value
