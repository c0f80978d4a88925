"""DIFF2: private gradient descent that releases differences of gradients, whose noise shrinks with the steps.

Murata, Suzuki, "DIFF2: Differential Private Optimization via Gradient Differences for Nonconvex Distributed Learning",
ICML 2023, arXiv 2302.03884, the algorithm box with the gradient-descent routine (DIFF2-GD). With ``period=1`` it is
DP-GD: every round releases a clipped gradient.

Every ``period`` rounds the clients' clipped gradients start v anew (an anchor), in the others their clipped differences
are added to it. Neighbouring data sets differ by one sample of one client: a released mean then moves by at most
2 c / (n_min P), the sensitivity. Clients have equal weights, all take part with all their samples in every round.

Deviations: each client's clipped gradients are summed and then divided by its n_p (the public code averages means of
chunks, which breaks the sensitivity for sizes that do not divide evenly); the noise follows from one multiplier z:
its standard deviation is z times the sensitivity in difference rounds and z sqrt((u - 1) / period) times it in anchors,
the public code's split of the budget (u = 1.25), and z times it throughout for period 1. The noise can be the
aggregator's or the clients' (each adds its share of sqrt(P)).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fedsim.algorithms.kit.recursive import Recursive, RecursiveServer
from fedsim.errors import require
from fedsim.fields import check_fields
from fedsim.objective import Objective
from fedsim.traits import Traits
from fedsim.traits.releases import Release
from fedsim.types import Batch, Message, Round


@dataclass(frozen=True)
class Differences(Recursive):
    """The private gradient estimate v that the routines of DIFF2 share; what they do with it, they say.

    Attributes:
        lr: learning rate eta, > 0.
        period: T, rounds from anchor to anchor, >= 1; 1 is DP-GD.
        c1: largest norm of a sample's gradient, > 0; None does not clip (and is not private).
        c2: largest norm of the difference of a sample's gradients, per distance of the models, > 0; None: not clipped.
        noise_multiplier: z, noise over sensitivity, >= 0.
        noise: who adds it: the ``server`` to the mean, or the ``clients`` each to their own.
        u: how the budget is split: 1 / u of it for anchors; > 1.
    """

    lr: float
    period: int = 60
    c1: float | None = 10.0
    c2: float | None = 10.0
    noise_multiplier: float = 0.0
    noise: Literal["server", "clients"] = "server"
    u: float = 1.25

    def __post_init__(self) -> None:
        check_fields(self)
        require(self.lr > 0, "lr", "be > 0", self.lr)
        require(self.period >= 1, "period", "be >= 1", self.period)
        for name in ("c1", "c2"):
            bound = getattr(self, name)
            require(bound is None or bound > 0, name, "be > 0, or null for no clipping", bound)
        require(self.noise_multiplier >= 0, "noise_multiplier", "be >= 0", self.noise_multiplier)
        if self.noise_multiplier:
            bounded = self.c1 is not None and (self.c2 is not None or self.period == 1)
            require(bounded, "c1 and c2", "be given where there is noise: without clipping nothing is private", None)
        require(self.u > 1, "u", "be > 1", self.u)

    @property
    def traits(self) -> Traits:
        """Who makes the noise is a choice; the server's is measured by the distance that clients clip by."""
        server = self.noise == "server"
        return Traits(
            uniform=True,
            everyone=True,
            noise="server" if server else "shares",
            exact_downlink=server and self.period > 1,
            hooks=("releases", "kind", "noise_multiplier"),
        )

    def kind(self, rnd: Round) -> int:
        """Rounds of one kind let out the same, per unit of their bound: 1 for anchors, 0 for differences."""
        return int(self.anchor(rnd))

    def anchor(self, rnd: Round) -> bool:
        """Whether this round releases gradients rather than differences."""
        return rnd.index % self.period == 0

    def multiplier(self, rnd: Round) -> float:
        """Noise over sensitivity in this round."""
        # the public code's split: one round of T is an anchor, which may spend T / (u - 1) times as much as another
        split = math.sqrt((self.u - 1) / self.period) if self.anchor(rnd) and self.period > 1 else 1.0
        return split * self.noise_multiplier

    def bound(self, x: Tensor, before: Tensor, rnd: Round) -> Tensor | float:
        """c of this round: c1, or c2 ||x - before||; infinite without clipping."""
        if self.anchor(rnd):
            return math.inf if self.c1 is None else self.c1
        return math.inf if self.c2 is None else self.c2 * (x - before).norm()

    def std(self, bound: Tensor | float, rnd: Round) -> Tensor | float:
        """Standard deviation of the noise on the mean, 0 where there is none."""
        if not self.noise_multiplier:
            return 0.0
        # the sensitivity 2 c / (n_min P): one replaced sample of the smallest client moves the mean over P most
        return self.multiplier(rnd) * 2 * bound / (rnd.smallest * rnd.population)

    def releases(self, rnd: Round) -> tuple[Release, ...]:
        """The noisy mean of this round, per unit of its bound c."""
        if not self.noise_multiplier:
            return ()
        bound = 2 / (rnd.smallest * rnd.population)
        return (Release(bound, self.multiplier(rnd) * bound, unit="sample", relation="replace"),)

    def gradient(self, obj: Objective, got: Message, rnd: Round) -> Tensor:
        """The mean [d] over the client's samples of clipped gradients at x, or of their clipped differences."""
        x, before = got["x"], got["before"]
        bound = self.bound(x, before, rnd)
        less = None if self.anchor(rnd) else before

        def add(total: Tensor, batch: Batch) -> Tensor:
            return total + obj.clipped_sum(x, batch, bound, less)

        d = obj.sweep(add, torch.zeros_like(x)) / obj.examples
        if self.noise == "clients" and self.noise_multiplier:
            # sqrt(P) times as much at each of P clients: the mean of the shares has the standard deviation asked for
            d = d + self.std(bound, rnd) * math.sqrt(rnd.population) * obj.noise.normal(d)
        return d

    def estimate(self, server: RecursiveServer, d: Tensor, rnd: Round) -> Tensor:
        """v [d] of this round from the mean d: d, or v + d, with noise."""
        v = d if self.anchor(rnd) else server.v + d
        if self.noise == "server" and self.noise_multiplier:
            v = v + self.std(self.bound(server.x, server.before, rnd), rnd) * rnd.noise.normal(v)
        return v


