"""Messages as the wire holds them, and what they weigh: ``Owned`` rows that are there, nothing of what is ``Known``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

import torch

from fedsim.channel import wire
from fedsim.types import Known, Message, Owned


class Sent(NamedTuple):
    """What some messages weigh together."""

    bytes: int  # encoded, as the channel delivers them
    plain: int  # what it would be without a channel

    @staticmethod
    def sum(each: Iterable[Sent]) -> Sent:
        """Of several, together."""
        size = plain = 0
        for one in each:
            size, plain = size + one.bytes, plain + one.plain
        return Sent(size, plain)

    def times(self, receivers: int) -> Sent:
        """Of the same message to so many receivers."""
        return Sent(self.bytes * receivers, self.plain * receivers)


def on_the_wire(message: Message) -> dict[str, wire.Content]:
    """One message: tensors as they are, ``Owned`` as its rows [k, ...] with their positions among r."""
    out: dict[str, wire.Content] = {}
    for name, value in message.items():
        if isinstance(value, Known):
            continue
        if isinstance(value, Owned):
            out[name] = (value.values[value.mask], (wire.Positions(value.mask.nonzero()[:, 0], len(value.mask)),))
        else:
            out[name] = value
    return out


def from_the_wire(content: dict[str, wire.Content]) -> Message:
    """The inverse of ``on_the_wire``."""
    out: Message = {}
    for name, value in content.items():
        if isinstance(value, torch.Tensor):
            out[name] = value
            continue
        rows, (at,) = value
        assert isinstance(at, wire.Positions)
        mask = torch.zeros(at.d, dtype=torch.bool, device=rows.device)
        mask[at.tensor] = True
        values = rows.new_zeros(at.d, *rows.shape[1:])
        values[at.tensor] = rows
        out[name] = Owned(values, mask)
    return out


def heard(message: Message) -> Message:
    """The message as its receiver uses it: fields that travelled as they are, ``Known`` ones as their values."""
    return {name: value.value if isinstance(value, Known) else value for name, value in message.items()}


def message_size(message: Message) -> int:
    """Bytes of one message; nothing at all when it has no fields."""
    return wire.encoded_size(content) if (content := on_the_wire(message)) else 0


def sizes(messages: Message, b: int) -> int:
    """Bytes of b messages [b, ...] together."""
    if not messages:
        return 0
    plain = {name: value for name, value in messages.items() if not isinstance(value, Owned)}
    return b * wire.encoded_size(plain, stacked=True) + owned(messages)


def owned(messages: Message) -> int:
    """Bytes of the ``Owned`` rows of b messages [b, ...] together."""
    total = 0
    for name, value in messages.items():
        if isinstance(value, Owned):
            rows, r = value.values[0], value.mask.shape[1]
            for k, clients in Counter(value.mask.sum(1).tolist()).items():
                at = wire.Positions(value.mask.new_zeros(k, dtype=torch.int64), r)
                total += clients * (wire.encoded_size({name: (rows[:k], (at,))}) - wire.encoded_size({}))
    return total
