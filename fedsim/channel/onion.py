"""How one vector goes through the layers: each gets the rest of the channel as ``send``; the wire comes last."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from fedsim.channel import wire
from fedsim.channel.base import Bytes, Middleware, Noise
from fedsim.channel.quality import Compressor, contraction
from fedsim.channel.rounding import saturated
from fedsim.channel.wire import Side
from fedsim.ground.opaque import opaque
from fedsim.traits import LayerTraits
from fedsim.traits.declared import layer_traits
from fedsim.types import State

Noises = Callable[[str], Noise]
"""Address within a link (layer, field, which of an outer layer's calls) -> random numbers."""

EMPTY = wire.encoded_size({})
"""Bytes of a message without fields."""


@dataclass(frozen=True)
class Layerwise:
    """What lies further in acts on each parameter of the model on its own, not on the whole vector.

    Vectors that are not as long as the model stay whole.
    """

    traits: ClassVar[LayerTraits] = LayerTraits(layerwise=True)


class Layer(NamedTuple):
    """A layer under its name."""

    name: str  # also of its memory
    middleware: Middleware[Any] | Layerwise
    fields: tuple[str, ...] | None = None  # the fields of a message that it acts on; None: every vector


@dataclass(frozen=True)
class Onion:
    """The layers around one field of a link's messages.

    Attributes:
        name: of the field.
        layers: outermost first.
        parameters: entries of each parameter of the model, for ``Layerwise``.
        encode: really encode and decode.
    """

    name: str
    layers: tuple[Layer, ...]
    parameters: tuple[int, ...] = ()
    encode: bool = False

    def send(self, v: Tensor, memory: State, noises: Noises) -> tuple[Tensor, State, Bytes]:
        """Send v [d]; ``memory`` is {layer: state}."""
        new = dict(memory)
        got, _, sent = Rest(self, 0, (), noises, memory, new)(v)
        return narrowed(got, v.dtype), new, sent

    def receive(self, mean: Tensor, memory: State, share: float) -> tuple[Tensor, State]:
        """What the far end takes the mean message ``mean`` [d] for, and its new memory {layer: state}.

        The layers that remember something there take their turns innermost first, as the message came in.
        """
        new = dict(memory)
        for i in reversed(range(len(self.layers))):
            name, half, _ = self.layers[i]
            if name in memory:
                mean, new[name] = half.receive(memory[name], mean, share, Rest(self, i + 1))  # type: ignore[union-attr]
        return mean, new

    def init(self, v: Tensor, method: str) -> State:
        """{layer: memory} of the layers that have any; ``method`` is ``init`` or ``init_server``."""
        word = "receives" if method == "init_server" else "feedback"
        mine = [layer for layer in self.layers if getattr(layer_traits(layer.middleware), word)]
        wide = v.to(computed_in(v.dtype))
        return {layer.name: getattr(layer.middleware, method)(wide) for layer in mine}


def computed_in(dtype: torch.dtype) -> torch.dtype:
    """What layers compute in: 16 bits hold numbers on their way, not norms, draws and factorisations."""
    return torch.promote_types(dtype, torch.float32)


def narrowed(v: Tensor, dtype: torch.dtype) -> Tensor:
    """v [d] in a dtype: rounded where that has fewer bits."""
    return saturated(v, dtype) if dtype.itemsize < v.dtype.itemsize else v.to(dtype)


def _unused(address: str) -> Noise:
    raise AssertionError(address)


class Rest:
    """The channel from layer ``at`` on, see ``fedsim.channel.base.Send``.

    ``path`` says by which call of each layer further out, and by which piece of the vector, it is reached: two calls
    draw different random numbers.
    """

    def __init__(
        self,
        onion: Onion,
        at: int,
        path: tuple[int, ...] = (),
        noises: Noises = _unused,
        memory: State = None,
        new: State = None,
        sides: tuple[Side, ...] = (),
        form: torch.dtype | None = None,
    ):
        self.onion, self.at, self.path, self.noises = onion, at, path, noises
        self.memory, self.new, self.sides = memory, new, sides
        self.form = form  # 16-bit format in which numbers travel because of a layer further out
        self.calls = 0

    def __call__(self, v: Tensor, *sides: Side) -> tuple[Tensor, tuple[Side, ...], Bytes]:
        """Send v and, beside it, these sides and those of the layers further out."""
        path = (*self.path, self.calls)
        self.calls += 1
        beside = (*sides, *self.sides)
        if self.at == len(self.onion.layers):
            arrived, back, size = self._travels(path, v, beside)
            self.sides = back[len(sides) :]
            return arrived, back[: len(sides)], size
        form, v = (self.form if v.dtype.itemsize > 2 else v.dtype), v.to(computed_in(v.dtype))
        name, middleware, _ = self.onion.layers[self.at]
        if isinstance(middleware, Layerwise):
            whole, total = self._pieces(v, path, form)
            return whole, (), total
        inner = Rest(self.onion, self.at + 1, path, self.noises, self.memory, self.new, beside, form)
        noise = self.noises(f"{name}.{self._named(path)}")
        got, state, sent = middleware(v, self.memory.get(name, ()), noise, inner)
        if name in self.memory:
            self.new[name] = state
        self.sides = inner.sides[len(sides) :]
        return got, inner.sides[: len(sides)], sent

    def plain(self, v: Tensor) -> tuple[Tensor, Bytes]:
        """Send v past all further layers, as it is."""
        got, _, sent = self._travels(self.path, v, ())
        return got, sent

    def delta(self, d: int) -> float | None:
        """Contraction of the worst of the compressors, over the pieces of the vector; 1 when there is none."""
        codecs, sizes = self._compressors(d)
        found = [contraction(codec, size) for codec in codecs for size in sizes]
        return None if None in found else min((f for f in found if f is not None), default=1.0)

    def omega(self, d: int) -> float | None:
        """Variance of the next compressor where it is unbiased, the worst over the pieces; 0 when there is none."""
        codecs, sizes = self._compressors(d)
        found = [codec.omega(size) for codec in codecs[:1] for size in sizes]
        return None if None in found else max((f for f in found if f is not None), default=0.0)

    def _compressors(self, d: int) -> tuple[list[Compressor], list[int]]:
        """Those further in, and the lengths that the first one gets."""
        inside = [layer.middleware for layer in self.onion.layers[self.at :]]
        sizes = self._cut(d) if any(isinstance(layer, Layerwise) for layer in inside) else [d]
        return [layer for layer in inside if layer_traits(layer).loses], sizes  # type: ignore[misc]

    def _cut(self, d: int) -> list[int]:
        return list(self.onion.parameters) if sum(self.onion.parameters) == d else [d]

    def _travels(
        self, path: tuple[int, ...], v: Tensor, beside: tuple[Side, ...]
    ) -> tuple[Tensor, tuple[Side, ...], int]:
        """Over the wire, in the format that a layer further out has chosen."""
        form = v.dtype if self.form is None or v.dtype.itemsize <= 2 else self.form
        arrived, back, size = transmit(self._named(path), narrowed(v, form), beside, encode=self.onion.encode)
        return arrived.to(v.dtype), back, size

    def _pieces(self, v: Tensor, path: tuple[int, ...], form: torch.dtype | None) -> tuple[Tensor, Bytes]:
        """Each parameter through the further layers."""
        pieces = torch.split(v, self._cut(v.shape[0]))
        sent = [
            Rest(self.onion, self.at + 1, (*path, p), self.noises, self.memory, self.new, (), form)(piece)
            for p, piece in enumerate(pieces)
        ]
        return torch.cat([got for got, _, _ in sent]), sum((size for _, _, size in sent), 0)

    def _named(self, path: tuple[int, ...]) -> str:
        return ".".join([self.onion.name, *map(str, path)]) if any(path) else self.onion.name


def transmit(name: str, v: Tensor, sides: tuple[Side, ...], *, encode: bool) -> tuple[Tensor, tuple[Side, ...], int]:
    """Over the wire: what arrives, and its bytes; with ``encode`` as real bytes and back."""
    size = wire.encoded_size({name: (v, sides)}) - EMPTY
    if not encode:
        return v, sides, size

    def alone(*tensors: Tensor) -> tuple[Tensor, ...]:
        beside = tuple(replace(side, tensor=t) for side, t in zip(sides, tensors[1:], strict=True))
        data = wire.encode({name: (tensors[0], beside)})
        if len(data) - EMPTY != size:
            raise AssertionError(f"field {name} was counted as {size} bytes and encoded to {len(data) - EMPTY}")
        content = wire.decode(data)[name]
        dense, back = (content, ()) if isinstance(content, Tensor) else content
        return tuple(t.to(v.device) for t in (dense, *(side.tensor for side in back)))

    def together(*stacked: Tensor) -> tuple[Tensor, ...]:
        each = [alone(*one) for one in zip(*stacked, strict=True)]
        return tuple(torch.stack(column) for column in zip(*each, strict=True))

    dense, *tensors = opaque(alone, together, v, *(side.tensor for side in sides))
    return dense, tuple(replace(side, tensor=t) for side, t in zip(sides, tensors, strict=True)), size
