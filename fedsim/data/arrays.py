"""What every source does to its arrays once they are read: hold out a test split, standardise, digest."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from fedsim.data.dataset import Dataset, Split
from fedsim.errors import InputError, require

MEMORY_LIMIT_GB = 4.0


class TrainTest(NamedTuple):
    """Which samples are for training and which are held out."""

    train: np.ndarray  # [n - h] int64, ascending
    test: np.ndarray  # [h] int64, ascending


def check_share(share: float, name: str = "test_share") -> None:
    """Raise InputError unless the field ``name`` is a share of the samples that leaves some for training."""
    require(0 <= share < 1, name, "be in [0, 1)", share, "0 means no test split")


def holdout(strata: np.ndarray, share: float, rng: np.random.Generator) -> TrainTest:
    """Hold out round(share * n) samples at random, in proportion to the strata.

    Args:
        strata: [n] integers; equal numbers form one stratum, which gives the floor or the ceiling of its share.
        share: share of the samples to hold out, in [0, 1).
        rng: where the choice comes from.
    """
    order = rng.permutation(len(strata))
    kinds, counts = np.unique(strata, return_counts=True)
    exact = share * counts
    held = np.floor(exact).astype(np.int64)
    missing = round(share * len(strata)) - int(held.sum())
    held[np.argsort(held - exact, kind="stable")[:missing]] += 1  # largest remainders first
    shuffled = strata[order]
    test = np.zeros(len(strata), dtype=bool)
    for kind, count in zip(kinds, held, strict=True):
        test[order[shuffled == kind][:count]] = True
    return TrainTest(np.flatnonzero(~test), np.flatnonzero(test))


def holdout_of_each(client: np.ndarray, label: np.ndarray, share: float, rng: np.random.Generator) -> TrainTest:
    """Hold out about round(share * n) samples at random, in proportion to clients, and within a client to labels.

    Every client, and every label of a client, gives the floor or the ceiling of its share; but a client that would be
    left without a training sample gives one less. Samples are put in a random order in which those of a client, and
    within a client those of a label, follow each other; then every (1 / share)-th is held out. Unlike ``holdout`` with
    clients and labels as strata, this favours no label where a client has few samples of each.

    Args:
        client: [n] integers >= 0.
        label: [n] integers >= 0.
        share: share of the samples to hold out, in [0, 1).
        rng: where the choice comes from.
    """
    stratum = np.unique(np.stack([client, label], 1), axis=0, return_inverse=True)[1].reshape(-1)
    draws = (rng.random(len(client)), rng.random(len(client))[stratum], rng.random(int(client.max()) + 1)[client])
    held = np.zeros(len(client), dtype=bool)
    held[np.lexsort(draws)] = np.diff(np.floor(np.arange(len(client) + 1) * share + 0.5)) > 0
    clients, first = np.unique(client, return_index=True)
    held[first[~np.isin(clients, client[~held])]] = False
    return TrainTest(np.flatnonzero(~held), np.flatnonzero(held))


def divide(
    parts: TrainTest, x: np.ndarray, y: np.ndarray, group: np.ndarray | None = None
) -> tuple[Split, Split | None]:
    """The training split and the test split (None when nothing is held out)."""

    def part(chosen: np.ndarray) -> Split:
        return Split(x[chosen], y[chosen], None if group is None else group[chosen])

    return part(parts.train), part(parts.test) if len(parts.test) else None


def standardise(train: np.ndarray, *others: np.ndarray) -> list[np.ndarray]:
    """Subtract the mean of ``train`` and divide by its standard deviation, column by column.

    A column that is constant in ``train`` is only centred.

    Args:
        train: [n, f] the samples that give the statistics.
        others: [*, f] further samples that are transformed with them.

    Returns:
        float32 arrays: train, then the others.
    """
    mean, std = train.mean(0, dtype=np.float64), train.std(0, dtype=np.float64)
    std[std == 0] = 1.0
    return [((values - mean) / std).astype(np.float32) for values in (train, *others)]


def check_memory(what: str, shape: tuple[int, ...], itemsize: int, do: str) -> None:
    """Raise InputError when an array of this shape would not reasonably fit in memory."""
    size_gb = float(np.prod([float(s) for s in shape])) * itemsize / 1e9
    if size_gb > MEMORY_LIMIT_GB:
        axes = " x ".join(map(str, shape))
        raise InputError(
            f"{what} must fit in {MEMORY_LIMIT_GB:g} GB as a dense array, got {axes} numbers = {size_gb:.1f} GB; {do}"
        )


def with_digest(dataset: Dataset) -> Dataset:
    """The data set with the sha256 of its arrays: name, dtype, shape and bytes of each, in a fixed order."""
    named: list[tuple[str, np.ndarray | None]] = [("x0", dataset.x0)]
    for name, split in (("train", dataset.train), ("test", dataset.test)):
        if split is not None:
            named += [(f"{name}.x", split.x), (f"{name}.y", split.y), (f"{name}.group", split.group)]
    digest = hashlib.sha256()
    for name, array in named:
        if array is not None:
            digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
            digest.update(np.ascontiguousarray(array).data)
    return replace(dataset, digest=digest.hexdigest())
