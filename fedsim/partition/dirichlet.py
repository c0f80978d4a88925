"""The two label-skew partitions that are both called "Dirichlet" in the literature; their numbers do not compare."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedsim.data.dataset import Dataset
from fedsim.errors import InputError, require
from fedsim.fields import check_fields
from fedsim.ground import addresses
from fedsim.ground.rng import numpy_stream
from fedsim.partition.population import (
    Population,
    bundle,
    by_class,
    labels,
    populate,
    refilled,
    require_alpha,
    require_clients,
)


@dataclass(frozen=True)
class Dirichlet:
    """Each class is divided over the clients in proportions drawn from Dir(alpha, ..., alpha); sizes vary.

    Yurochkin et al., Bayesian Nonparametric Federated Learning of Neural Networks, ICML 2019, arXiv 1905.12022. Every
    sample goes to exactly one client. A draw that leaves a client below ``min_samples`` is redrawn as a whole, so the
    proportions follow the Dirichlet law given that event. One draw succeeds with probability 0.999 for 20 clients on
    digits at alpha 0.3, 0.79 for 100 clients on MNIST at 0.1 and 0.03 for the latter at 0.05 (measured, default
    ``min_samples``).

    With ``cap`` this is the rule ``noniid-labeldir`` of NIID-Bench (Li et al., ICDE 2022, arXiv 2102.02079,
    ``partition_data`` of its utils.py): classes are dealt in order, and a client that already holds its even share,
    samples / n, gets nothing of later ones, whose proportions are divided anew over the others. Sizes vary less, and
    the law depends on the order of the classes: with few classes the last one goes to the clients that the first ones
    left small. Deviation: cuts are rounded to the nearest sample, where the code rounds down.

    >>> from fedsim.data import Digits
    >>> population = Dirichlet(clients=20, alpha=0.3).split(Digits().load(seed=0), seed=0)
    >>> len(population.train), min(len(samples) for samples in population.train) >= 2
    (20, True)

    Attributes:
        clients: number of clients n, >= 1.
        alpha: concentration, in (0, 1e6]; without ``cap`` a client's share of a class has mean 1/n and variance
            (n - 1) / (n^2 (n alpha + 1)).
        min_samples: least samples of a client, >= 1.
        attempts: number of draws before giving up, >= 1.
        cap: a client that holds samples / n gets no further class.
    """

    clients: int
    alpha: float
    min_samples: int = 2
    attempts: int = 100
    cap: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        require(self.clients >= 1, "clients", "be >= 1", self.clients)
        require_alpha(self.alpha)
        require(self.min_samples >= 1, "min_samples", "be >= 1", self.min_samples)
        require(self.attempts >= 1, "attempts", "be >= 1", self.attempts)

    def split(self, data: Dataset, seed: int) -> Population:
        """Divide ``data`` over the clients."""
        y = labels(data, "dirichlet")
        require_clients(self.clients, data)
        sizes = np.bincount(y, minlength=data.outputs)
        best = 0
        for attempt in range(self.attempts):
            rng = numpy_stream(seed, addresses.PARTITION, attempt)
            counts = self._counts(sizes, rng)
            smallest = int(counts.sum(axis=0).min())
            if smallest >= self.min_samples:
                owners = np.repeat(np.tile(np.arange(self.clients), len(sizes)), counts.reshape(-1))
                return populate(data, bundle(by_class(y, rng), owners, self.clients), rng)
            best = max(best, smallest)
        raise InputError(
            f"partition=dirichlet: none of {self.attempts} draws at alpha {self.alpha:g} gave each of the "
            f"{self.clients} clients >= {self.min_samples} samples (best: {best}); "
            "raise partition.alpha or partition.attempts, or lower partition.clients or partition.min_samples"
        )

    def _counts(self, sizes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Samples by class and client [classes, n], from the sizes of the classes [classes]."""
        shares = rng.dirichlet(np.full(self.clients, self.alpha), size=len(sizes))
        if not self.cap:
            return _cut(shares, sizes)
        counts = np.zeros((len(sizes), self.clients), dtype=np.int64)
        for label, share in enumerate(shares):
            open_share = np.where(counts.sum(axis=0) < sizes.sum() / self.clients, share, 0.0)
            if not open_share.sum():  # the shares of all clients with room have underflowed: a draw that failed
                return np.zeros_like(counts)
            counts[label] = _cut(open_share[None] / open_share.sum(), sizes[label : label + 1])[0]
        return counts


def _cut(shares: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Samples by class and client [classes, n], from shares [classes, n] that sum to 1 and the sizes of the classes."""
    # The cumulated shares are rounded, not each share: so no sample is lost. The last sum may miss 1 by rounding.
    cuts = np.rint(np.cumsum(shares, axis=1) * sizes[:, None]).astype(np.int64)
    cuts[:, -1] = sizes
    return np.diff(cuts, axis=1, prepend=0)


@dataclass(frozen=True)
class DirichletPerClient:
    """Each client draws its class proportions from Dir(alpha, ..., alpha); sizes are equal, samples may repeat.

    The rule of FL-Simulator (its ``dataset.py``), behind the published FedSpeed and FedSMOO numbers; Hsu et al.,
    Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification, 2019, arXiv
    1909.06335, use the same prior without refilling. Every client holds floor(samples / n) samples. **When a class
    runs out, its pool is refilled in the same order**, so a sample may be held by several clients (rarely twice by
    one) and another by none. Deviations from the code: a client's class counts are one multinomial draw instead of a
    draw per sample, which is the same law but for the label the code redraws at each refill; samples left over by the
    division are unused, where the code gives them to the first client; classes without samples are left out of the
    prior.

    Attributes:
        clients: number of clients n, >= 1.
        alpha: concentration, in (0, 1e6].
    """

    clients: int
    alpha: float

    def __post_init__(self) -> None:
        check_fields(self)
        require(self.clients >= 1, "clients", "be >= 1", self.clients)
        require_alpha(self.alpha)

    def split(self, data: Dataset, seed: int) -> Population:
        """Divide ``data`` over the clients."""
        y = labels(data, "dirichlet_per_client")
        require_clients(self.clients, data)
        rng = numpy_stream(seed, addresses.PARTITION)
        priors = rng.dirichlet(np.full(len(np.unique(y)), self.alpha), size=self.clients)
        return populate(data, refilled(y, priors, rng), rng)
