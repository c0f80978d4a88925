"""Engine speed against hand-written eager loops, measured side by side in one run.

    python scripts/bench.py [--rounds 7] [--only noop W1 W2 W3] [--backends serial ray] [--actors 2] [--device cpu]

Every figure is a median over rounds that alternate between the engine and the loop, so that a noisy machine disturbs
both; quote the ratios, not the seconds. Both have the same cohorts. Workloads (FedAvg, SGD lr 0.05, one local epoch,
synthetic Gaussian classes, a fresh order of samples per client and round, no evaluation):

    noop  clients that do nothing: 0.4 MB model, 50 of 100 clients a round
    W1    CNN, two 5x5 convolutions, 18k parameters; 100 clients x 600 samples, 10 a round, batch 32
    W1L   LEAF's CNN, 1.7M parameters; the same data
    W2    MLP 784-200-10; 1,000 clients x 60 samples, 100 a round, batch 20
    W3    binary logistic regression, 300 inputs; 1,000 clients x 30 samples, all in every round, full batch
    WT    transformer, 2 layers of width 64 with 4 heads, 32 tokens of 1,000, the next one predicted at every place;
          200 clients x 50 samples, 20 a round, batch 10
    WG    two-layer GRU of 64 units, 40 characters of 80, likewise; 100 clients x 60 samples, 10 a round, batch 10
    WU1   unequal clients: FedProx's synthetic(1,1), 30 clients of 45 to 9,000 samples, 10 a round; FedProx, logistic
          regression, 20 epochs, batch 10, lr 0.01
    WU2   unequal clients: 32,561 samples of 123 inputs and two classes (a9a's size) divided over ten clients by
          Dirichlet 0.5, all in every round; MLP 123-37-1, batch 32
"""

from __future__ import annotations

import argparse
import copy
import gc
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from fedsim import Engine, Evaluate, Local
from fedsim.algorithms.fedavg import FedAvg
from fedsim.algorithms.fedprox import FedProx
from fedsim.assembly.assemble import assemble
from fedsim.assembly.parts import Parts
from fedsim.data import Dataset, Split, Synthetic
from fedsim.ground.process import claim
from fedsim.objective import Objective
from fedsim.partition import Blocks, Dirichlet, Natural
from fedsim.runs.run import Run
from fedsim.schedule import Uniform
from fedsim.types import Message, Round

LR = 0.05


@dataclass(frozen=True)
class NoOp(FedAvg):
    """Clients that send back a zero update: what is left is the engine."""

    def local(self, obj: Objective, client: tuple[()], got: Message, rnd: Round) -> tuple[Message, tuple[()]]:
        """No work."""
        return {"update": torch.zeros_like(got["x"]) * obj.steps}, client


@dataclass(frozen=True)
class Workload:
    """One row of the table.

    Attributes:
        clients: population.
        samples: per client.
        cohort: clients in a round.
        batch: minibatch, or "full".
        shape: of one input; of whole numbers where it has one dimension and ``tokens``.
        classes: number of classes (2: one logit), or of tokens.
        model: makes the module.
        train: whether clients train at all.
        tokens: inputs are tokens, targets the next ones.
        data: makes the samples, where they are not Gaussian classes or random tokens.
        division: over the clients, where they do not have equally many.
        epochs: passes over a client's samples in a round.
        mu: weight of FedProx's proximal term.
        lr: learning rate.
    """

    clients: int
    samples: int
    cohort: int
    batch: Any
    shape: tuple[int, ...]
    classes: int
    model: Callable[[], nn.Module]
    train: bool = True
    tokens: bool = False
    data: Callable[[], Dataset] | None = None
    division: Any = None
    epochs: int = 1
    mu: float = 0.0
    lr: float = LR

    @property
    def rule(self) -> Any:
        """What our engine runs."""
        if not self.train:
            return NoOp(lr=self.lr)
        return FedProx(lr=self.lr, mu=self.mu) if self.mu else FedAvg(lr=self.lr)

    def parts(self) -> tuple[Dataset, Any]:
        """The samples, and how they are divided."""
        return self.data() if self.data else gaussian_classes(self), self.division or Blocks(clients=self.clients)


