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

from fedsim.algorithms.kit.around import Around, name_of, within
from fedsim.algorithms.kit.protocols import ServerAlgorithm
from fedsim.errors import InputError, require
from fedsim.objective import Objective
from fedsim.traits.declared import traits_of
from fedsim.types import Message, Round


class RelaxedClient(NamedTuple):
    """What a client keeps between its rounds."""

    base: Any  # what the method keeps
    y: Tensor  # [d] last local model of the client's last round


@dataclass(frozen=True)
class Relaxed(Around):
    """A method whose clients start at x + beta (x - y_last); beta = 0 is the method itself.

    Attributes:
        base: the method; it broadcasts ``x`` and its clients send ``update``, the way y - x that they went.
        beta: how far beyond x a client starts, >= 0.
    """

    base: ServerAlgorithm[Any, Any]
    beta: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        said = traits_of(self.base)
        ok = said.role == "server" and said.shares == "model" and not said.stacked and "own" not in said.hooks
        ok = ok and not within(Relaxed, self.base)
        require(ok, "base", "be an algorithm with one global model, and not a relaxed one", name_of(self.base))
        if not said.moves:
            must = "send `update`, the way that a client went, and say so: traits = Traits(moves=True)"
            name = name_of(self.base)
            do = "server=all, for with active its upload is another" if name == "FedSpeed" else "choose another method"
            raise InputError(f"base must {must}; {name} does not; {do}")
        require(self.beta >= 0, "beta", "be >= 0", self.beta)

    def inside(self, state: RelaxedClient) -> Any:
        """What the method keeps."""
        return state.base

    def put(self, state: RelaxedClient, inner: Any) -> RelaxedClient:
        """The same client with what the method keeps."""
        return state._replace(base=inner)

    def init_client(self, x0: Tensor) -> RelaxedClient:
        """The method's client state and the initial model."""
        return RelaxedClient(self.base.init_client(x0), x0)

    def local(self, obj: Objective, client: RelaxedClient, got: Message, rnd: Round) -> tuple[Message, RelaxedClient]:
        """The method's local work from x + beta (x - y_last); sends what the method sends."""
        # whatever the method computes from the model that it received, it computes from the start
        start = got["x"] + self.beta * (got["x"] - client.y)
        message, state = self.base.local(obj, client.base, {**got, "x": start}, rnd)
        return message, RelaxedClient(state, start + message["update"])
