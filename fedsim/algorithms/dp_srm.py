"""DP-SRM: private gradient descent on a recursive momentum (STORM) of minibatch gradients.

Wang, Jayaraman, Evans, Gu, "Efficient Privacy-Preserving Stochastic Nonconvex Optimization", 2019, arXiv 1910.13659,
the algorithm box of DP-SRM; the estimator is that of Cutkosky, Orabona, "Momentum-Based Variance Reduction in
Non-Convex SGD", NeurIPS 2019, arXiv 1905.10018: v_t = g_t(x_t) + (1 - alpha) (v_(t-1) - g_t(x_(t-1))) + noise and
v_0 = g_0(x_0) + noise, both gradients on the same minibatch.

Deviations: the paper assumes bounded and smooth losses; here, with v_t = (1 - alpha) v_(t-1) + alpha g_t(x_t) +
(1 - alpha) (g_t(x_t) - g_t(x_(t-1))), each sample's gradient is clipped to c1 and its difference to c2 ||x_t -
x_(t-1)||, so that one sample moves the sum by at most alpha c1 + (1 - alpha) c2 ||x_t - x_(t-1)||, which the noise is a
multiple of. Minibatches are Poisson samples of every client's data; each client adds its share of the noise
(``shared_noise``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fedsim.algorithms.kit.recursive import Recursive, RecursiveServer
from fedsim.algorithms.kit.shared_noise import minibatch_mean, multiplier_of
from fedsim.errors import require
from fedsim.fields import check_fields
from fedsim.objective import Objective
from fedsim.traits import Traits
from fedsim.traits.releases import Drawn, Release
from fedsim.types import Batch, Message, Round


@dataclass(frozen=True)
class DPSRM(Recursive):
    """Differentially private stochastic recursive momentum.

    Attributes:
        lr: learning rate eta, > 0.
        alpha: weight of the new gradient, in (0, 1]; 1 is private minibatch SGD.
        c1: largest norm of a sample's gradient, > 0; None does not clip (and is not private).
        c2: largest norm of the difference of a sample's gradients per distance of the models, > 0; None likewise.
        noise_multiplier: z, noise over sensitivity, >= 0.
    """

    traits: ClassVar[Traits] = Traits(
        uniform=True,
        everyone=True,
        equal_steps=True,
        noise="shares",
        hooks=("releases", "client_releases", "kind", "noise_multiplier"),
    )
    lr: float
    alpha: float = 0.1
    c1: float | None = 1.0
    c2: float | None = 1.0
    noise_multiplier: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self)
        require(self.lr > 0, "lr", "be > 0", self.lr)
        require(0 < self.alpha <= 1, "alpha", "be in (0, 1]", self.alpha)
        for name in ("c1", "c2"):
            bound = getattr(self, name)
            require(bound is None or bound > 0, name, "be > 0, or null for no clipping", bound)
        require(self.noise_multiplier >= 0, "noise_multiplier", "be >= 0", self.noise_multiplier)
        if self.noise_multiplier:
            bounded = self.c1 is not None and (self.c2 is not None or self.alpha == 1)
            require(bounded, "c1 and c2", "be given where there is noise: without clipping nothing is private", None)

    def kind(self, rnd: Round) -> int:
        """0 for every round: per unit of its bound each lets out the same."""
        return 0

    def releases(self, rnd: Round) -> tuple[Release, ...]:
        """``()``: what is let out differs from client to client, by their sizes (``client_releases``)."""
        return ()

    def client_releases(self, rnd: Round, drawn: Drawn) -> tuple[Release, ...]:
        """What this round lets out of a client's samples, per unit of the round's bound."""
        if not self.noise_multiplier:
            return ()
        return (drawn.release(multiplier_of(self.noise_multiplier, drawn.batch, rnd), drawn.steps),)

    def weight(self, rnd: Round) -> float:
        """alpha of this round: 1 in the first."""
        return self.alpha if rnd.index else 1.0

    def local(self, obj: Objective, client: tuple[()], got: Message, rnd: Round) -> tuple[Message, tuple[()]]:
        """Sends the noisy mean [d] of alpha times clipped gradients plus 1 - alpha times clipped differences."""
        x, before, alpha = got["x"], got["before"], self.weight(rnd)
        far = (x - before).norm()
        c1 = math.inf if self.c1 is None else self.c1
        c2 = math.inf if self.c2 is None else self.c2 * far

        def summed(batch: Batch) -> Tensor:
            new = obj.clipped_sum(x, batch, c1)
            return new if alpha == 1 else alpha * new + (1 - alpha) * obj.clipped_sum(x, batch, c2, before)

        # how far one sample moves the sum, which the noise is a multiple of
        bound = c1 if alpha == 1 else alpha * c1 + (1 - alpha) * c2
        return {"d": minibatch_mean(obj, summed, x, self.noise_multiplier, bound, rnd)}, client

    def server(self, server: RecursiveServer, received: Message, rnd: Round) -> RecursiveServer:
        """v <- (1 - alpha) v + mean d; x <- x - lr v."""
        v = (1 - self.weight(rnd)) * server.v + received["d"]
        return RecursiveServer(server.x - self.lr * v, server.x, v)
