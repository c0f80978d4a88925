"""FedDyn: every client's loss is regularised dynamically, so that local and global stationary points agree.

Acar, Zhao, Matas Navarro, Mattina, Whatmough, Saligrama, "Federated Learning Based on Dynamic Regularization", ICLR
2021, arXiv 2111.04263, the algorithm box of FedDyn.

Deviations: the local subproblem is solved by K steps of SGD, as in the authors' code (github alpemreacar/FedDyn), whose
scaling of alpha by n_i / mean n is left out; the weights must be uniform, because h is the plain mean over all N
clients. The model that is evaluated is the server's x (the authors report the average of the client models).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from fedsim.algorithms.kit.local_sgd import LocalSGD
from fedsim.algorithms.kit.roles import ModelServer
from fedsim.errors import require
from fedsim.objective import Objective
from fedsim.traits import Traits
from fedsim.types import Batch, Message, Round


class FedDynServer(NamedTuple):
    """What the server keeps."""

    x: Tensor  # [d] global model
    h: Tensor  # [d] mean over all clients of their linear terms s_i


class FedDynClient(NamedTuple):
    """What a client keeps between its rounds."""

    s: Tensor  # [d] linear term s_i: the gradient of f_i at the client's last model, if it solved its subproblem


@dataclass(frozen=True)
class FedDyn(ModelServer, LocalSGD):
    """Federated learning with dynamic regularization.

    Attributes:
        alpha: weight of the regulariser, > 0; a local step needs lr (L + alpha) < 2.
    """

    traits: ClassVar[Traits] = Traits(uniform=True, moves=True)
    alpha: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.alpha > 0, "alpha", "be > 0", self.alpha)

    def init_server(self, x0: Tensor) -> FedDynServer:
        """The global model and h = 0."""
        return FedDynServer(x0, torch.zeros_like(x0))

    def init_client(self, x0: Tensor) -> FedDynClient:
        """s_i = 0."""
        return FedDynClient(torch.zeros_like(x0))

    def local(self, obj: Objective, client: FedDynClient, got: Message, rnd: Round) -> tuple[Message, FedDynClient]:
        """K SGD steps on f_i(y) - <s_i, y> + alpha/2 ||y - x||^2 from x; sends y - x [d]."""
        x, lr = got["x"], self.rate(rnd)

        def step(y: Tensor, batch: Batch) -> Tensor:
            # gradient of the dynamically regularised risk of the box: linear term -<s_i, y>, proximal term alpha
            return self.step(y, obj.grad(y, batch) - client.s + self.alpha * (y - x), lr)

        update = obj.run(step, x) - x
        # where the subproblem is solved, grad f_i(y) = s_i - alpha (y - x), which becomes the next s_i
        return {"update": update}, FedDynClient(client.s - self.alpha * update)

    def server(self, server: FedDynServer, received: Message, rnd: Round) -> FedDynServer:
        """h <- h - (alpha/N) sum_S (y_i - x); x <- mean_S y_i - h / alpha."""
        update = received["update"]
        # h is the mean over all N of s_i, of which the absent ones' do not change: 1/N, not 1/|S|
        h = server.h - self.alpha * update * len(rnd.clients) / rnd.population
        return FedDynServer(server.x + update - h / self.alpha, h)