def cnn(channels: tuple[int, int], hidden: int | None) -> nn.Module:
    """Two 5x5 convolutions without padding on 28x28, pooled; linear head, or one hidden layer before it."""
    a, b = channels
    body = [
        nn.Conv2d(1, a, 5),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(a, b, 5),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
    ]
    head = [nn.Linear(16 * b, 10)] if hidden is None else [nn.Linear(16 * b, hidden), nn.ReLU(), nn.Linear(hidden, 10)]
    return nn.Sequential(*body, *head)


def leaf_cnn() -> nn.Module:
    """LEAF's FEMNIST network: padded convolutions, a hidden layer of 512."""
    pool = nn.MaxPool2d(2)
    body = [
        nn.Conv2d(1, 32, 5, padding=2),
        nn.ReLU(),
        pool,
        nn.Conv2d(32, 64, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
    ]
    return nn.Sequential(*body, nn.Flatten(), nn.Linear(3136, 512), nn.ReLU(), nn.Linear(512, 10))


class Sequence(nn.Module):
    """Embedding, positions, a body of sequences, and a linear head at every place."""

    def __init__(self, vocabulary: int, places: int, width: int, body: nn.Module, hidden: int):
        super().__init__()
        self.embedding, self.body = nn.Embedding(vocabulary, width), body
        self.positions = nn.Parameter(0.02 * torch.randn(places, width))
        self.head = nn.Linear(hidden, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        """[m, t] -> [m, t, vocabulary]."""
        out = self.body(self.embedding(tokens) + self.positions)
        return self.head(out[0] if isinstance(out, tuple) else out)  # type: ignore[no-any-return]


def transformer() -> nn.Module:
    """Two pre-norm layers of torch's encoder with a causal mask."""
    layer = nn.TransformerEncoderLayer(64, 4, 256, 0.0, batch_first=True, norm_first=True)
    return Sequence(1000, 32, 64, Causal(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), 32), 64)


class Causal(nn.Module):
    """An encoder in which no place sees a later one."""

    def __init__(self, encoder: nn.Module, places: int):
        super().__init__()
        self.encoder = encoder
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(places))

    def forward(self, x: Tensor) -> Tensor:
        """[m, t, f] -> [m, t, f]."""
        return self.encoder(x, mask=self.mask, is_causal=True)  # type: ignore[no-any-return]


WORKLOADS = {
    "noop": Workload(100, 2, 50, 2, (1000,), 100, lambda: nn.Sequential(nn.Linear(1000, 100, bias=False)), train=False),
    "W1": Workload(100, 600, 10, 32, (1, 28, 28), 10, lambda: cnn((16, 32), None)),
    "W1L": Workload(100, 600, 10, 32, (1, 28, 28), 10, leaf_cnn),
    "W2": Workload(
        1000, 60, 100, 20, (784,), 10, lambda: nn.Sequential(nn.Linear(784, 200), nn.ReLU(), nn.Linear(200, 10))
    ),
    "W3": Workload(1000, 30, 1000, "full", (300,), 2, lambda: nn.Sequential(nn.Linear(300, 1))),
    "WT": Workload(200, 50, 20, 10, (32,), 1000, transformer, tokens=True),
    "WG": Workload(
        100, 60, 10, 10, (40,), 80, lambda: Sequence(80, 40, 8, nn.GRU(8, 64, 2, batch_first=True), 64), tokens=True
    ),
    "WU1": Workload(
        *(30, 0, 10, 10, (60,), 10, lambda: nn.Sequential(nn.Linear(60, 10))),
        data=lambda: Synthetic().load(0),
        division=Natural(),
        epochs=20,
        mu=1.0,
        lr=0.01,
    ),
    "WU2": Workload(
        *(10, 3256, 10, 32, (123,), 2, lambda: nn.Sequential(nn.Linear(123, 37), nn.ReLU(), nn.Linear(37, 1))),
        division=Dirichlet(clients=10, alpha=0.5),
    ),
}


