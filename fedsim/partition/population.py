"""Who holds what: the result of a partition, and the arithmetic every rule shares."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, Protocol

import numpy as np

from fedsim.data.dataset import Dataset
from fedsim.data.losses import task_of
from fedsim.errors import InputError, require


@dataclass(frozen=True, eq=False)
class Population:
    """The samples of each of n clients; compare two of them by ``digest``.

    A sample may belong to several clients, each of which trains on it and weighs it, or to none.

    Attributes:
        train: n read-only int64 arrays of ascending indices into ``data.train``; lists are converted.
        test: n read-only int64 arrays of ascending indices into ``data.test``, each client's own test split, possibly
            empty for a client when the test set is small; ``()`` when the data set has no test samples.
    """

    train: tuple[np.ndarray, ...]
    test: tuple[np.ndarray, ...]

    def __post_init__(self) -> None:
        for name in ("train", "test"):
            object.__setattr__(self, name, _rows(getattr(self, name), f"Population.{name}"))

    def __len__(self) -> int:
        return len(self.train)

    def counts(self, data: Dataset) -> np.ndarray:
        """Training samples of each client by class, [n, classes]; [n, 1] sizes when the task is not classification."""
        return counts_of(self.train, data)

    @cached_property
    def digest(self) -> str:
        """sha256 over the assignment: sizes and indices as little-endian int64, train then test."""
        sha = hashlib.sha256()
        for split in (self.train, self.test):
            sizes = sizes_of(split)
            sha.update(np.concatenate([[len(split)], sizes, samples_of(split)]).astype("<i8").tobytes())
        return sha.hexdigest()


_INT64 = np.dtype(np.int64)


def _rows(split: Sequence[Any], name: str) -> tuple[np.ndarray, ...]:
    """Each client's samples as a read-only int64 array."""
    rows = tuple(split)
    # Of a million clients most are right as they come; only others are looked at in words.
    if not all(type(one) is np.ndarray and one.dtype is _INT64 and one.ndim == 1 for one in rows):
        rows = tuple(_indices(one, f"{name}[{i}]") for i, one in enumerate(rows))
    for one in rows:
        one.setflags(write=False)
    return rows


def _indices(indices: Any, name: str) -> np.ndarray:
    """A client's samples as an int64 array."""
    array = np.asarray(indices)
    whole = array.ndim == 1 and (array.dtype.kind in "iu" or not array.size)
    require(whole, name, "be [samples] whole numbers", f"{array.dtype} {list(array.shape)}")
    return array.astype(np.int64, copy=False)


def sizes_of(split: Sequence[np.ndarray]) -> np.ndarray:
    """[n] how many samples each client of a split has."""
    return np.fromiter(map(len, split), np.int64, len(split))


def samples_of(split: Sequence[np.ndarray]) -> np.ndarray:
    """The samples of all clients of a split, one client after the other."""
    return np.concatenate(split) if len(split) else np.empty(0, dtype=np.int64)


def counts_of(train: Sequence[np.ndarray], data: Dataset) -> np.ndarray:
    """Samples of each client by class, as ``Population.counts``, of a split that is not yet part of a population."""
    n, sizes = len(train), sizes_of(train)
    if not task_of(data.task).classes:
        return sizes[:, None]
    cells = np.repeat(np.arange(n), sizes) * data.outputs + data.train.y[samples_of(train)]
    return np.bincount(cells, minlength=n * data.outputs).reshape(n, data.outputs)


class Partition(Protocol):
    """A rule that divides a data set over clients: a frozen dataclass of options with one method."""

    def split(self, data: Dataset, seed: int) -> Population:
        """Divide ``data``; a pure function of its arguments. Raises InputError when the rule cannot be satisfied.

        A rule of a user's own gives no sample twice to one client.
        """
        ...


def require_clients(clients: int, data: Dataset) -> None:
    """Raise InputError unless every client can have a training sample."""
    total = len(data.train)
    require(clients <= total, "partition.clients", f"be <= the {total} training samples of data {data.name}", clients)


