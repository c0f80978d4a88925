"""Private SpiderBoost: anchors of private gradients, private differences in between, noise that shrinks with the steps.

Arora, Bassily, Gonzalez, Guzman, Menart, Ullah, "Faster Rates of Convergence to Stationary Points in Differentially
Private Optimization", ICML 2023, arXiv 2206.00846, its Algorithm 2, on distributed data.

Deviations: the paper assumes a Lipschitz bound L0 and a smoothness L1 of each sample's loss, here they are enforced by
clipping a gradient to L0 and a difference to min(L1 ||w_t - w_(t-1)||, 2 L0); its noise min(s2 ||dw||, sh2) then is one
multiple of that bound, whatever ||dw||. The paper's constants are not specified, so one multiplier z is calibrated by
an accountant (``anchor_noise`` splits it). The last iterate is reported, not a random one. b2 is ``local.batch_size``,
drawn by Poisson sampling from each client's data; b1 is ``anchor_rate`` of all samples. Each client adds its share of
the noise (``shared_noise``). With several local steps a difference is the mean over as many minibatches.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedsim.algorithms.kit.recursive import Recursive, RecursiveServer
from fedsim.algorithms.kit.shared_noise import minibatch_mean, multiplier_of, sampled_mean
from fedsim.errors import require
from fedsim.fields import check_fields
from fedsim.objective import Objective
from fedsim.traits import Traits
from fedsim.traits.releases import Drawn, Release
from fedsim.types import Message, Round


@dataclass(frozen=True)
class PrivateSpiderBoost(Recursive):
    """Private SpiderBoost on distributed data.

    Attributes:
        lr: learning rate eta, > 0; the theory's is 1 / (2 L1).
        period: q, rounds from anchor to anchor, >= 1.
        l0: L0, largest norm of a sample's gradient, > 0; None does not clip (and is not private).
        l1: L1, largest norm of the difference of a sample's gradients per distance of the models, > 0; None likewise.
        anchor_rate: b1 / n, the fraction of the samples in an anchor, each drawn independently; in (0, 1].
        anchor_noise: noise over sensitivity in anchors, as a multiple of that of differences, > 0.
        noise_multiplier: z, noise over sensitivity in differences, >= 0.
    """

    traits: ClassVar[Traits] = Traits(
        uniform=True,
        everyone=True,
        equal_steps=True,
        noise="shares",
        hooks=("releases", "client_releases", "kind", "noise_multiplier"),
    )
    lr: float
    period: int = 20
    l0: float | None = 1.0
    l1: float | None = 1.0
    anchor_rate: float = 1.0
    anchor_noise: float = 1.0
    noise_multiplier: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self)
        require(self.lr > 0, "lr", "be > 0", self.lr)
        require(self.period >= 1, "period", "be >= 1", self.period)
        for name in ("l0", "l1"):
            bound = getattr(self, name)
            require(bound is None or bound > 0, name, "be > 0, or null for no clipping", bound)
        require(0 < self.anchor_rate <= 1, "anchor_rate", "be in (0, 1]", self.anchor_rate)
        require(self.anchor_noise > 0, "anchor_noise", "be > 0", self.anchor_noise)
        require(self.noise_multiplier >= 0, "noise_multiplier", "be >= 0", self.noise_multiplier)
        if self.noise_multiplier:
            bounded = self.l0 is not None and (self.l1 is not None or self.period == 1)
            require(bounded, "l0 and l1", "be given where there is noise: without clipping nothing is private", None)

    def kind(self, rnd: Round) -> bool:
        """Whether this round is an anchor; all anchors let out the same, and all differences."""
        return rnd.index % self.period == 0

    def releases(self, rnd: Round) -> tuple[Release, ...]:
        """``()``: what is let out differs from client to client, by their sizes (``client_releases``)."""
        return ()

    def client_releases(self, rnd: Round, drawn: Drawn) -> tuple[Release, ...]:
        """What this round lets out of a client's samples, per unit of the round's bound."""
        if not self.noise_multiplier:
            return ()
        if self.kind(rnd):
            z = multiplier_of(self.anchor_noise * self.noise_multiplier, drawn.examples, rnd)
            return (drawn.release(z, 1, self.anchor_rate),)
        return (drawn.release(multiplier_of(self.noise_multiplier, drawn.batch, rnd), drawn.steps),)

    def local(self, obj: Objective, client: tuple[()], got: Message, rnd: Round) -> tuple[Message, tuple[()]]:
        """Sends the noisy mean of clipped gradients at w_t, or of their clipped differences from w_(t-1), [d]."""
        x, before = got["x"], got["before"]
        l0 = math.inf if self.l0 is None else self.l0
        if self.kind(rnd):
            z = self.anchor_noise * self.noise_multiplier
            d = sampled_mean(obj, lambda batch: obj.clipped_sum(x, batch, l0), x, self.anchor_rate, z, l0, rnd)
        else:
            bound: Tensor | float = math.inf if self.l1 is None else self.l1 * (x - before).norm()
            if self.l0 is not None:  # two gradients of norm at most L0 differ by at most 2 L0
                bound = torch.clamp(torch.as_tensor(bound, dtype=x.dtype, device=x.device), max=2 * self.l0)
            summed = lambda batch: obj.clipped_sum(x, batch, bound, before)  # noqa: E731
            d = minibatch_mean(obj, summed, x, self.noise_multiplier, bound, rnd)
        return {"d": d}, client

    def server(self, server: RecursiveServer, received: Message, rnd: Round) -> RecursiveServer:
        """D <- mean d, or D + mean d; w <- w - lr D."""
        v = received["d"] if self.kind(rnd) else server.v + received["d"]
        return RecursiveServer(server.x - self.lr * v, server.x, v)
