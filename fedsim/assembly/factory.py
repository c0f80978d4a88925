"""A model's constructor as a configuration describes it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from fedsim.assembly.problems import prefixed
from fedsim.fields import check_fields

MODEL_KEYS = ("batchnorm", "init", "init_skip", "freeze", "train", "lora", "output")
"""Keys of every model, beside its own options; an option of the same name is the model's."""


@dataclass(frozen=True)
class ModelFactory:
    """A model's constructor with its options, called once the data set is known.

    Attributes:
        target: a factory or an ``nn.Module`` class; ``input_shape`` and ``outputs`` are passed if it takes them.
        options: its other arguments.
        batchnorm: policy of ``fedsim.models.validate``.
    """

    target: Callable[..., Any]
    options: Mapping[str, Any]
    batchnorm: Literal["error", "groupnorm", "frozen", "local", "average"] = "error"

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def __name__(self) -> str:
        """The target's name, for messages."""
        return getattr(self.target, "__name__", type(self.target).__name__)

    def __call__(self, input_shape: tuple[int, ...], outputs: int) -> Any:
        """The model for samples of this shape and this number of outputs."""
        from torch import nn

        from fedsim.models.policy import converted

        parameters = inspect.signature(self.target).parameters
        data = {k: v for k, v in (("input_shape", input_shape), ("outputs", outputs)) if k in parameters}
        with prefixed("model", parameters.keys() - data.keys()):
            model = self.target(**data, **self.options)
            return converted(model, self.batchnorm) if isinstance(model, nn.Module) else model
