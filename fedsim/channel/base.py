"""What a layer of the channel is: an onion of middleware around a client's message, written for ONE vector v [d].

``send`` is the rest of the channel. A layer hands it the vector that travels on and, beside it, what must reach the far
end as it is (positions, signs, levels: the kinds of ``fedsim.channel.wire``); it gets back what the far end holds and
the bytes that went over the wire. What a layer remembers about its link goes in and comes out.
"""

from __future__ import annotations

from typing import Protocol, TypeAlias, TypeVar

from torch import Tensor

from fedsim.channel.wire import Side

S = TypeVar("S")

Bytes: TypeAlias = int | Tensor
"""Encoded size; a tensor (int64, scalar) where it depends on the link, such as a first message sent in full."""


class Noise(Protocol):
    """Addressed random numbers of one layer on one link in one round: the same for any worker, block or order.

    Each method may be called once per use of the layer; the draws of different methods are independent.
    """

    @property
    def client(self) -> Tensor:
        """Number of the client whose random numbers these are, int64 scalar."""
        ...

    def at(self, part: int) -> Noise:
        """Random numbers for a part of this use, such as a local step or a chunk of examples: others for each part."""
        ...

    def uniform(self, like: Tensor) -> Tensor:
        """Uniform on [0, 1), in the shape, dtype and device of ``like``."""
        ...

    def normal(self, like: Tensor) -> Tensor:
        """Standard normal, in the shape, dtype and device of ``like``."""
        ...

    def subset(self, k: int, like: Tensor) -> Tensor:
        """k of the len(like) positions of a vector, drawn without replacement: [k] int64, ascending."""
        ...

    def seed(self, like: Tensor) -> Tensor:
        """The 63-bit number, int64 scalar, from which anybody draws the same ``subset``."""
        ...


class Send(Protocol):
    """What a layer calls to send: all layers further in, then the wire."""

    def __call__(self, v: Tensor, *sides: Side) -> tuple[Tensor, tuple[Side, ...], Bytes]:
        """Send v [any length] and what goes beside it.

        Layers compute in float32 or float64: 16-bit numbers that a layer hands on reach the next one in float32.

        Returns:
            (v as the far end holds it, in v's dtype or a wider one, the sides as it holds them, bytes on the wire for
            all of it).
        """
        ...

    def plain(self, v: Tensor) -> tuple[Tensor, Bytes]:
        """Send v past all further layers, as it is; (v as the far end holds it, bytes on the wire)."""
        ...

    def delta(self, d: int) -> float | None:
        """Contraction of the rest of the channel for vectors [d], in (0, 1]: 1 when nothing is lost, None: no bound."""
        ...

    def omega(self, d: int) -> float | None:
        """Variance of the rest of the channel where it is unbiased, >= 0: 0 when nothing is lost; None: biased."""
        ...


class Middleware(Protocol[S]):
    """One layer for one vector of a message.

    A layer with memory may have a second half at the receiver, for methods whose server remembers the mean of its
    clients' estimates: ``init_server(v) -> memory`` and ``receive(memory, mean, share, rest) -> (vector, memory)``.
    There ``mean`` [d] is the cohort's weighted mean of what ``__call__`` returned, ``share`` the cohort's part of the
    weight of all clients, in (0, 1], and ``rest`` the rest of the channel.
    """

    def init(self, v: Tensor) -> S:
        """Memory of a link before its first message; v is zeros [d]. ``()`` for a layer without memory."""
        ...

    def __call__(self, v: Tensor, link: S, noise: Noise, send: Send) -> tuple[Tensor, S, Bytes]:
        """Send v [d].

        Returns:
            (what the far end takes v for [d], the link's new memory, bytes on the wire).
        """
        ...
