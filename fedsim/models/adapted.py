"""A model made ready for a run: which of its parameters are trained."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from fedsim.errors import InputError, require
from fedsim.fields import check_fields
from fedsim.models.build import call, copied

SHOWN = 8
"""Names that a message lists."""


@dataclass(frozen=True)
class Adapted:
    """A model of which a part is trained: itself a model, wherever one is asked for.

    >>> from fedsim.models import mlp
    >>> model = Adapted(mlp, train=("head.*",))((4,), 3)
    >>> [name for name, p in model.named_parameters() if p.requires_grad]
    ['head.weight', 'head.bias']

    Attributes:
        model: a factory, a class of modules, or a module, which is copied.
        freeze: patterns of names of parameters that stay as they are, such as ``body.*``; ``*`` stands for anything.
        train: patterns of names of the parameters that are trained, all others being frozen; None: as the model says.
    """

    model: Callable[..., Any]
    freeze: tuple[str, ...] = ()
    train: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def __name__(self) -> str:
        """The model's name, for messages."""
        return getattr(self.model, "__name__", type(self.model).__name__)

    def __call__(self, input_shape: tuple[int, ...], outputs: int) -> nn.Module:
        """The model for samples of this shape and this number of outputs."""
        if isinstance(self.model, nn.Module):
            model = copied(self.model)
        else:
            model = call(self.model, input_shape, outputs, {})
        require(isinstance(model, nn.Module), "model", "be or give a torch.nn.Module", type(model).__name__)
        choose_trained(model, self.train, self.freeze)
        return model


def choose_trained(model: nn.Module, train: Sequence[str] | None, freeze: Sequence[str]) -> None:
    """Let a model train the parameters that match ``train`` (None: as they are), but those that match ``freeze``.

    Raises:
        InputError: a pattern matches no parameter, or nothing is left to train.
    """
    parameters = dict(model.named_parameters())
    if train is not None:
        wanted = matching("model.train", train, parameters)
        for name, p in parameters.items():
            p.requires_grad_(name in wanted)
    for name in matching("model.freeze", freeze, parameters):
        parameters[name].requires_grad_(False)
    if not any(p.requires_grad for p in parameters.values()):
        key, value = ("model.freeze", freeze) if freeze else ("model.train", train)
        raise InputError(f"{key} must leave parameters to train, got {list(value or ())}, which leaves none")


def matching(key: str, patterns: Sequence[str], names: Iterable[str], what: str = "parameters") -> set[str]:
    """The names that match one of the patterns.

    Raises:
        InputError: a pattern matches none of them.
    """
    names = list(names)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            shown = ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
            raise InputError(
                f"{key} must be patterns of names of {what}, got {pattern!r}; there are: {shown or 'none'}"
            )
    return {name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)}
