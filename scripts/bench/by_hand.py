"""The loop one would write by hand: a module, torch.optim.SGD, one client after the other; in one process or in two.

python by_hand.py WORKLOAD PROCESSES [DEVICE]
"""

from __future__ import annotations

import copy
import multiprocessing
import sys
from contextlib import suppress
from itertools import accumulate, chain
from typing import Any

import numpy as np
import torch
from contender import serve
from models import losses, model_of
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from workloads import CLIP, ETA, NOISE, RATIO, RHO, SLOW, WORKLOADS, Workload, samples


class Eager:
    """Clients of a server, or the peers of a ring."""

    def __init__(self, load: Workload, device: str):
        torch.manual_seed(0)
        x, y = samples(load)
        self.load, self.device = load, device
        self.x, self.y = torch.from_numpy(x).to(device), torch.from_numpy(y).to(device)
        self.starts = [0, *accumulate(load.sizes)]
        self.model = model_of(load).to(device)
        self.work = copy.deepcopy(self.model)
        self.links: dict[int, tuple[Tensor, Tensor]] = {}  # EControl's estimate and error of each client
        self.estimate: Any = 0.0  # EControl's mean estimate, at the server

    def minibatches(self, i: int) -> Any:
        """A client's samples in a fresh order."""
        n, size, first = self.load.sizes[i], self.load.size, self.starts[i]
        x, y = self.x[first : first + n], self.y[first : first + n]
        order = torch.randperm(n).to(self.device) if size < n else None
        for first in range(0, n, size):
            chosen = slice(None) if order is None else order[first : first + size]
            yield x[chosen], y[chosen]

    def train(self, i: int) -> None:
        """A client's local epochs on ``self.work``."""
        optimizer = torch.optim.SGD(self.work.parameters(), lr=self.load.lr)
        for x, y in chain.from_iterable(self.minibatches(i) for _ in range(self.load.epochs)):
            if self.load.method == "dp_sgd":
                self.private(x, y)
                continue
            optimizer.zero_grad()
            torch.autograd.backward(losses(self.work(x), y))
            if self.load.method == "dfedsam":
                self.ascend(optimizer, x, y)
            if self.load.mu:
                self.pull()
            optimizer.step()

    def pull(self) -> None:
        """FedProx's term in the gradient."""
        with torch.no_grad():
            for p, start in zip(self.work.parameters(), self.model.parameters(), strict=True):
                assert p.grad is not None
                p.grad.add_(p - start, alpha=self.load.mu)

    def ascend(self, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> None:
        """The gradient at the model plus RHO times its normalised gradient."""
        with torch.no_grad():
            each: list[Tensor] = list(self.work.parameters())
            grads = [p.grad for p in each if p.grad is not None]
            rises = [g * (RHO / (torch.cat([g.reshape(-1) for g in grads]).norm() + 1e-12)) for g in grads]
            torch._foreach_add_(each, rises)
        optimizer.zero_grad()
        torch.autograd.backward(losses(self.work(x), y))
        with torch.no_grad():
            torch._foreach_sub_(each, rises)

    def private(self, x: Tensor, y: Tensor) -> None:
        """One step of DP-SGD by torch.func: every sample's gradient, clipped; noise on their sum."""
        values = dict(self.work.named_parameters())

        def one(values: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
            return losses(torch.func.functional_call(self.work, values, (x[None],)), y[None])

        grads = torch.func.vmap(torch.func.grad(one), (None, 0, 0))({n: p.detach() for n, p in values.items()}, x, y)
        norms = torch.stack([g.flatten(1).norm(dim=1) for g in grads.values()]).norm(dim=0)
        factors = (CLIP / norms).clamp(max=1.0)
        with torch.no_grad():
            for name, p in values.items():
                total = torch.einsum("m,m...->...", factors, grads[name])
                p.sub_(total + NOISE * CLIP * torch.randn_like(p), alpha=self.load.lr / self.load.size)

    def clients(self, cohort: list[int]) -> list[Tensor]:
        """Sum over the cohort of n_i times the client's trained parameters; of what it sends, with EControl."""
        total = [torch.zeros_like(p) for p in self.model.parameters()]
        for i in cohort:
            self.work.load_state_dict(self.model.state_dict())
            self.train(i)
            with torch.no_grad():
                sent: list[Tensor] = list(self.work.parameters())
                if self.load.method == "econtrol":
                    sent = self.compressed(i)
                torch._foreach_add_(total, sent, alpha=float(self.load.sizes[i]))
        return total

    def compressed(self, i: int) -> list[Tensor]:
        """What EControl sends of the client's update."""
        v = parameters_to_vector(self.work.parameters()) - parameters_to_vector(self.model.parameters())
        h, e = self.links.get(i, (torch.zeros_like(v), torch.zeros_like(v)))
        wanted = ETA * e + v - h
        kept = wanted.abs().topk(max(1, round(RATIO * len(v)))).indices
        d = torch.zeros_like(v).index_copy_(0, kept, wanted[kept])
        self.links[i] = h + d, e + v - h - d
        pieces = torch.split(d, [p.numel() for p in self.model.parameters()])
        return [piece.view_as(p) for piece, p in zip(pieces, self.model.parameters(), strict=True)]

    def put(self, totals: list[list[Tensor]], cohort: list[list[int]]) -> None:
        """The average of the shares becomes the model; or moves it by EControl's mean estimate."""
        weight = sum(self.load.sizes[i] for mine in cohort for i in mine)
        with torch.no_grad():
            means = [torch.stack(parts).sum(0) / weight for parts in zip(*totals, strict=True)]
            if self.load.method == "econtrol":
                share = self.load.cohort / self.load.clients
                self.estimate = self.estimate + share * parameters_to_vector(means)
                x = parameters_to_vector(self.model.parameters())
                vector_to_parameters(x + self.estimate, self.model.parameters())
                return
            for p, mean in zip(self.model.parameters(), means, strict=True):
                p.copy_(mean)

    def cohort(self, processes: int = 1) -> list[list[int]]:
        """This round's clients of each process; client i always belongs to process i mod ``processes``."""
        if self.load.cohort == self.load.clients:  # dealt by size
            order = sorted(range(self.load.clients), key=lambda i: -self.load.sizes[i])
            return [order[j::processes] for j in range(processes)]
        each = [torch.randperm(self.load.clients // processes) * processes + j for j in range(processes)]
        return [mine[: self.load.cohort // processes].tolist() for mine in each]

    def step(self) -> None:
        """One round in this process."""
        if self.load.method != "nothing":
            cohort = self.cohort()
            self.put([self.clients(cohort[0])], cohort)
        if self.device == "cuda":
            torch.cuda.synchronize()


def half(pipe: Any, load: Workload, kind: type[Eager]) -> None:
    """A process's share of every round."""
    torch.set_num_threads(1)
    eager = kind(load, "cpu")
    while True:
        cohort, parameters = pipe.recv()
        with torch.no_grad():
            for p, value in zip(eager.model.parameters(), parameters, strict=True):
                p.copy_(torch.from_numpy(value))
        pipe.send([t.numpy() for t in eager.clients(cohort)])


class TwoProcesses:
    """The same loop in two processes, half of the cohort each, pipes between them."""

    def __init__(self, load: Workload, kind: type[Eager] = Eager):
        self.eager = Eager(load, "cpu")
        self.pipes = [started(half, load, kind) for _ in range(2)]

    def step(self) -> None:
        """One round."""
        parameters = [p.detach().numpy() for p in self.eager.model.parameters()]
        cohort = self.eager.cohort(2)
        for pipe, mine in zip(self.pipes, cohort, strict=True):
            pipe.send((mine, parameters))
        self.eager.put([[torch.from_numpy(t) for t in pipe.recv()] for pipe in self.pipes], cohort)


class LeastSquares:
    """D-PSGD in NumPy: peers of a ring, one after the other, with full gradients."""

    def __init__(self, load: Workload):
        a, b = samples(load)
        self.a, self.b = a.reshape(load.clients, load.size, -1), b.reshape(load.clients, -1)
        self.x = np.zeros((load.clients, *load.shape))
        self.load = load

    def step(self) -> None:
        """The rounds that are timed at once."""
        n = self.load.clients
        for _ in range(self.load.rounds):
            old = self.x
            self.x = np.empty_like(old)
            for i, (a, b) in enumerate(zip(self.a, self.b, strict=True)):
                mixed = (old[i] + old[i - 1] + old[(i + 1) % n]) / 3
                self.x[i] = mixed - SLOW * (a.T @ (a @ old[i] - b))


class Peers:
    """All models as the rows of one matrix; a ring's neighbours are averaged after local work."""

    def __init__(self, load: Workload, processes: int):
        self.eager = Eager(load, "cpu")
        first = parameters_to_vector(self.eager.model.parameters()).detach()
        self.x: Tensor = first.repeat(load.clients, 1).share_memory_()  # type: ignore[no-untyped-call]
        self.pipes = [started(share, load, self.x, j, processes) for j in range(processes)] if processes > 1 else []

    def step(self) -> None:
        """One round."""
        for pipe in self.pipes:
            pipe.send(True)
        if not self.pipes:
            work(self.eager, self.x, range(self.eager.load.clients))
        for pipe in self.pipes:
            pipe.recv()
        self.x.copy_((self.x + self.x.roll(1, 0) + self.x.roll(-1, 0)) / 3)


def work(eager: Eager, x: Tensor, mine: Any) -> None:
    """Local work of some peers, in their rows."""
    for i in mine:
        vector_to_parameters(x[i].clone(), eager.work.parameters())
        eager.train(i)
        x[i] = parameters_to_vector(eager.work.parameters()).detach()


def share(pipe: Any, load: Workload, x: Tensor, j: int, processes: int) -> None:
    """Every ``processes``-th peer's local work."""
    torch.set_num_threads(1)
    eager = Eager(load, "cpu")
    while True:
        pipe.recv()
        work(eager, x, range(j, load.clients, processes))
        pipe.send(True)


def started(target: Any, load: Workload, *more: Any) -> Any:
    """The near end of a pipe to a process of its own."""
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe()
    name = next(name for name, other in WORKLOADS.items() if other is load)
    context.Process(target=begin, args=(target, theirs, name, *more), daemon=True).start()
    return mine


def begin(target: Any, pipe: Any, name: str, *more: Any) -> None:
    """Begin in the new process, which has its workloads from the module: their models cannot be sent."""
    with suppress(EOFError):  # nobody asks any more
        target(pipe, WORKLOADS[name], *more)


def main(name: str, processes: str, device: str = "cpu") -> None:
    """Race."""
    torch.set_num_threads(1)
    load, many = WORKLOADS[name], int(processes)
    if load.method == "dpsgd":
        serve(LeastSquares(load).step)  # too little for a second process
    elif load.peers:
        serve(Peers(load, many).step)
    else:
        serve((Eager(load, device) if many == 1 else TwoProcesses(load)).step)


if __name__ == "__main__":
    main(*sys.argv[1:])
