"""Partitions that look at sizes only and fit every task: iid, log-normal or Dirichlet sizes, consecutive blocks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedsim.data.dataset import Dataset
from fedsim.errors import InputError, require
from fedsim.fields import check_fields
from fedsim.ground import addresses
from fedsim.ground.rng import numpy_stream
from fedsim.partition.population import Population, apportion, bundle, even, populate, require_alpha, require_clients


@dataclass(frozen=True)
class Iid:
    """Shuffle, then deal equal parts (sizes differ by at most one).

    >>> from fedsim.data import Digits
    >>> population = Iid(clients=3).split(Digits().load(seed=0), seed=0)
    >>> [len(samples) for samples in population.train]
    [480, 479, 479]

    Attributes:
        clients: number of clients n, >= 1.
    """

    clients: int

    def __post_init__(self) -> None:
        check_fields(self)
        require(self.clients >= 1, "clients", "be >= 1", self.clients)

    def split(self, data: Dataset, seed: int) -> Population:
        """Divide ``data`` over the clients."""
        require_clients(self.clients, data)
        rng = numpy_stream(seed, addresses.PARTITION)
        owners = np.repeat(np.arange(self.clients), even(len(data.train), self.clients))
        return populate(data, bundle(rng.permutation(len(data.train)), owners, self.clients), rng)


@dataclass(frozen=True)
class Quantity:
    """Clients with equal content and log-normal sizes (quantity skew).

    As in FedDyn (Acar et al., Federated Learning Based on Dynamic Regularization, ICLR 2021, arXiv 2111.04263),
    sizes are proportional to exp(sigma * N(0, 1)).

    Attributes:
        clients: number of clients n, >= 1.
        sigma: standard deviation of the logarithm of a client's size, >= 0; 0 gives equal sizes.
        min_samples: samples every client has before the rest is divided, >= 1.
    """

    clients: int
    sigma: float
    min_samples: int = 2

    def __post_init__(self) -> None:
        check_fields(self)
        require(self.clients >= 1, "clients", "be >= 1", self.clients)
        # exp overflows near 709; five standard deviations of sigma = 100 stay below it
        require(0 <= self.sigma <= 100, "sigma", "be in [0, 100]", self.sigma)
        require(self.min_samples >= 1, "min_samples", "be >= 1", self.min_samples)

    def split(self, data: Dataset, seed: int) -> Population:
        """Divide ``data`` over the clients."""
        require_clients(self.clients, data)
        most = len(data.train) // self.clients
        must = f"be <= {most} for {self.clients} clients on the {len(data.train)} training samples of data {data.name}"
        require(self.min_samples <= most, "partition.min_samples", must, self.min_samples)
        rng = numpy_stream(seed, addresses.PARTITION)
        weights = rng.lognormal(sigma=self.sigma, size=self.clients)
        sizes = apportion(len(data.train), weights, rng, at_least=self.min_samples)
        owners = np.repeat(np.arange(self.clients), sizes)
        return populate(data, bundle(rng.permutation(len(data.train)), owners, self.clients), rng)


@dataclass(frozen=True)
class QuantityDirichlet:
    """Clients with equal content and sizes in proportions drawn from Dir(alpha, ..., alpha) (quantity skew).

    The rule ``iid-diff-quantity`` of NIID-Bench (Li et al., Federated Learning on Non-IID Data Silos: An Experimental
    Study, ICDE 2022, arXiv 2102.02079, ``partition_data`` of its utils.py): proportions that would leave a client
    below ``min_samples`` are drawn again, all of them, so they follow the Dirichlet law given that event. One draw
    succeeds with probability 0.72 for 10 clients on CIFAR-10 at alpha 0.5 and 0.10 on the digits (measured, default
    ``min_samples``). Deviation: sizes are rounded by largest remainders, where the code rounds down the cuts.

    Attributes:
        clients: number of clients n, >= 1.
        alpha: concentration, in (0, 1e6]; without redraws the relative variance of a size is (n - 1) / (n alpha + 1).
        min_samples: least samples of a client, >= 1.
        attempts: number of draws before giving up, >= 1.
    """

    clients: int
    alpha: float
    min_samples: int = 10
    attempts: int = 10000

    def __post_init__(self) -> None:
        check_fields(self)
        require(self.clients >= 1, "clients", "be >= 1", self.clients)
        require_alpha(self.alpha)
        require(self.min_samples >= 1, "min_samples", "be >= 1", self.min_samples)
        require(self.attempts >= 1, "attempts", "be >= 1", self.attempts)

    def split(self, data: Dataset, seed: int) -> Population:
        """Divide ``data`` over the clients."""
        require_clients(self.clients, data)
        total = len(data.train)
        rng = numpy_stream(seed, addresses.PARTITION)
        best = 0.0
        for _ in range(self.attempts):
            proportions = rng.dirichlet(np.full(self.clients, self.alpha))
            smallest = float(proportions.min()) * total
            if smallest >= self.min_samples:
                owners = np.repeat(np.arange(self.clients), apportion(total, proportions, rng))
                return populate(data, bundle(rng.permutation(total), owners, self.clients), rng)
            best = max(best, smallest)
        raise InputError(
            f"partition=quantity_dirichlet: none of {self.attempts} draws at alpha {self.alpha:g} gave each of the "
            f"{self.clients} clients >= {self.min_samples} of the {total} samples (best: {best:.1f}); "
            "raise partition.alpha or partition.attempts, or lower partition.clients or partition.min_samples"
        )


@dataclass(frozen=True)
class Blocks:
    """Consecutive blocks of samples in file order, or sorted by label; sizes differ by at most one.

    Without ``mixed`` the training split does not depend on the seed.

    Attributes:
        clients: number of clients n, >= 1.
        sort: sort by label (or regression target) first; samples of one label keep their file order.
        mixed: share of the samples, drawn at random, that is dealt evenly at random instead, in [0, 1]; 0.5 with
            ``sort`` is "half the data split by class".
    """

    clients: int
    sort: bool = False
    mixed: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self)
        require(self.clients >= 1, "clients", "be >= 1", self.clients)
        require(0 <= self.mixed <= 1, "mixed", "be in [0, 1]", self.mixed)

    def split(self, data: Dataset, seed: int) -> Population:
        """Divide ``data`` over the clients."""
        require_clients(self.clients, data)
        if self.sort and data.train.y.ndim != 1:
            raise InputError(
                f"partition.sort must be false for data {data.name}, whose samples have several targets each"
            )
        samples = np.argsort(data.train.y, kind="stable") if self.sort else np.arange(len(data.train))
        rng = numpy_stream(seed, addresses.PARTITION)
        if self.mixed:
            chosen = rng.random(len(samples)) < self.mixed
            samples = np.concatenate([samples[~chosen], rng.permutation(samples[chosen])])
            sizes = [even(int(part.sum()), self.clients) for part in (~chosen, chosen)]
            sizes[1] = sizes[1][::-1]  # larger ones last, to even out
        else:
            sizes = [even(len(samples), self.clients)]
        owners = np.concatenate([np.repeat(np.arange(self.clients), size) for size in sizes])
        return populate(data, bundle(samples, owners, self.clients), rng)
