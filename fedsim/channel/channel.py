"""The message channel: layers around every message of a link, outermost first.

Layers act on the vectors of a message, field by field; scalars, integers and ``Owned`` rows travel as they are. What a
layer remembers about a client's link lies in the store beside the client's own state; what its receiving half remembers
lies with the server.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedsim.channel.base import Bytes
from fedsim.channel.message import from_the_wire, on_the_wire
from fedsim.channel.noise import Addressed
from fedsim.channel.onion import EMPTY, Layer, Noises, Onion, transmit
from fedsim.channel.order import check_order
from fedsim.fields import check_fields
from fedsim.ground import addresses
from fedsim.ground.tree import tree_map
from fedsim.types import Known, Message, Owned, State


@dataclass(frozen=True)
class Channel:
    """The layers of one kind of link.

    >>> from fedsim.channel.ef14 import EF14
    >>> from fedsim.channel.onion import Layer
    >>> from fedsim.channel.topk import TopK
    >>> channel = Channel((Layer("ef14", EF14()), Layer("topk", TopK(ratio=0.1))))
    >>> [layer.name for layer in channel.layers]
    ['ef14', 'topk']

    Attributes:
        layers: outermost first.
        encode: really encode every message to bytes and use what is decoded from them; without it the bytes are only
            counted, with the same result.
    """

    layers: tuple[Layer, ...] = ()
    encode: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        check_order(self.layers)

    def __bool__(self) -> bool:
        """Whether it does anything."""
        return bool(self.layers) or self.encode

    def init(self, message: Message) -> State:
        """Memory of a client's link before its first message, {field: {layer: state}}; only shapes of it count."""
        return self._memory(message, "init")

    def init_server(self, message: Message) -> State:
        """Memory of the receiving end before the first message, {field: {layer: state}}."""
        return {name: made for name, made in self._memory(message, "init_server").items() if made}

    def send(
        self, message: Message, links: State, noises: Noises, parameters: tuple[int, ...]
    ) -> tuple[Message, State, Bytes]:
        """Send one client's message.

        Args:
            message: what goes in.
            links: memory of the client's link.
            noises: random numbers by address.
            parameters: entries of each parameter of the model, for ``layerwise``.

        Returns:
            (what the far end holds, the link's new memory, bytes on the wire without those of ``Owned`` rows).
        """
        got: Message = dict(message)
        new = dict(links)
        total: Bytes = EMPTY if any(not isinstance(value, Known) for value in message.values()) else 0
        for name, value in message.items():
            if isinstance(value, (Owned, Known)):  # bytes of rows depend on their mask: ``message.owned`` counts them
                continue
            onion = self._onion(name, parameters)
            if not _is_vector(value) or not onion.layers:
                got[name], _, size = transmit(name, value, (), encode=self.encode)
                total = total + size
            elif name not in links:
                raise TypeError(
                    f"field {name!r} of a message must exist in one of the first three rounds or the last too"
                )
            else:
                flat, new[name], sent = onion.send(value.reshape(-1), links[name], noises)
                got[name] = flat.to(value.dtype).view(value.shape)
                total = total + sent
        return got, new, total

    def decoded(self, messages: Message) -> Message:
        """b messages [b, ...] with their ``Owned`` rows as real bytes and back, when ``encode`` says so."""
        owned = {name: value for name, value in messages.items() if isinstance(value, Owned)}
        if not self.encode or not owned:
            return messages
        b = len(next(iter(owned.values())).mask)
        each = [tree_map(lambda t, i=i: t[i], owned) for i in range(b)]
        back = [from_the_wire(on_the_wire(one)) for one in each]
        return {**messages, **tree_map(lambda *t: torch.stack(t), *back)}

    def receive(
        self, received: Message, memory: State, share: float, parameters: tuple[int, ...]
    ) -> tuple[Message, State]:
        """What the far end takes the cohort's mean message for, and its new memory; see ``Middleware``."""
        out, new = dict(received), dict(memory)
        for name in (name for name in memory if name in received):
            value = received[name]
            if isinstance(value, Known):  # nothing has travelled
                continue
            flat, new[name] = self._onion(name, parameters).receive(value.reshape(-1), memory[name], share)
            out[name] = flat.view(value.shape)
        return out, new

    def _onion(self, name: str, parameters: tuple[int, ...]) -> Onion:
        mine = tuple(layer for layer in self.layers if layer.fields is None or name in layer.fields)
        return Onion(name, mine, parameters, self.encode)

    def _memory(self, message: Message, method: str) -> State:
        vectors = {name: value for name, value in message.items() if _is_vector(value)}
        return {name: self._onion(name, ()).init(v.new_zeros(v.numel()), method) for name, v in vectors.items()}


def _is_vector(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.dim() > 0


def noises(seed: int, link: str, index: int, client: Tensor) -> Noises:
    """The random numbers of a client's link in a round, by layer and field; ``link`` is a purpose of a family."""
    return lambda address: Addressed(seed, addresses.member(link, address), index, client)
