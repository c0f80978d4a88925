"""PowerSGD: all clients together find a low-rank factorisation of their mean gradient, by one power step a gradient.

Vogels, Karimireddy, Jaggi, "PowerSGD: Practical Low-Rank Gradient Compression for Distributed Optimization", NeurIPS
2019, arXiv 1905.13727, Algorithm 1, and Algorithm 2's error feedback, with heavy-ball momentum after decompression.

It is a collective, not a codec of one client: the factors P are averaged over the clients before Q is computed from
them. A step therefore takes two rounds, one for each exchange: in even rounds clients send P_i = (g_i + e_i) Q, in odd
ones Q_i = (g_i + e_i)' P, P being the orthogonalised mean. Every client takes part in every round. Vectors, and
matrices of which the factors would not be half as large, travel as they are, in even rounds.

Deviations: Q starts as a fixed matrix of cosines (theirs: random); its columns are orthogonalised by QR.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from fedsim.algorithms.kit.gradients import mean_gradient
from fedsim.errors import require
from fedsim.fields import check_fields
from fedsim.objective import Objective
from fedsim.traits import Traits
from fedsim.types import Known, Message, Round


class PowerSGDServer(NamedTuple):
    """What the server keeps."""

    x: Tensor  # [d] model
    v: dict[str, Tensor]  # {parameter: its momentum}, in the model's order and shapes
    p: dict[str, Tensor]  # {parameter: [m, r]} orthonormal columns, of the step in progress
    q: dict[str, Tensor]  # {parameter: [n, r]} mean factors of the last step
    plain: dict[str, Tensor]  # {parameter: its mean gradient}, of what is not factorised


class PowerSGDClient(NamedTuple):
    """What a client keeps between its rounds."""

    whole: Tensor  # [d] gradient plus error of the last step
    p: dict[str, Tensor]  # {parameter: [m, r]} of the last step


@dataclass(frozen=True)
class PowerSGD:
    """Low-rank compression of the mean gradient.

    Attributes:
        lr: learning rate, > 0.
        rank: r, >= 1.
        lr_decay: factor on lr per step (two rounds), in (0, 1].
        momentum: of the decompressed gradient, in [0, 1).
    """

    traits: ClassVar[Traits] = Traits(uniform=True, everyone=True, shares="parameters", keeps="parameters")
    lr: float
    rank: int = 2
    lr_decay: float = 1.0
    momentum: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self)
        require(self.lr > 0, "lr", "be > 0", self.lr)
        require(self.rank >= 1, "rank", "be >= 1", self.rank)
        require(0 < self.lr_decay <= 1, "lr_decay", "be in (0, 1]", self.lr_decay)
        require(0 <= self.momentum < 1, "momentum", "be in [0, 1)", self.momentum)

    def thin(self, tensor: Tensor) -> bool:
        """Whether the factors of a parameter are at most half its size."""
        m, n = _matrix(tensor).shape
        return tensor.dim() > 1 and 2 * self.rank * (m + n) <= m * n

    def init_server(self, x0: dict[str, Tensor]) -> PowerSGDServer:
        """The model at rest, and the first Q."""
        x = torch.cat([t.reshape(-1) for t in x0.values()])
        p, q, plain = {}, {}, {}
        for name, tensor in x0.items():
            if self.thin(tensor):
                m, n = _matrix(tensor).shape
                p[name], q[name] = x.new_zeros(m, self.rank), _cosines(n, self.rank, x)
            else:
                plain[name] = torch.zeros_like(tensor)
        return PowerSGDServer(x, {name: torch.zeros_like(t) for name, t in x0.items()}, p, q, plain)

    def init_client(self, x0: dict[str, Tensor]) -> PowerSGDClient:
        """No error to make up for, and factors P of zeros."""
        server = self.init_server(x0)
        return PowerSGDClient(torch.zeros_like(server.x), server.p)

    def broadcast(self, server: PowerSGDServer, rnd: Round) -> Message:
        """Even rounds: the factors Q of the last step and its plain gradients, from which clients know x; odd: P."""
        if rnd.index % 2:
            return {f"p.{name}": p for name, p in server.p.items()}
        if rnd.index == 0:
            return {"x": server.x, **{f"q.{name}": Known(q) for name, q in server.q.items()}}
        plain = {f"plain.{name}": g for name, g in server.plain.items()}
        return {"x": Known(server.x), **{f"q.{name}": q for name, q in server.q.items()}, **plain}

    def local(self, obj: Objective, client: PowerSGDClient, got: Message, rnd: Round) -> tuple[Message, PowerSGDClient]:
        """Even rounds: e <- whole - P Q', whole <- g + e, sends whole Q; odd: sends whole' P."""
        if rnd.index % 2:
            p = {name: got[f"p.{name}"] for name in client.p}
            matrices = obj.views(client.whole)
            # the second half of the power step: Q_i = M_i' P with the orthogonalised mean P
            return {f"q.{name}": _matrix(matrices[name]).t() @ p[name] for name in p}, PowerSGDClient(client.whole, p)
        x = got["x"]
        q = {name: got[f"q.{name}"] for name in client.p}
        g = obj.views(mean_gradient(obj, x))
        old = obj.views(client.whole)
        # error feedback (Algorithm 2): what the last low-rank step P Q' left of the gradient joins the new one
        whole = {
            name: t + (old[name] - (client.p[name] @ q[name].t()).view(t.shape) if name in q else 0)
            for name, t in g.items()
        }
        sent = {f"p.{name}": _matrix(whole[name]) @ q[name] for name in q}
        plain = {f"plain.{name}": t for name, t in whole.items() if name not in q}
        return {**sent, **plain}, PowerSGDClient(torch.cat([t.reshape(-1) for t in whole.values()]), client.p)

    def server(self, server: PowerSGDServer, received: Message, rnd: Round) -> PowerSGDServer:
        """Even rounds: P <- orthogonal basis of mean P_i; odd: x <- x - lr (momentum of P (mean Q_i)')."""
        if rnd.index % 2 == 0:
            # the mean over the clients comes first, then one orthogonalisation that all of them share
            p = {name: torch.linalg.qr(received[f"p.{name}"]).Q for name in server.p}
            return server._replace(p=p, plain={name: received[f"plain.{name}"] for name in server.plain})
        q = {name: received[f"q.{name}"] for name in server.q}  # warm start: the next power step begins here
        g = {name: server.p[name] @ q[name].t() if name in q else server.plain[name] for name in server.v}
        v = {name: self.momentum * old + g[name].view(old.shape) for name, old in server.v.items()}
        lr = self.lr * self.lr_decay ** (rnd.index // 2)
        return server._replace(x=server.x - lr * torch.cat([t.reshape(-1) for t in v.values()]), v=v, q=q)


def _matrix(tensor: Tensor) -> Tensor:
    """A parameter as [m, n]: its first dimension against all others, as the paper does with convolutions."""
    return tensor.reshape(tensor.shape[0], -1) if tensor.dim() > 0 else tensor.reshape(1, 1)


def _cosines(n: int, r: int, like: Tensor) -> Tensor:
    """[n, r] columns of the cosine transform: orthogonal, and none zero in many places."""
    rows = torch.arange(n, dtype=like.dtype, device=like.device)[:, None] + 0.5
    columns = torch.arange(1, r + 1, dtype=like.dtype, device=like.device)
    return torch.cos(math.pi / n * rows * columns)
