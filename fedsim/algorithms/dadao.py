"""DADAO: decentralized accelerated asynchronous optimization, gradients and communications on clocks of their own.

Nabli, Oyallon, "DADAO: Decoupled Accelerated Decentralized Asynchronous Optimization", ICML 2023, arXiv 2208.00779, its
system of stochastic differential equations and algorithm box.

Deviations: the momentum variables x~ start at x0 rather than at zero (the same for x0 = 0); peers are brought forward
exactly, by the exponential of the 6 x 6 linear flow in float64, where the paper's own code has it in float32; with
minibatches the gradient is that of the event's minibatches, without averaging of iterates.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from math import sqrt
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from fedsim.algorithms.kit.gradients import mean_gradient
from fedsim.algorithms.kit.protocols import Constants
from fedsim.algorithms.kit.roles import ModelPeer
from fedsim.algorithms.kit.strongly_convex import StronglyConvex
from fedsim.errors import require
from fedsim.objective import Objective
from fedsim.traits import Traits
from fedsim.types import Message, Round


class DADAOPeer(NamedTuple):
    """What a peer keeps; a tilde is the momentum of its variable."""

    x: Tensor  # [d] model
    x_tilde: Tensor  # [d]
    y: Tensor  # [d] grad f_i(x) - nu x in the end
    y_tilde: Tensor  # [d]
    z: Tensor  # [d] -nu x - y in the end; sums to zero over the peers
    z_tilde: Tensor  # [d] likewise


@dataclass(frozen=True)
class DADAO(ModelPeer, StronglyConvex):
    """DADAO for strongly convex smooth losses.

    Linear convergence needs chi1 * chi2 <= 1/2, which ``topology.rates=minimal`` gives with equality; lower rates
    diverge.

    Attributes:
        chi1: of the graph with its rates, > 0; 0: computed.
    """

    traits: ClassVar[Traits] = Traits(role="events", hooks=("most_chi12",))
    most_chi12: ClassVar[float] = 0.5

    chi1: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.chi1 >= 0, "chi1", "be > 0, or 0 to have it computed", self.chi1)

    def tuned(self, constants: Constants) -> DADAO:
        """With the graph's chi1 and the losses' mu and L, unless they were given."""
        mu, smooth = self.bounds(constants.mu, constants.smooth)
        return replace(self, mu=mu, smooth=smooth, chi1=self.chi1 or constants.chi1)

    @property
    def nu(self) -> float:
        """The part mu / 2 of the strong convexity that the dual variables treat."""
        return self.mu / 2

    @property
    def q(self) -> float:
        """sqrt(nu / L)."""
        return sqrt(self.nu / self.smooth)

    @cached_property
    def generator(self) -> Tensor:
        """[6, 6] float64 of the flow s' = generator @ s between events, s in the order of ``DADAOPeer``."""
        eta, alpha, alpha_t, theta, nu = self.q / 8, self.q / 4, self.q / 8, 1 / (2 * self.q), self.nu
        return torch.tensor(
            [
                [-eta, eta, 0, 0, 0, 0],  # x' = eta (x~ - x)
                [eta, -eta, 0, 0, 0, 0],  # x~' = eta (x - x~)
                [0, 0, -alpha, alpha, 0, 0],  # y' = alpha (y~ - y)
                [0, -theta * nu, -theta, 0, -theta, 0],  # y~' = -theta (nu x~ + y + z)
                [0, 0, 0, 0, -alpha, alpha],  # z' = alpha (z~ - z)
                [0, 0, 0, 0, alpha_t, -alpha_t],  # z~' = alpha~ (z - z~)
            ],
            dtype=torch.float64,
        )

    def init_client(self, x0: Tensor) -> DADAOPeer:
        """x and its momentum at x0, the dual variables at zero."""
        zero = torch.zeros_like(x0)
        return DADAOPeer(x0, x0, zero, zero, zero, zero)

    def flow(self, peer: DADAOPeer, dt: Tensor) -> DADAOPeer:
        """exp(dt * generator) on the six variables."""
        forward = torch.linalg.matrix_exp(self.generator * dt).to(peer.x.dtype)
        return DADAOPeer(*(forward @ torch.stack(peer)).unbind(0))

    def local(self, obj: Objective, peer: DADAOPeer, rnd: Round) -> DADAOPeer:
        """A gradient event: u = grad f_i(x) - nu x - y~ moves x, x~ and y~."""
        gamma, gamma_t = 1 / (4 * self.smooth), 1 / (4 * sqrt(self.smooth * self.nu))
        delta, delta_t = self.q / 4, 1.0
        # f_i with its weight decay, less the part nu/2 ||x||^2 of its strong convexity that y and z treat
        u = mean_gradient(obj, peer.x) + (self.weight_decay - self.nu) * peer.x - peer.y_tilde
        return peer._replace(
            x=peer.x - gamma * u, x_tilde=peer.x_tilde - gamma_t * u, y_tilde=peer.y_tilde + (delta + delta_t) * u
        )

    def offer(self, peer: DADAOPeer, rnd: Round) -> Message:
        """y + z [d]."""
        return {"yz": peer.y + peer.z}

    def meet(self, peer: DADAOPeer, got: Message, rnd: Round) -> DADAOPeer:
        """z and z~ step against the difference of the two offers."""
        beta, beta_t = 0.5, 2 * self.chi1 / self.q
        # z and z~ of the two ends move by opposite amounts, so that their sums over all peers stay zero
        m = peer.y + peer.z - got["yz"]
        return peer._replace(z=peer.z - beta * m, z_tilde=peer.z_tilde - beta_t * m)
