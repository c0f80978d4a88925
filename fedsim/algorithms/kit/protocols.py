"""What an algorithm is: a frozen dataclass of hyper-parameters with pure methods, written for one client.

State goes in and comes out; nothing is remembered on ``self``. Vectors are flat, x [d]; the engine adds the leading
client dimension. Authors avoid ``.item()``, data-dependent ``if`` and in-place writes, so that the engine can run many
clients at once from the same code.

``obj.steps`` is an integer scalar: divide vectors by it, or ``.to(x.dtype)`` it first (an integer tensor times a Python
float is float32, whatever the model's dtype).

What a class says of itself, it declares as ``traits`` (``fedsim.traits.Traits``, one checked value): which part of a
model the server shares, whether all clients must take part, which further methods (hooks) the engine shall call.

A decentralized algorithm (``PeerAlgorithm``, role ``peers``) has no server: each peer computes, offers a message to its
neighbours, and mixes what all hold with its row of W. ``EventAlgorithm``, role ``events``, is one without rounds.

Most methods inherit the plain case of their role (``roles``) and local SGD steps (``local_sgd``).
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, TypeVar

from torch import Tensor

from fedsim.objective import Objective
from fedsim.types import Message, Round

S = TypeVar("S")
C = TypeVar("C")


class ServerAlgorithm(Protocol[S, C]):
    """A centralized (star) algorithm. Where it shares whole models, its state has a field ``x``: the global one."""

    def init_server(self, x0: Any) -> S:
        """Server state before round 0, from the initial model [d] or what ``shares`` says."""
        ...

    def init_client(self, x0: Any) -> C:
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


class PeerAlgorithm(Protocol[C]):
    """A decentralized algorithm in synchronous rounds: all compute, then gossip over W."""

    def init_client(self, x0: Any) -> C:
        """A peer's state before round 0; every peer starts from the same model [d]."""
        ...

    def model(self, peer: C) -> Tensor:
        """The model [d] that the peer predicts with; the mean over peers is what is evaluated."""
        ...

    def local(self, obj: Objective, peer: C, rnd: Round) -> C:
        """One peer's own work."""
        ...

    def offer(self, peer: C, rnd: Round) -> Message:
        """What it sends to all its neighbours, through the channel."""
        ...

    def mix(self, peer: C, mixed: Message, rnd: Round) -> C:
        """Its step on ``sum_j w_ij m_j`` over its neighbours' messages and its own, as decoded."""
        ...


class RoundConstants(NamedTuple):
    """What the constants of a peer algorithm in rounds depend on: W, which is symmetric, and the losses."""

    gap: float  # spectral gap of W, > 0
    mu: float | None = None  # least strong convexity of a client's loss; None: not known
    smooth: float | None = None  # largest smoothness of a client's loss; None: not known


class Constants(NamedTuple):
    """What the constants of an event algorithm depend on: the graph (where it changes, the worst) and the losses."""

    n: int  # peers, each of which computes once a unit of time on average
    chi1: float  # 1 / (smallest positive eigenvalue of the Laplacian weighted by the edges' rates)
    chi2: float  # half of the largest effective resistance of an edge in that Laplacian
    mu: float | None = None  # least strong convexity of a client's loss; None: not known
    smooth: float | None = None  # largest smoothness of a client's loss; None: not known


class EventAlgorithm(Protocol[C]):
    """A decentralized algorithm without rounds: a peer computes, or meets a neighbour, when a Poisson clock rings."""

    def tuned(self, constants: Constants) -> EventAlgorithm[C]:
        """The algorithm with the step sizes that graph and losses ask for."""
        ...

    def init_client(self, x0: Any) -> C:
        """A peer's state at time 0; every peer starts from the same model [d]."""
        ...

    def model(self, peer: C) -> Tensor:
        """The model [d] that the peer predicts with; the mean over peers is what is evaluated."""
        ...

    def flow(self, peer: C, dt: Tensor) -> C:
        """What becomes of a peer in ``dt`` units of time (float64 scalar) without any event."""
        ...

    def local(self, obj: Objective, peer: C, rnd: Round) -> C:
        """A gradient event of a peer, whose state has come to its time; ``rnd`` is the wave of the event."""
        ...

    def offer(self, peer: C, rnd: Round) -> Message:
        """What it sends to the neighbour that it meets."""
        ...

    def meet(self, peer: C, got: Message, rnd: Round) -> C:
        """Its side of a meeting: its state has come to the time of it, and it ``got`` the neighbour's offer."""
        ...
