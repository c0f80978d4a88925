"""What is measured: data and settings of every row, in NumPy alone, so that any simulator reads them.

FedAvg with SGD of lr 0.05 and one local epoch unless a row says else; synthetic Gaussian classes or random tokens, a
fresh order of samples for every client and round.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

LR = 0.05
SLOW = 0.01
"""D-PSGD's (D1 to D3)."""

RHO = 0.01
"""Length of SAM's ascent step (W6)."""

RATIO, ETA = 0.01, 0.1
"""Part of the coordinates that Top-K keeps, and EControl's eta (W7)."""

CLIP, NOISE = 1.0, 1.0
"""Largest norm of a sample's gradient, and the noise multiplier (W8)."""


@dataclass(frozen=True)
class Workload:
    """One row of the table.

    Attributes:
        clients: population.
        samples: per client, or where they have unequal numbers, all of them in the order of clients.
        cohort: clients in a round.
        batch: minibatch, or "full".
        shape: of one input; of whole numbers where it has one dimension and ``tokens``.
        classes: number of classes (2: one logit), or of tokens.
        model: its name among ``models.MODELS``; "" where there is no module.
        method: what clients do; ``nothing`` measures the engine alone.
        tokens: inputs are tokens, targets the next ones.
        rounds: in what is timed at once, where one is too short.
        epochs: passes over a client's samples in a round.
        mu: weight of FedProx's term.
        lr: learning rate.
    """

    clients: int
    samples: int | tuple[int, ...]
    cohort: int
    batch: int | Literal["full"]
    shape: tuple[int, ...]
    classes: int
    model: str
    method: Literal["fedavg", "nothing", "dfedsam", "dpsgd", "econtrol", "dp_sgd"] = "fedavg"
    tokens: bool = False
    rounds: int = 1
    epochs: int = 1
    mu: float = 0.0
    lr: float = LR

    @property
    def sizes(self) -> tuple[int, ...]:
        """Samples of every client."""
        return self.samples if isinstance(self.samples, tuple) else (self.samples,) * self.clients

    @property
    def size(self) -> int:
        """Samples in a minibatch."""
        return self.sizes[0] if self.batch == "full" else self.batch

    @property
    def peers(self) -> bool:
        """Whether clients are peers on a ring, without a server."""
        return self.method in ("dfedsam", "dpsgd")


def power_law() -> tuple[int, ...]:
    """Sizes of 30 clients as in FedProx's synthetic data: lognormal, and 50 more."""
    return tuple(int(min(n, 9000)) + 50 for n in np.random.default_rng(0).lognormal(4, 2, 30))


def shares() -> tuple[int, ...]:
    """32,561 samples, as many as a9a has, divided over ten clients by Dirichlet 0.5."""
    return tuple(int(n) + 10 for n in 32461 * np.random.default_rng(0).dirichlet([0.5] * 10))


IMAGE: Any = (1, 28, 28)
WORKLOADS = {
    "noop": Workload(100, 2, 50, 2, (1000,), 100, "zeros", "nothing"),
    "W1": Workload(100, 600, 10, 32, IMAGE, 10, "cnn"),
    "W1L": Workload(100, 600, 10, 32, IMAGE, 10, "leaf_cnn"),
    "W2": Workload(1000, 60, 100, 20, (784,), 10, "mlp"),
    "W3": Workload(1000, 30, 1000, "full", (300,), 2, "logistic"),
    "WT": Workload(200, 50, 20, 10, (32,), 1000, "transformer", tokens=True),
    "WG": Workload(100, 60, 10, 10, (40,), 80, "gru", tokens=True),
    "W4": Workload(100, 50, 10, 50, (3, 32, 32), 10, "resnet18"),
    "W6": Workload(100, 60, 100, 20, IMAGE, 10, "cnn", "dfedsam"),
    "W7": Workload(100, 600, 10, 32, IMAGE, 10, "cnn", "econtrol"),
    "W8": Workload(1000, 60, 100, 20, (784,), 10, "mlp", "dp_sgd"),
    "WU1": Workload(30, power_law(), 30, 10, (60,), 10, "softmax", epochs=4, mu=1.0, lr=0.01),
    "WU2": Workload(10, shares(), 10, 32, (123,), 2, "narrow"),
    "D1": Workload(10, 20, 10, "full", (10,), 1, "", "dpsgd", rounds=100),
    "D2": Workload(100, 20, 100, "full", (10,), 1, "", "dpsgd", rounds=20),
    "D3": Workload(100, 200, 100, "full", (200,), 1, "", "dpsgd", rounds=20),
}


def samples(load: Workload, seed: int = 0) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Inputs [n, *shape] and targets of all clients, one after the other: around one random centre per class;
    one class is least squares, in float64."""
    random = np.random.default_rng(seed)
    n = sum(load.sizes)
    if load.tokens:
        text = random.integers(load.classes, size=(n, load.shape[0] + 1))
        return text[:, :-1], text[:, 1:]
    width = int(np.prod(load.shape))
    if load.classes == 1:
        x = random.standard_normal((n, width)) / np.sqrt(load.sizes[0])
        return x, x @ random.standard_normal(width)
    y = random.integers(load.classes, size=n)
    x = random.standard_normal((n, width), dtype=np.float32)
    x += 0.1 * random.standard_normal((load.classes, width), dtype=np.float32)[y]
    return x.reshape(n, *load.shape), y
