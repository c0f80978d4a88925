"""Models that give more than one tensor, of which one is the outputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from fedsim.errors import InputError


class Output(nn.Module):
    """A model of which one output is taken: of a dictionary by its key, of a tuple by its number, else an attribute.

    Files of such a model have the names of the model itself.

    >>> import torch
    >>> class Two(nn.Linear):
    ...     def forward(self, x):
    ...         return {"logits": super().forward(x), "inputs": x}
    >>> Output(Two(4, 3), "logits")(torch.zeros(2, 4)).shape
    torch.Size([2, 3])

    Args:
        model: gives a dictionary, a tuple, or an object with attributes.
        name: of the output.
    """

    def __init__(self, model: nn.Module, name: str | int) -> None:
        super().__init__()
        self.model, self.name = model, name

    def forward(self, x: Tensor) -> Any:
        """The outputs of the model for x."""
        return taken(self.model(x), self.name)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The model's own, by its names."""
        return self.model.state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """As the model's own."""
        return self.model.load_state_dict(*args, **kwargs)


def first_output(found: Any) -> str:
    """How one of a model's outputs may be called, for messages: the first key of a dictionary, a number, or NAME."""
    if isinstance(found, Mapping):
        return str(next(iter(found), "NAME"))
    return "0" if isinstance(found, (tuple, list)) else "NAME"


def taken(found: Any, name: str | int) -> Any:
    """One of a model's outputs.

    Raises:
        InputError: there is none of this name.
    """
    if isinstance(found, Tensor):
        raise InputError(f"model.output must be left out for a model that gives one tensor, got {name!r}")
    if isinstance(found, Mapping):
        there, has = list(map(str, found)), name in found
    elif isinstance(found, (tuple, list)) and not (isinstance(name, str) and hasattr(found, name)):
        there, has = [f"0..{len(found) - 1}"], isinstance(name, int) and -len(found) <= name < len(found)
    else:
        has, there = isinstance(name, str) and hasattr(found, name), [type(found).__name__]
        if has:
            return getattr(found, str(name))
    if not has:
        raise InputError(
            f"model.output must be one of the model's outputs, got {name!r}; there are: {', '.join(there)}"
        )
    return found[name]
