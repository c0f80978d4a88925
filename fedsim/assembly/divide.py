"""First stage of assembly: the data set, and which client holds which of its samples."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fedsim.assembly.parts import Parts
from fedsim.data.dataset import Dataset
from fedsim.errors import InputError, require
from fedsim.ground.own_code import built_in, own_code
from fedsim.partition import Natural, Partition, Population
from fedsim.partition.population import samples_of, sizes_of
from fedsim.traits.declared import traits_of


def load(parts: Parts) -> Dataset:
    """The data set of a source, or the one that is in memory already; raises InputError when there is none."""
    data = parts.data
    if isinstance(data, Dataset):
        dataset = data
    else:
        with own_code("data", data):
            dataset = data.load(parts.seed)
        name = f"data: {type(data).__name__}.load"
        require(isinstance(dataset, Dataset), name, "return a fedsim.data.Dataset", type(dataset).__name__)
    return dataset if parts.task is None else replace(dataset, task=parts.task)


def divided(parts: Parts, dataset: Dataset) -> Population:
    """Who holds what.

    Raises:
        InputError: the partition fails, or leaves a client, or the evaluation, without samples.
    """
    with own_code("partition", parts.partition):
        population = parts.partition.split(dataset, parts.seed)
    require_population(population, dataset, parts.partition)
    sizes = sizes_of(population.train)
    if not sizes.all():
        empty = int(sizes.argmin())
        raise InputError(f"partition must give every client a training sample, got none for client {empty}")
    require(dataset.test is None or len(dataset.test) > 0, "data.test", "hold samples, or be None", 0)
    tested = any(len(rows) for rows in population.test or population.train)
    if "own" in traits_of(parts.algorithm).hooks and not tested:
        raise InputError("partition must give some client a test sample, for clients are tested on their own, got none")
    return population


def unused_clients(parts: Parts, dataset: Dataset) -> tuple[str, ...]:
    """A note where data name their clients and one of fedsim's own rules divides the samples without regard to them."""
    rule = parts.partition
    if not dataset.clients or isinstance(rule, Natural) or not built_in(rule):
        return ()
    named = f"data {dataset.name} names {len(dataset.clients)} clients, which partition=natural uses"
    return (f"{named}; {type(rule).__name__} divides the samples anew",)


def require_population(population: Population, data: Dataset, partition: Partition) -> None:
    """Raise InputError unless a partition gave its clients samples that exist, in training and in testing.

    A user's own gives none twice to one client; two clients may hold the same sample, as some rules mean it.
    """
    where, own = f"partition: {type(partition).__name__}.split", not built_in(partition)
    require(isinstance(population, Population), where, "return a Population", type(population).__name__)
    require(len(population) > 0, where, "return one or more clients", 0)
    counts = {len(population)} if data.test is not None else set()
    must = f"give each of the {len(population)} clients a test split, or none a single one (test=())"
    require(len(population.test) in counts | {0}, where, must, len(population.test))
    for name, split, owned in (("train", data.train, population.train), ("test", data.test, population.test)):
        _require_samples(where, f"data.{name}", 0 if split is None else len(split) - 1, owned, once=own)


def _require_samples(where: str, split: str, most: int, owned: tuple[np.ndarray, ...], *, once: bool) -> None:
    """Raise InputError unless all clients' samples are 0..most, and none twice with one client where that is asked for.

    All clients' are looked at together: a million of them one by one would take longer than all the rest of a start.
    """
    samples = samples_of(owned)
    if len(samples) and (samples.min() < 0 or samples.max() > most):
        wrong = (i for i, rows in enumerate(owned) if len(rows) and (rows.min() < 0 or rows.max() > most))
        client = next(wrong)
        rows = owned[client]
        got = f"{rows.min()}..{rows.max()} for client {client}"
        raise InputError(f"{where} must give samples 0..{most} of {split}, got {got}")
    if not once:
        return
    owners = np.repeat(np.arange(len(owned)), sizes_of(owned))
    order = np.lexsort((samples, owners))
    samples, owners = samples[order], owners[order]
    again = np.flatnonzero((np.diff(samples) == 0) & (np.diff(owners) == 0))
    if len(again):
        twice, client = int(samples[again[0]]), int(owners[again[0]])
        must = f"give a client each sample of {split} once"
        raise InputError(f"{where} must {must}, got sample {twice} more than once for client {client}")
