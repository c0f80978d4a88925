"""Who owns what a model's forward writes: each client, or all of them together.

An algorithm knows nothing of it; one of these is put around it. Buffers are a flat vector [q], see
``fedsim.ground.buffers``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fedsim.algorithms.kit.around import Around, name_of
from fedsim.errors import require
from fedsim.objective import Objective
from fedsim.traits import Traits
from fedsim.traits.declared import traits_of
from fedsim.types import Message, Round

FIELD = "buffers"
"""Of messages: the server's buffers downlink, uplink what a client's local steps added to them."""


@dataclass(frozen=True)
class LocalBuffers(Around):
    """``model.batchnorm=local``: a client's row holds its buffers beside the algorithm's state.

    It predicts with them: with a model of its own where the algorithm has such, else with the server's.

    Attributes:
        base: the algorithm.
        first: [q] what a client begins with.
    """

    first: Tensor

    @property
    def traits(self) -> Traits:
        """The algorithm's; clients predict with buffers of their own."""
        return traits_of(self.base).but("own")

    def inside(self, state: Any) -> Any:
        """The algorithm's state of a client."""
        return state[0]

    def put(self, state: Any, inner: Any) -> Any:
        """The same row with another state of the algorithm."""
        return inner, state[1]

    def init_client(self, x0: Any) -> Any:
        """The algorithm's state of a client, and the initial buffers."""
        return self.base.init_client(x0), self.first

    def local(self, obj: Objective, client: Any, got: Message, rnd: Round) -> tuple[Message, Any]:
        """The algorithm's work, which begins with the client's buffers."""
        obj.hold(client[1])
        message, inner = self.base.local(obj, client[0], got, rnd)
        return message, (inner, obj.buffers)

    def own(self, obj: Objective, client: Any, got: Message, rnd: Round) -> Tensor:
        """The model [d] that the client is tested with."""
        obj.hold(client[1])
        if "own" not in traits_of(self.base).hooks:
            if "x" not in got:
                name = name_of(self.base)
                must = (
                    f"be error, groupnorm, frozen or average for {name}, which does not send the model in every round"
                )
                require(False, "model.batchnorm", must, "local")
            x: Tensor = got["x"]
            return x
        return super().own(obj, client, got, rnd)


class AveragedServer(NamedTuple):
    """What the server keeps."""

    inner: Any  # of the algorithm
    buffers: Tensor  # [q] the mean of the clients' buffers

    @property
    def x(self) -> Tensor:
        """[d] the global model of an algorithm that has one."""
        x: Tensor = self.inner.x
        return x


@dataclass(frozen=True)
class AveragedBuffers(Around):
    """``model.batchnorm=average``: buffers are broadcast with the model, and their changes sent beside the update.

    The server adds the mean of the changes, by the weights of the update; means of whole numbers are rounded.

    Attributes:
        base: the algorithm.
        first: [q] what the server begins with.
        whole: [q] bool, which are whole numbers.
    """

    first: Tensor
    whole: Tensor

    def init_server(self, x0: Any) -> AveragedServer:
        """The algorithm's state, and the initial buffers."""
        return AveragedServer(self.base.init_server(x0), self.first)

    def broadcast(self, server: AveragedServer, rnd: Round) -> Message:
        """The algorithm's message, and the buffers."""
        return {**self.base.broadcast(server.inner, rnd), FIELD: server.buffers}

    def local(self, obj: Objective, client: Any, got: Message, rnd: Round) -> tuple[Message, Any]:
        """The algorithm's work, which begins with the buffers that came; their change goes with its message."""
        rest, buffers = _apart(got)
        obj.hold(buffers)
        message, client = self.base.local(obj, client, rest, rnd)
        return {**message, FIELD: obj.buffers - buffers}, client

    def server(self, server: AveragedServer, received: Message, rnd: Round) -> AveragedServer:
        """The algorithm's step; buffers <- buffers + mean change."""
        rest, change = _apart(received)
        buffers = server.buffers + change
        return AveragedServer(
            self.base.server(server.inner, rest, rnd), torch.where(self.whole, buffers.round(), buffers)
        )

    def settle(self, client: Any, sent: Message, arrived: Message, rnd: Round) -> Any:
        """The algorithm's, of its own fields."""
        return super().settle(client, _apart(sent)[0], _apart(arrived)[0], rnd)

    def own(self, obj: Objective, client: Any, got: Message, rnd: Round) -> Tensor:
        """The algorithm's own model of a client, with the buffers of all."""
        rest, buffers = _apart(got)
        obj.hold(buffers)
        return super().own(obj, client, rest, rnd)


def _apart(message: Message) -> tuple[Message, Tensor]:
    return {name: value for name, value in message.items() if name != FIELD}, message[FIELD]