def gaussian_classes(load: Workload, seed: int = 0) -> Dataset:
    """Inputs around one random centre per class, or random tokens."""
    random = np.random.default_rng(seed)
    if load.tokens:
        text = random.integers(load.classes, size=(load.clients * load.samples, load.shape[0] + 1))
        return Dataset("tokens", Split(text[:, :-1], text[:, 1:]), None, "next_token", load.classes)
    n, width = load.clients * load.samples, int(np.prod(load.shape))
    y = random.integers(load.classes, size=n)
    x = random.standard_normal((n, width), dtype=np.float32)
    x += 0.1 * random.standard_normal((load.classes, width), dtype=np.float32)[y]
    return Dataset("gaussian", Split(x.reshape(n, *load.shape), y), None, "classification", load.classes)


class Eager:
    """The loop one would write by hand: a module, torch.optim.SGD, one client after the other."""

    def __init__(self, load: Workload, device: str):
        torch.manual_seed(0)
        data, division = load.parts()
        rows = division.split(data, 0).train
        self.load, self.device, self.round = load, device, 0
        self.x = [torch.from_numpy(data.train.x[mine]).to(device) for mine in rows]
        self.y = [torch.from_numpy(data.train.y[mine]).to(device) for mine in rows]
        self.model = load.model().to(device)
        self.work = copy.deepcopy(self.model)

    def clients(self, cohort: list[int]) -> list[Tensor]:
        """Sum over the cohort of n_i times the client's trained parameters."""
        total = [torch.zeros_like(p) for p in self.model.parameters()]
        for i in cohort:
            self.work.load_state_dict(self.model.state_dict())
            optimizer = torch.optim.SGD(self.work.parameters(), lr=self.load.lr)
            for _ in range(self.load.epochs):
                self._epoch(self.x[i], self.y[i], optimizer)
            with torch.no_grad():
                torch._foreach_add_(total, list(self.work.parameters()), alpha=float(len(self.x[i])))
        return total

    def _epoch(self, x: Tensor, y: Tensor, optimizer: torch.optim.Optimizer) -> None:
        n = len(x)
        size = n if self.load.batch == "full" else self.load.batch
        order = torch.randperm(n).to(self.device) if size < n else None
        for first in range(0, n, size):
            chosen = slice(None) if order is None else order[first : first + size]
            out, target = self.work(x[chosen]), y[chosen]
            if out.shape[1] == 1:
                loss = F.binary_cross_entropy_with_logits(out[:, 0], target.to(out.dtype))
            else:
                loss = F.cross_entropy(out.flatten(0, -2), target.flatten())
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            if self.load.mu:
                with torch.no_grad():
                    for p, start in zip(self.work.parameters(), self.model.parameters(), strict=True):
                        p.grad.add_(p - start, alpha=self.load.mu)  # type: ignore[union-attr]
            optimizer.step()

    def set(self, totals: list[list[Tensor]], weight: float) -> None:
        """The weighted average of the shares becomes the model."""
        with torch.no_grad():
            for p, *parts in zip(self.model.parameters(), *totals, strict=True):
                p.copy_(sum(parts) / weight)

    def cohort(self) -> list[int]:
        """This round's clients, the same as our engine's."""
        self.round += 1
        return list(Uniform(cohort=self.load.cohort).clients(self.round - 1, self.load.clients, 0))

    def weight(self, cohort: list[int]) -> float:
        """Their samples."""
        return float(sum(len(self.x[i]) for i in cohort))

    def step(self) -> None:
        """One round in this process."""
        cohort = self.cohort()
        self.set([self.clients(cohort)], self.weight(cohort))
        if self.device == "cuda":
            torch.cuda.synchronize()


def _half(pipe: Any, name: str) -> None:
    torch.set_num_threads(1)
    eager = Eager(WORKLOADS[name], "cpu")
    while (message := pipe.recv()) is not None:
        cohort, parameters = message
        eager.set([[torch.from_numpy(p) for p in parameters]], 1.0)
        pipe.send([t.numpy() for t in eager.clients(cohort)])


