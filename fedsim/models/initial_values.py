"""Initial values of a model from a file: every name in its place, or one line about all that are not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from fedsim.errors import InputError
from fedsim.models.names import listed_names, matching
from fedsim.models.pure import identical

KEY = "model.init"


def load_values(model: nn.Module, tensors: Mapping[str, Tensor], file: str, skip: Sequence[str] = ()) -> None:
    """Write a file's tensors into a model, in place, to the bit: a model of float32 becomes one of float64 for them.

    Args:
        model: its parameters and persistent buffers get these values.
        tensors: by the names of ``state_dict``; of tied ones any name will do.
        file: where they come from, for messages.
        skip: patterns of names that keep the model's own values, whatever the file has.

    Raises:
        InputError: in one line, all names that are missing, left over, of another shape or kind, or at odds.
    """
    own = model.state_dict(keep_vars=True)
    skipped = matching("model.init_skip", skip, [*own, *(name for name in tensors if name not in own)], "tensors")
    given = {name: tensor for name, tensor in tensors.items() if name not in skipped}
    there = {id(own[name]) for name in given if name in own}  # a tied weight is there under any of its names
    missing = [name for name, value in own.items() if name not in skipped and id(value) not in there]
    extra = sorted(name for name in given if name not in own)
    shapes = [
        f"{name} {list(given[name].shape)} for {list(value.shape)}"
        for name, value in own.items()
        if name in given and given[name].shape != value.shape
    ]
    kinds = [
        f"{name} {_dtype(value)} for {_dtype(own[name])}"
        for name, value in given.items()
        if name in own and _kind(value) != _kind(own[name])
    ]
    parts = (
        ("without", missing),
        ("with too many", extra),
        ("of other shapes", shapes),
        ("of another kind", kinds),
        ("with two values for one tensor", [] if shapes else _torn(own, given)),
    )
    wrong = [f"{words} {listed_names(names)}" for words, names in parts if names]
    if wrong:
        do = "leave names to the model with model.init_skip=[PATTERN]"
        raise InputError(f"{KEY} must have the tensors of {type(model).__name__}, got {file} {'; '.join(wrong)}; {do}")
    if any(value.dtype == torch.float64 for value in given.values()):
        model.double()
        own = model.state_dict(keep_vars=True)
    with torch.no_grad():
        for name, value in given.items():
            own[name].copy_(value)


def _torn(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    """Names of one tensor of a model, tied weights, which a file gives different values."""
    names: dict[int, list[str]] = {}
    for name in given:
        if name in own:
            names.setdefault(id(own[name]), []).append(name)
    return [
        name for many in names.values() if any(not identical(given[many[0]], given[n]) for n in many) for name in many
    ]


def _kind(value: Tensor) -> str:
    return "complex" if value.is_complex() else "floating" if value.is_floating_point() else "whole"


def _dtype(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")