def require_alpha(alpha: float) -> None:
    """Raise InputError unless ``alpha`` is a concentration that a Dirichlet law can be drawn with."""
    # numpy's Dirichlet overflows at the far end; at 1e6 the split is iid in all but name
    require(0 < alpha <= 1e6, "alpha", "be in (0, 1e6]", alpha, "small is heterogeneous, large is iid")


def labels(data: Dataset, rule: str) -> np.ndarray:
    """The training labels [samples], for a rule that needs classes.

    Raises:
        InputError: the data set has no classes.
    """
    if not task_of(data.task).classes:
        raise InputError(
            f"partition={rule} needs class labels, but data {data.name} is a {data.task} task; "
            "use partition=iid, quantity, quantity_dirichlet, blocks or natural"
        )
    return data.train.y


def by_class(y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Sample indices [samples] sorted by class, in random order within a class."""
    order = rng.permutation(len(y))
    return order[np.argsort(y[order], kind="stable")]


def even(total: int, parts: int) -> np.ndarray:
    """Sizes [parts] that differ by at most one, larger ones first."""
    sizes = np.full(parts, total // parts, dtype=np.int64)
    sizes[: total % parts] += 1
    return sizes


def apportion(total: int, weights: np.ndarray, rng: np.random.Generator, at_least: int = 0) -> np.ndarray:
    """Integer sizes [n] that sum to ``total``, in proportion to ``weights`` [n]: largest remainders, ties at random.

    Every size starts at ``at_least`` (n * at_least <= total) and the rest is divided in proportion. Ties are broken at
    random, since otherwise the first clients would always get the odd samples.
    """
    rest = total - at_least * len(weights)
    quota = rest * (weights / weights.sum())
    sizes: np.ndarray = np.floor(quota).astype(np.int64)
    by_remainder = np.lexsort((rng.random(len(weights)), sizes - quota))
    sizes[by_remainder[: rest - int(sizes.sum())]] += 1
    sizes += at_least
    return sizes


def bundle(samples: np.ndarray, owners: np.ndarray, clients: int) -> tuple[np.ndarray, ...]:
    """The ascending samples of each client, from parallel arrays of samples [s] and their owners [s]."""
    ordered = samples[np.lexsort((samples, owners))]
    ends = np.cumsum(np.bincount(owners, minlength=clients)).tolist()
    return tuple(ordered[a:b] for a, b in pairwise([0, *ends]))


def refilled(y: np.ndarray, priors: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Equally many samples for every client, drawn from its class proportions, the rows of ``priors`` [n, classes].

    The columns are the classes that occur in ``y``, ascending. **When a class runs out, its pool is refilled in the
    same order**, so a sample may be held by several clients (rarely twice by one) and another by none.
    """
    counts = rng.multinomial(len(y) // len(priors), priors)  # [n, classes present]
    samples, owners = [], []
    for label, column in zip(np.unique(y), counts.T, strict=True):
        pool = rng.permutation(np.flatnonzero(y == label))
        samples.append(np.resize(pool, int(column.sum())))  # repeats the pool, in the same order
        owners.append(rng.permutation(np.repeat(np.arange(len(priors)), column)))
    return bundle(np.concatenate(samples), np.concatenate(owners), len(priors))


def populate(data: Dataset, train: tuple[np.ndarray, ...], rng: np.random.Generator) -> Population:
    """Complete a training split with each client's own test split, distributed like its training samples.

    Each class of the test set is divided over the clients in proportion to their training counts of that class
    (largest remainders, random within the class), so a test sample belongs to exactly one client, or to none when no
    client trains on its class. Without classes, the whole test set is divided in proportion to the clients' sizes.
    """
    if data.test is None:
        return Population(train, ())
    counts = counts_of(train, data)
    y = data.test.y if task_of(data.task).classes else np.zeros(len(data.test), dtype=np.int64)
    owners = [
        np.repeat(np.arange(len(train)), apportion(size, column, rng) if column.any() else 0)
        for size, column in zip(np.bincount(y, minlength=counts.shape[1]).tolist(), counts.T, strict=True)
    ]
    samples = by_class(y, rng)
    samples = samples[counts.sum(axis=0)[y[samples]] > 0]  # classes that some client trains on
    return Population(train, bundle(samples, np.concatenate(owners), len(train)))