@dataclass(frozen=True)
class Diff2(Differences):
    """DIFF2-GD: gradient descent along the private estimate."""

    @property
    def traits(self) -> Traits:
        """What the routines have in common, and that the paper gives a formula for the noise."""
        return super().traits.but("paper_multiplier")

    def paper_multiplier(self, epsilon: float, delta: float, rounds: int) -> float:
        """z of the public code's formula for a nominal epsilon; by a tight accountant it costs less.

        With alpha = int(1 + ceil(2 ln(1/delta) / epsilon)) and N = n_min P the code has for anchors
        s1^2 = 4 u alpha R / (T N^2 epsilon), without u for T = 1, and for differences
        s2^2 = 4 u/(u-1) alpha R / (N^2 epsilon); z is s2 N / 2, for T = 1 s1 N / 2.
        """
        require(0 < epsilon < math.inf, "target_epsilon", "be > 0 and finite", epsilon)
        alpha = int(1 + math.ceil(2 * math.log(1 / delta) / epsilon))
        return math.sqrt(alpha * rounds / epsilon * (self.u / (self.u - 1) if self.period > 1 else 1.0))

    def local(self, obj: Objective, client: tuple[()], got: Message, rnd: Round) -> tuple[Message, tuple[()]]:
        """Sends the mean over the client's samples of clipped gradients at x, or of their clipped differences, [d]."""
        return {"d": self.gradient(obj, got, rnd)}, client

    def server(self, server: RecursiveServer, received: Message, rnd: Round) -> RecursiveServer:
        """v <- mean d, or v + mean d, with noise; x <- x - lr v."""
        v = self.estimate(server, received["d"], rnd)
        return RecursiveServer(server.x - self.lr * v, server.x, v)
