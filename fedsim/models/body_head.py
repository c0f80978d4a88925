"""The shape every model of fedsim has: a body that makes features and a head, the last linear layer."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from fedsim.errors import InputError, require


class BodyHead(nn.Module):
    """A model in two parts: ``forward(x) = head(body(x))``.

    Personalized algorithms train, share or replace the two parts separately.

    Attributes:
        body: [m, *input_shape] -> features [m, f] (sequences: [m, t] -> [m, t, f]).
        head: the last linear layer, [..., f] -> [..., outputs].
    """

    def __init__(self, body: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.body = body
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        """[m, *input_shape] -> [m, outputs] (sequences: [m, t] -> [m, t, outputs])."""
        out: Tensor = self.head(self.body(x))
        return out


MOST_PARAMETERS = 2 * 10**9
"""Of the models that come with fedsim: 8 GB in float32, and a run holds several; a block holds one for each client."""


def require_size(name: str, value: object, parameters: int) -> None:
    """Raise InputError where an option makes a model of more than ``MOST_PARAMETERS``, before it is built."""
    require(parameters <= MOST_PARAMETERS, name, f"make a model of at most {MOST_PARAMETERS:.0e} parameters", value)


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
}


def image_shape(input_shape: tuple[int, ...], model: str) -> tuple[int, int, int]:
    """(channels, height, width) of an image sample.

    Raises:
        InputError: the samples are not images.
    """
    if len(input_shape) != 3:
        raise InputError(
            f"model={model} needs images of shape (channels, height, width), got samples of shape {input_shape}; "
            "use model=mlp or model=linear"
        )
    channels, height, width = input_shape
    return channels, height, width
