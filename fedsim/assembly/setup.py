"""Seventh stage of assembly: what every worker is given, with the samples in client order; models tried on samples."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedsim.assembly.initial import Initial, cast
from fedsim.assembly.kernel_table import table_of
from fedsim.assembly.measuring import measurable, measures_of
from fedsim.assembly.network import is_peers
from fedsim.assembly.parts import Parts
from fedsim.channel.channel import Channel
from fedsim.data.batches import Feed, Samples, as_tensor
from fedsim.data.dataset import Dataset, Split
from fedsim.errors import InputError, require
from fedsim.ground.own_code import FAILURES, said
from fedsim.kernels.kernel import Kernel
from fedsim.models import twin
from fedsim.partition import Population
from fedsim.partition.population import samples_of, sizes_of
from fedsim.pool.worker import Setup


def set_up(
    parts: Parts, dataset: Dataset, population: Population, initial: Initial, written: tuple[str, ...] = ()
) -> Setup:
    """What every worker is given; its kernels are those of a loop, until others are known to be right.

    Raises:
        InputError: a sample or target does not fit the run's dtype, a model does not take the samples, or a loss or
            metric is not what it says.
    """
    engine, dtype = parts.engine, parts.dtype
    train = _samples(dataset, dataset.train, population.train, dtype, augmented=True)
    test = train if dataset.test is None else _samples(dataset, dataset.test, population.test, dtype, augmented=False)
    rough: list[Kernel] = ["loop"] * len(initial.models)
    setup = Setup(
        algorithm=initial.algorithm,
        models=tuple(model.to(dtype) for model in initial.models),
        measures=measures_of(parts.evaluate, dataset),
        train=train,
        test=test,
        local=parts.local,
        aggregate=parts.aggregate,
        uplink=Channel() if is_peers(parts.algorithm) else parts.channel,  # peers' layers are the driver's
        downlink=parts.downlink,
        kernels=tuple(rough),
        by_layer=(True,) * len(initial.models),
        predictions=tuple(rough),
        dtype=dtype,
        precision=engine.precision,
        device=engine.device,
        threads=engine.threads,
        seed=parts.seed,
        written=written,
        wide=table_of(engine).wide,
    )
    for name, samples in (("train", train), ("test", test)):
        require_fit(setup, name, samples)
    return measurable(parts, setup)


def _samples(
    data: Dataset, split: Split, owned: tuple[np.ndarray, ...], dtype: torch.dtype, *, augmented: bool
) -> Samples:
    """A split in client order, in the run's dtype; samples that nobody owns (test only) come last."""
    order = samples_of(owned)
    start = np.concatenate([[0], np.cumsum(sizes_of(owned))]).astype(np.int64)
    if not augmented:
        order = np.concatenate([order, np.setdiff1d(np.arange(len(split)), order)])
    x = as_tensor(split.x).index_select(0, torch.from_numpy(order))  # memory of torch's is aligned as workers want it
    which = "train" if augmented else "test"
    x = cast(x, dtype, f"data.{which}.x")  # here once, not in every worker
    cast(as_tensor(split.y), dtype, f"data.{which}.y")
    return Samples(x.numpy(), split.y[order], start, data.mean, data.std, data.augment if augmented else None)


def require_fit(setup: Setup, which: str, samples: Samples) -> None:
    """Raise InputError unless every model takes real samples as workers feed them, and has an output for each target.

    Of tokens those with the smallest and the largest number are tried too: an embedding may have no row for them.
    """
    rows = {0}
    if samples.x.dtype == np.int64:
        each = samples.x[0].size
        rows |= {int(samples.x.argmin()) // each, int(samples.x.argmax()) // each}
    some, task, dtype = sorted(rows), setup.task, setup.dtype
    for model in setup.models:
        device = next(model.parameters()).device
        feed = Feed(replace(samples, x=samples.x[some], y=samples.y[some]), device, dtype)
        x, y = feed.take(torch.arange(len(some), device=device), None)
        name = f"model {type(model).__name__}"
        try:
            with torch.no_grad():
                tried = twin(model)  # a copy: what forward keeps is no part of the run
                tried.train(not setup.written)  # a few samples need not have statistics
                out: Any = tried(x)
        except FAILURES as error:  # user code: any type
            what = f"{samples.x.dtype} samples {some} of data.{which} of shape {list(x.shape[1:])}"
            do = "; whole numbers are tokens: for features pass x.astype('float32')" if x.dtype == torch.int64 else ""
            raise InputError(f"{name} fails on {what}: {said(error)}{do}") from error
        got = list(out.shape) if isinstance(out, Tensor) else type(out).__name__
        wide = task.wide(y)
        shape = ", ".join(map(str, y.shape if wide else (*y.shape, "k")))
        must = f"have outputs [{shape}] for {len(some)} sample{'s'[: len(some) > 1]} of the {task} task"
        require(isinstance(out, Tensor) and (out.shape if wide else out.shape[:-1]) == y.shape, name, must, got)
