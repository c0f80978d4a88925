"""FedSMOO: FedDyn with a SAM step whose ascent is corrected towards a common direction.

Sun, Shen, Chen, Ding, Tao, "Dynamic Regularized Sharpness Aware Minimization in Federated Learning: Approaching Global
Consistency and Smooth Landscape", ICML 2023, arXiv 2305.11584, the algorithm box of FedSMOO; followed as in the
authors' code (github woodenchild95/FL-Simulator, optimizer/DRegSAM.py and server/FedSMOO.py).

Deviations: s is rho times the direction of mean mu_i, the simplification that the authors' code makes and says so; the
weights must be uniform, because h is the plain mean over all N clients. rho = 0 is FedDyn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from fedsim.algorithms.kit.local_sgd import LocalSGD, ascent
from fedsim.errors import require
from fedsim.objective import Objective
from fedsim.traits import Traits
from fedsim.types import Batch, Message, Round


class FedSMOOServer(NamedTuple):
    """What the server keeps."""

    x: Tensor  # [d] global model
    h: Tensor  # [d] mean over all clients of h_i
    s: Tensor  # [d] common ascent step, of length rho (0 before the first round)


class FedSMOOClient(NamedTuple):
    """What a client keeps between its rounds."""

    h: Tensor  # [d] sum of its updates: -1/alpha times FedDyn's linear term
    mu: Tensor  # [d] dual variable of the ascent step


@dataclass(frozen=True)
class FedSMOO(LocalSGD):
    """Dynamically regularised federated sharpness-aware minimisation.

    Attributes:
        rho: length of the ascent step, >= 0.
        alpha: weight of the proximal term, > 0; a local step needs lr (L + alpha) < 2.
    """

    traits: ClassVar[Traits] = Traits(uniform=True, moves=True)
    rho: float = 0.1
    alpha: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.rho >= 0, "rho", "be >= 0", self.rho)
        require(self.alpha > 0, "alpha", "be > 0", self.alpha)

    def init_server(self, x0: Tensor) -> FedSMOOServer:
        """The global model, h = 0 and s = 0."""
        return FedSMOOServer(x0, torch.zeros_like(x0), torch.zeros_like(x0))

    def init_client(self, x0: Tensor) -> FedSMOOClient:
        """h_i = 0 and mu_i = 0."""
        return FedSMOOClient(torch.zeros_like(x0), torch.zeros_like(x0))

    def broadcast(self, server: FedSMOOServer, rnd: Round) -> Message:
        """The global model x and the common ascent step s, [d] each."""
        return {"x": server.x, "s": server.s}

    def local(self, obj: Objective, client: FedSMOOClient, got: Message, rnd: Round) -> tuple[Message, FedSMOOClient]:
        """K steps: ascent e along g - mu_i - s, mu_i += e - s, descent; sends y - x and mu_i, [d] each."""
        x, s, lr = got["x"], got["s"], self.rate(rnd)

        def step(now: tuple[Tensor, Tensor], batch: Batch) -> tuple[Tensor, Tensor]:
            y, mu = now
            # the ascent is drawn towards the common s by the dual variable mu_i, which every local step renews
            e = ascent(obj.grad(y, batch) - mu - s, self.rho)
            g = obj.grad(y + e, batch)
            # h_i = -s_i / alpha in FedDyn's letters: g - s_i + alpha (y - x)
            return self.step(y, g + self.alpha * (y - x + client.h), lr), mu + e - s

        y, mu = obj.run(step, (x, client.mu))
        return {"update": y - x, "mu": mu}, FedSMOOClient(client.h + y - x, mu)

    def server(self, server: FedSMOOServer, received: Message, rnd: Round) -> FedSMOOServer:
        """h <- mean over all N of h_i; x <- mean_S y_i + h; s <- rho mean_S mu_i / ||mean_S mu_i||."""
        update, mu = received["update"], received["mu"]
        # h is the mean over all N of h_i, of which the absent ones' do not change: 1/N, not 1/|S|
        h = server.h + update * len(rnd.clients) / rnd.population
        s = self.rho * mu / mu.norm().clamp(min=1e-12)
        return FedSMOOServer(server.x + update + h, h, s)
