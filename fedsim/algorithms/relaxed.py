"""Relaxed initialization for any method: a client starts beyond the server's model, away from where it ended last.

Sun, Shen, Tao, "Understanding How Consistency Works in Federated Learning via Stage-wise Relaxed Initialization",
NeurIPS 2023, arXiv 2306.05706, the algorithm box of FedInit; as an option of every method: FL-Simulator (github
woodenchild95/FL-Simulator, ``use_RI`` of server/*.py), which is followed here. What a method computes from the model it
received (proximal terms, control variates, the update that is sent) is computed from the start instead.

Deviations: the server adds the mean of y - start to its model for every method, as FL-Simulator does for the methods
whose server adds an update; its FedDyn, FedSpeed and FedSMOO average y instead, which ``fedinit`` does for FedAvg. A
client that never took part is taken to have ended at the initial model. beta = 0 is the method itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from fedsim.algorithms.base import ServerAlgorithm
from fedsim.errors import InputError, require
from fedsim.objective import Objective
from fedsim.types import Message, Round


class ClientState(NamedTuple):
    """What a client keeps between its rounds."""

    base: Any  # what the method keeps
    y: Tensor  # [d] last local model of the client's last round


@dataclass(frozen=True)
class Relaxed:
    """A method whose clients start at x + beta (x - y_last).

    Attributes:
        base: the method; it broadcasts ``x`` and its clients send ``update``, the way y - x that they went.
        beta: how far beyond x a client starts, >= 0.
    """

    base: ServerAlgorithm[Any, Any]
    beta: float = 0.1

    def __post_init__(self) -> None:
        methods = ("init_server", "init_client", "broadcast", "local", "server")
        ok = all(callable(getattr(self.base, name, None)) for name in methods) and not isinstance(self.base, Relaxed)
        shared = getattr(self.base, "shares", "model") == "model" and not hasattr(self.base, "own")
        ok = ok and shared and not getattr(self.base, "stacked", False)
        require(ok, "base", "be an algorithm with one global model, and not a relaxed one", self.base)
        ok = getattr(self.base, "correction", "all") == "all"
        require(ok, "base.server", "be all: with active, FedSpeed's upload is not the way a client went", "active")
        require(self.beta >= 0, "beta", "be >= 0", self.beta)

    @property
    def uniform(self) -> bool:
        """Whether the method needs equal weights of the clients."""
        return bool(getattr(self.base, "uniform", False))

    @property
    def public(self) -> tuple[str, ...]:
        """Fields of the method's messages that depend on no data."""
        return tuple(getattr(self.base, "public", ()))

    def public_of(self, steps: int, rnd: Round) -> dict[str, float]:
        """What they hold for a client with so many local steps."""
        found: dict[str, float] = self.base.public_of(steps, rnd)  # type: ignore[attr-defined]
        return found

    def init_server(self, x0: Tensor) -> Any:
        """The method's server state."""
        return self.base.init_server(x0)

    def init_client(self, x0: Tensor) -> ClientState:
        """The method's client state and the initial model."""
        return ClientState(self.base.init_client(x0), x0)

    def broadcast(self, server: Any, rnd: Round) -> Message:
        """The method's broadcast, with the global model x [d]."""
        return self.base.broadcast(server, rnd)

    def local(self, obj: Objective, client: ClientState, got: Message, rnd: Round) -> tuple[Message, ClientState]:
        """The method's local work from x + beta (x - y_last); sends what the method sends."""
        start = got["x"] + self.beta * (got["x"] - client.y)
        message, state = self.base.local(obj, client.base, {**got, "x": start}, rnd)
        if "update" not in message:
            name = type(self.base).__name__
            raise InputError(f"algorithm.base must send `update`, got {name}, which sends {', '.join(message)}")
        return message, ClientState(state, start + message["update"])

    def server(self, server: Any, received: Message, rnd: Round) -> Any:
        """The method's server step."""
        return self.base.server(server, received, rnd)