class TwoProcesses:
    """The same loop in two processes, half of the cohort each, pipes between them."""

    def __init__(self, name: str):
        self.eager = Eager(WORKLOADS[name], "cpu")
        context = multiprocessing.get_context("spawn")
        self.pipes, self.processes = [], []
        for _ in range(2):
            mine, theirs = context.Pipe()
            process = context.Process(target=_half, args=(theirs, name), daemon=True)
            process.start()
            self.pipes.append(mine)
            self.processes.append(process)

    def step(self) -> None:
        """One round."""
        cohort = self.eager.cohort()
        parameters = [p.detach().numpy() for p in self.eager.model.parameters()]
        for j, pipe in enumerate(self.pipes):
            pipe.send((cohort[j::2], parameters))
        totals = [[torch.from_numpy(t) for t in pipe.recv()] for pipe in self.pipes]
        self.eager.set(totals, self.eager.weight(cohort))

    def close(self) -> None:
        """End both."""
        for pipe, process in zip(self.pipes, self.processes, strict=True):
            pipe.send(None)
            process.join()


@contextmanager
def engine_run(load: Workload, engine: Engine) -> Iterator[Run]:
    """Our engine on the workload, ready to step."""
    data, division = load.parts()
    torch.manual_seed(0)
    local = Local(batch_size=load.batch, epochs=load.epochs)
    schedule = Uniform(cohort=load.cohort)
    assembled = assemble(
        Parts(load.rule, data, division, load.model(), 10**9, schedule, local=local, engine=engine), data
    )
    backend = assembled.start()
    try:
        yield assembled.begin(backend, Evaluate(every=10**9))
    finally:
        backend.close()


def alternate(rounds: int, *steps: Callable[[], Any], clock: Callable[[], float] = time.perf_counter) -> list[float]:
    """Median seconds of each step over rounds that take turns; the first two rounds do not count."""
    times: list[list[float]] = [[] for _ in steps]
    gc.disable()
    for r in range(rounds + 2):
        for step, mine in zip(steps, times, strict=True):
            start = clock()
            step()
            if r >= 2:
                mine.append(clock() - start)
    gc.enable()
    return [statistics.median(mine) for mine in times]


def main() -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="counted rounds of each (default 7)")
    parser.add_argument("--only", nargs="+", choices=WORKLOADS, default=["noop", "W1", "W2", "W3"])
    parser.add_argument("--backends", nargs="+", choices=["serial", "ray"], default=["serial", "ray"])
    parser.add_argument("--actors", type=int, default=2, help="Ray actors (default 2)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--block", default="auto", help="engine.block (default auto)")
    parser.add_argument("--batching", choices=["auto", "loop"], default="auto", help="engine.batching")
    parser.add_argument("--kernel", choices=["auto", "stacked", "vmap"], default="auto", help="engine.kernel")
    options = parser.parse_args()
    torch.set_num_threads(1)
    block = options.block if options.block == "auto" else int(options.block)
    console = Console(width=110)
    table = Table(title=machine(options.device))
    for name in ("workload", "backend", "loop s/round", "fedsim s/round", "times faster", "us per client"):
        table.add_column(name, justify="left" if name in ("workload", "backend") else "right")
    for name in options.only:
        load = WORKLOADS[name]
        for backend in options.backends:
            engine = Engine(
                backend=backend,
                actors=options.actors,
                device=options.device,
                block=block,
                batching=options.batching,
                kernel=options.kernel,
            )
            with engine_run(load, engine) as run:
                if not load.train:
                    loop, ours = None, alternate(options.rounds * 3, run.step)[0]
                elif backend == "serial" or options.device == "cuda":
                    loop, ours = alternate(options.rounds, Eager(load, options.device).step, run.step)
                else:
                    pair = TwoProcesses(name)
                    loop, ours = alternate(options.rounds, pair.step, run.step)
                    pair.close()
            where = "serial, 1 core" if backend == "serial" else f"ray, {options.actors} actors"
            if options.device == "cuda":
                where = f"{backend}, GPU"
            against = ("-", "-") if loop is None else (f"{loop:.4f}", f"{loop / ours:.2f}")
            table.add_row(name, where, against[0], f"{ours:.4f}", against[1], f"{1e6 * ours / load.cohort:.0f}")
    console.print(table)
    console.print("loop: the hand-written eager loop, in one process (serial) or in two (ray)", style="dim")


def machine(device: str) -> str:
    """What the figures were measured on."""
    chip = torch.cuda.get_device_name() if device == "cuda" else f"{os.cpu_count()} cores {platform.machine()}"
    return f"{chip}, torch {torch.__version__}, Python {platform.python_version()}"


if __name__ == "__main__":
    claim()
    main()
