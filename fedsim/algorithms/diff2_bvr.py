"""DIFF2 with the local routine BVR-L-SGD: one worker walks on from the gradient estimate by private differences.

Murata, Suzuki, "DIFF2: Differential Private Optimization via Gradient Differences for Nonconvex Distributed Learning",
ICML 2023, arXiv 2302.03884, the algorithm box with the routine of Murata, Suzuki, "Bias-Variance Reduced Local SGD for
Less Heterogeneous Federated Learning", ICML 2021, arXiv 2102.03198. One round of the paper takes two rounds here: in
even rounds all clients send what DIFF2-GD sends and the server updates v; in odd rounds one worker makes K local steps
from y = x, u = v on Poisson minibatches of its own, y <- y - lr u, u <- u + mean of clipped differences + noise, and
its last y becomes x (not an average of local models).

The last u is never used, so K local steps let K - 1 noisy differences out: K = 1 is DIFF2-GD. They concern the samples
of that worker alone; its epsilon adds to that of the even rounds, and the largest of all clients is reported.

Deviations: the worker is taken in turn (as in DIFF2's public code), not at random, which needs no luck to be accounted
for; the others compute too, for nothing, since clients of a block run the same code, but send nothing; v is counted as
sent to everyone. Noise of a local difference has standard deviation z times ``local_noise`` times its sensitivity
2 c3 ||y_k - y_(k-1)|| / B, neighbours replacing one sample.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import count
from typing import NamedTuple

import torch
from torch import Tensor

from fedsim.algorithms.diff2 import Differences
from fedsim.algorithms.kit.recursive import RecursiveServer
from fedsim.errors import require
from fedsim.objective import Objective
from fedsim.traits import Traits
from fedsim.traits.releases import Drawn, Release
from fedsim.types import Batch, Known, Message, Owned, Round


class _Walk(NamedTuple):
    """Where the worker is."""

    y: Tensor  # [d] model
    u: Tensor  # [d] estimate of the gradient


@dataclass(frozen=True)
class Diff2BVR(Differences):
    """DIFF2-BVR-L-SGD; K is ``local.steps``, the minibatch ``local.batch_size``.

    Attributes:
        c3: largest norm of a local difference of a sample's gradients per distance of the models, > 0; None: no clip.
        local_noise: noise over sensitivity of local differences, as a multiple of z, > 0.
    """

    c3: float | None = 10.0
    local_noise: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.c3 is None or self.c3 > 0, "c3", "be > 0, or null for no clipping", self.c3)
        must = "be given where there is noise: without clipping nothing is private"
        require(self.c3 is not None or not self.noise_multiplier, "c3", must, None)
        require(self.local_noise > 0, "local_noise", "be > 0", self.local_noise)

    @property
    def traits(self) -> Traits:
        """The words."""
        return super().traits.but("client_releases", "exposed")

    def walking(self, rnd: Round) -> bool:
        """Whether a worker makes its local steps in this round."""
        return rnd.index % 2 == 1

    def worker(self, rnd: Round) -> int:
        """Whose turn it is."""
        return rnd.index // 2 % rnd.population

    def anchor(self, rnd: Round) -> bool:
        """Whether the paper's round releases gradients rather than differences."""
        return rnd.index // 2 % self.period == 0

    def kind(self, rnd: Round) -> int:
        """1 for anchors, 0 for differences, 2 for local steps."""
        return 2 if self.walking(rnd) else super().kind(rnd)

    def releases(self, rnd: Round) -> tuple[Release, ...]:
        """What concerns all clients' samples: the noisy mean of an even round."""
        return () if self.walking(rnd) else super().releases(rnd)

    def exposed(self, rnd: Round) -> tuple[int, ...]:
        """Whose samples ``client_releases`` is about."""
        return (self.worker(rnd),) if self.walking(rnd) else ()

    def client_releases(self, rnd: Round, drawn: Drawn) -> tuple[Release, ...]:
        """The worker's K - 1 noisy local differences, per unit of their bounds."""
        if not self.noise_multiplier or drawn.steps == 1:
            return ()
        return (drawn.release(self.local_noise * self.noise_multiplier, drawn.steps - 1, relation="replace"),)

    def broadcast(self, server: RecursiveServer, rnd: Round) -> Message:
        """The model x [d]; in odd rounds, when all know it, v [d]."""
        if self.walking(rnd):
            return {"x": Known(server.x), "v": server.v}
        return super().broadcast(server, rnd)

    def local(self, obj: Objective, client: tuple[()], got: Message, rnd: Round) -> tuple[Message, tuple[()]]:
        """Sends what DIFF2-GD sends, or, as the worker, where the local steps lead [d]."""
        if not self.walking(rnd):
            return {"d": self.gradient(obj, got, rnd)}, client
        y = self.walk(obj, got["x"], got["v"])
        # all clients walk, since those of a block run the same code; only the worker's rows travel
        mine = (obj.noise.client == self.worker(rnd)).view(1)
        return {"y": Owned(torch.where(mine[:, None], y, 0.0), mine)}, client

    def server(self, server: RecursiveServer, received: Message, rnd: Round) -> RecursiveServer:
        """v <- mean d, or v + mean d, with noise; then x <- the worker's y."""
        if self.walking(rnd):
            return RecursiveServer(received["y"].values[0], server.x, server.v)
        return server._replace(v=self.estimate(server, received["d"], rnd))

    def walk(self, obj: Objective, x: Tensor, v: Tensor) -> Tensor:
        """y_K [d]: K local steps from y = x, u = v."""
        steps = count()

        def step(now: _Walk, batch: Batch) -> _Walk:
            y = now.y - self.lr * now.u
            # u follows the gradient from y_(k-1) to y_k by clipped differences, whose bound shrinks with the step
            bound = math.inf if self.c3 is None else self.c3 * (y - now.y).norm()
            u = now.u + obj.clipped_sum(y, batch, bound, now.y) / obj.batch_size
            if self.noise_multiplier:
                std = self.local_noise * self.noise_multiplier * 2 * bound / obj.batch_size
                u = u + std * obj.noise.at(next(steps)).normal(u)
            return _Walk(y, u)

        return obj.run(step, _Walk(x, v), counts=False).y  # most clients walk for nothing
