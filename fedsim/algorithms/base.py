"""What an algorithm is: a frozen dataclass of hyper-parameters with pure methods, written for one client.

State goes in and comes out; nothing is remembered on ``self``. Vectors are flat, x [d]; the engine adds the leading
client dimension. Authors avoid ``.item()``, data-dependent ``if`` and in-place writes, so that the engine can run many
clients at once from the same code.

``obj.steps`` is an integer scalar: divide vectors by it, or ``.to(x.dtype)`` it first (an integer tensor times a Python
float is float32, whatever the model's dtype).

A class whose method is right for equal weights of the clients only (control variates averaged over the population) says
so with ``uniform: ClassVar[bool] = True``; ``aggregate.weights=examples`` is then refused. ``local_sgd.LocalSGD`` holds
what algorithms with local SGD steps share.
"""

from __future__ import annotations

from typing import Protocol, TypeVar

from torch import Tensor

from fedsim.objective import Objective
from fedsim.types import Message, Round

S = TypeVar("S")
C = TypeVar("C")


class ServerAlgorithm(Protocol[S, C]):
    """A centralized (star) algorithm. Its server state has a field ``x``: the global model [d]."""

    def init_server(self, x0: Tensor) -> S:
        """Server state before round 0, from the initial model [d]."""
        ...

    def init_client(self, x0: Tensor) -> C:
        """A client's state before its first round; ``()`` when clients keep nothing."""
        ...

    def broadcast(self, server: S, rnd: Round) -> Message:
        """Downlink: what every client of the cohort receives."""
        ...

    def local(self, obj: Objective, client: C, got: Message, rnd: Round) -> tuple[Message, C]:
        """One client's work: its uplink message and its new state."""
        ...

    def server(self, server: S, received: Message, rnd: Round) -> S:
        """The server's step on the aggregated messages."""
        ...
