"""What the kinds of run with a server share: the model is the server's, and so is the digest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from fedsim.aggregate import weights_of
from fedsim.channel.noise import Addressed
from fedsim.ground import addresses
from fedsim.ground.tree import leaves, tensors
from fedsim.pool.block import to_numpy
from fedsim.pool.jobs import digest_of
from fedsim.pool.owned_buffers import AveragedServer
from fedsim.runs.evaluation import Evaluation, evaluate, gradient
from fedsim.runs.run import Run
from fedsim.types import Message, Round


class ServerRun(Run):
    """A run whose state has a field ``server``."""

    vital: ClassVar[Literal["server", "states"]] = "server"

    @property
    def server(self) -> Any:
        """The server's state."""
        return self.state.server

    def stepped(self, received: Message, rnd: Round) -> Any:
        """The server's next state, from what its rule made of the messages; its noise is at (seed, "server", step)."""
        noise = Addressed(self.setup.seed, addresses.SERVER, self.done, torch.zeros((), dtype=torch.int64))
        server = self.setup.algorithm.server(self.server, received, replace(rnd, noise=noise))
        tensors(server, "server")
        return server

    def measure(self) -> Evaluation:
        """The global model on the test samples, and the training objective if asked for."""
        x, setup = to_numpy(self.model()), self.setup
        found = evaluate(self.backend, x, setup, clients=self.evaluation.clients)
        return found._replace(metrics=found.metrics | self.objective())

    def objective(self) -> dict[str, float]:
        """What is minimised, and its gradient, at the global model, if that is asked for."""
        if not self.evaluation.gradient:
            return {}
        weights = weights_of(self.setup.aggregate, self.sizes)
        return gradient(self.backend, to_numpy(self.model()), self.setup, weights / weights.sum())

    def point(self) -> Tensor:
        """The global model [d]."""
        x: Tensor = self.server.x
        return x

    def model(self) -> Tensor | None:
        """The global model [d], or [d + q] with averaged buffers; None for an algorithm whose server has none."""
        x: Tensor | None = getattr(self.server, "x", None)
        return torch.cat([x, self.server.buffers]) if x is not None and isinstance(self.server, AveragedServer) else x

    def digest(self) -> str:
        """sha256 over the server's state, field by field, as little-endian bytes."""
        return digest_of(leaf.detach().cpu().numpy() for leaf in leaves(self.server))

    def heard_by(self, clients: Sequence[int], index: int) -> Message:
        """The server's broadcast to these clients in a round."""
        message: Message = self.setup.algorithm.broadcast(self.server, self.round(index, clients))
        return message
