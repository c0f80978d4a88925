"""Pathological label skew: every client holds a few classes only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from fedsim.data.dataset import Dataset
from fedsim.errors import require
from fedsim.fields import check_fields
from fedsim.ground import addresses
from fedsim.ground.rng import numpy_stream
from fedsim.partition.population import (
    Population,
    apportion,
    bundle,
    by_class,
    even,
    labels,
    populate,
    refilled,
    require_clients,
)


@dataclass(frozen=True)
class Classes:
    """Every client owns exactly ``per_client`` classes; an owner's share of a class is uniform, then normalised.

    The rule of FedGH (Yi et al., FedGH: Heterogeneous Federated Learning with Generalized Global Header, ACM MM 2023,
    arXiv 2303.13137, reference code). A class is owned by per_client * n / classes clients (rounded up for randomly
    chosen classes when this is not whole), each with a share u / sum(u), u ~ U(share), of its training samples and at
    least one of them. **The test split has the same owners and shares.** Deviation: the code can give a client one
    class twice when the numbers do not divide; here its classes are always distinct. With per_client * n < classes
    some classes have no owner and their samples are unused.

    With ``owners=drawn`` the owners follow the rule ``noniid-#label`` of NIID-Bench (Li et al., ICDE 2022, arXiv
    2102.02079, ``partition_data`` of its utils.py; its shares are equal): client i owns class i mod classes, and its
    other classes are drawn, equally likely. Classes then have different numbers of owners, and clients different sizes.

    Attributes:
        clients: number of clients n, >= 1.
        per_client: classes of a client, in 1..classes.
        share: (low, high) of the uniform law of the shares, 0 < low <= high; equal ends give equal shares.
        owners: "even" or "drawn", see above.
        held_out: training samples, drawn at random, that no client gets, >= 0; FedGH's code keeps 10,000 for
            validation.
    """

    clients: int
    per_client: int
    share: tuple[float, ...] = (0.4, 0.6)
    owners: Literal["even", "drawn"] = "even"
    held_out: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        require(self.clients >= 1, "clients", "be >= 1", self.clients)
        require(self.per_client >= 1, "per_client", "be >= 1", self.per_client)
        ok = len(self.share) == 2 and 0 < self.share[0] <= self.share[1] < float("inf")
        require(ok, "share", "be two numbers with 0 < low <= high", list(self.share))
        require(self.held_out >= 0, "held_out", "be >= 0", self.held_out)

    def split(self, data: Dataset, seed: int) -> Population:
        """Divide ``data`` over the clients."""
        y = labels(data, "classes")
        require_clients(self.clients, data)
        present = np.unique(y)
        must = f"be <= the {len(present)} classes of data {data.name}"
        require(self.per_client <= len(present), "partition.per_client", must, self.per_client)
        must = f"be < the {len(y)} training samples of data {data.name}"
        require(self.held_out < len(y), "partition.held_out", must, self.held_out)
        rng = numpy_stream(seed, addresses.PARTITION)
        if self.held_out:
            y = y.copy()
            y[rng.choice(len(y), size=self.held_out, replace=False)] = -1  # of no class
        owners = self._owners(len(present), rng)
        shares = [rng.uniform(self.share[0], self.share[1], size=len(who)) for who in owners]
        for label, who in zip(present, owners, strict=True):
            size = int((y == label).sum())
            must = (
                f"leave each class at most as many owners as samples (class {label}: {len(who)} owners, {size} samples)"
            )
            require(len(who) <= size, "partition.clients", must, self.clients, "lower it or partition.per_client")
        train = self._deal(y, present, owners, shares, rng, at_least=1)
        test = () if data.test is None else self._deal(data.test.y, present, owners, shares, rng, at_least=0)
        return Population(train, test)

    def _owners(self, classes: int, rng: np.random.Generator) -> list[np.ndarray]:
        """The owners of each class; with ``owners=even`` their numbers differ by at most one.

        Then clients choose in turn among the classes with most places left, which keeps the numbers of places within
        one of each other, so that every client finds ``per_client`` distinct classes.
        """
        if self.owners == "drawn":
            first = np.arange(self.clients) % classes
            others = np.argsort(rng.random((self.clients, classes - 1)), axis=1)[:, : self.per_client - 1]
            others += others >= first[:, None]  # the classes but the first one
            chosen = np.column_stack([first, others])
            return [np.flatnonzero((chosen == label).any(axis=1)) for label in range(classes)]
        places = rng.permutation(even(self.clients * self.per_client, classes))
        chosen = np.empty((self.clients, self.per_client), dtype=np.int64)
        for client in range(self.clients):
            chosen[client] = np.lexsort((rng.random(classes), -places))[: self.per_client]
            places[chosen[client]] -= 1
        return [np.flatnonzero((chosen == label).any(axis=1)) for label in range(classes)]

    def _deal(
        self,
        y: np.ndarray,
        present: np.ndarray,
        owners: list[np.ndarray],
        shares: list[np.ndarray],
        rng: np.random.Generator,
        *,
        at_least: int,
    ) -> tuple[np.ndarray, ...]:
        """Divide the samples of each class with an owner in the given shares."""
        samples, holders = [], []
        for label, who, share in zip(present, owners, shares, strict=True):
            if len(who):
                pool = rng.permutation(np.flatnonzero(y == label))
                samples.append(pool)
                holders.append(np.repeat(who, apportion(len(pool), share, rng, at_least)))
        return bundle(np.concatenate(samples), np.concatenate(holders), self.clients)


@dataclass(frozen=True)
class ClassesPerClient:
    """Each client draws ``per_client`` classes, equally likely ones; sizes are equal, samples may repeat.

    The rule ``Pathological`` of FL-Simulator (its ``dataset.py``). Every client holds floor(samples / n) samples, each
    of one of its classes with equal probability; a class has as many owners as happen to draw it. **When a class runs
    out, its pool is refilled in the same order**, with the deviations named in ``DirichletPerClient``.

    Attributes:
        clients: number of clients n, >= 1.
        per_client: classes of a client, in 1..classes.
    """

    clients: int
    per_client: int

    def __post_init__(self) -> None:
        check_fields(self)
        require(self.clients >= 1, "clients", "be >= 1", self.clients)
        require(self.per_client >= 1, "per_client", "be >= 1", self.per_client)

    def split(self, data: Dataset, seed: int) -> Population:
        """Divide ``data`` over the clients."""
        y = labels(data, "classes_per_client")
        require_clients(self.clients, data)
        classes = len(np.unique(y))
        must = f"be <= the {classes} classes of data {data.name}"
        require(self.per_client <= classes, "partition.per_client", must, self.per_client)
        rng = numpy_stream(seed, addresses.PARTITION)
        chosen = rng.permuted(np.tile(np.arange(classes) < self.per_client, (self.clients, 1)), axis=1)
        return populate(data, refilled(y, chosen / self.per_client, rng), rng)


@dataclass(frozen=True)
class Shards:
    """Sort by label, cut into ``clients * per_client`` equal shards, give every client ``per_client`` random ones.

    McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized Data, AISTATS 2017, arXiv
    1602.05629, section 3 (MNIST: 100 clients, 2 shards of 300). Samples of one label are shuffled before the cut,
    so that the order of a file (MNIST's follows its writers) does not leak into the shards. Shard sizes differ by at
    most one.

    Attributes:
        clients: number of clients n, >= 1.
        per_client: shards of a client, >= 1.
    """

    clients: int
    per_client: int = 2

    def __post_init__(self) -> None:
        check_fields(self)
        require(self.clients >= 1, "clients", "be >= 1", self.clients)
        require(self.per_client >= 1, "per_client", "be >= 1", self.per_client)

    def split(self, data: Dataset, seed: int) -> Population:
        """Divide ``data`` over the clients."""
        y = labels(data, "shards")
        shards, total = self.clients * self.per_client, len(y)
        must = f"be <= the {total} training samples of data {data.name}"
        require(shards <= total, "partition.clients * partition.per_client", must, shards)
        rng = numpy_stream(seed, addresses.PARTITION)
        holder = rng.permutation(np.repeat(np.arange(self.clients), self.per_client))  # [shards]
        owners = np.repeat(holder, even(total, shards))
        return populate(data, bundle(by_class(y, rng), owners, self.clients), rng)
