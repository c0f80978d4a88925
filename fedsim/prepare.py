"""From the parts of a run to what its workers need: model, samples in client order, execution choices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.aggregate import Mean
from fedsim.algorithms.base import ServerAlgorithm
from fedsim.data.base import Dataset, Split
from fedsim.data.batches import Samples, as_tensor
from fedsim.engine.config import Engine
from fedsim.engine.kernel import Kernel, kernel_rule
from fedsim.engine.serial import Serial
from fedsim.engine.worker import Backend, Setup
from fedsim.errors import InputError, require
from fedsim.layout import Layout
from fedsim.local import Local
from fedsim.models import Factory, build
from fedsim.partition import Population
from fedsim.tree import leaves, tensors


@dataclass(frozen=True)
class Prepared:
    """A run that could start.

    Attributes:
        setup: what every worker is given.
        x0: [d] initial model.
        kernel: how blocks are computed, ``auto`` resolved.
        block: most clients computed at once, ``auto`` resolved.
        why: the reason for the kernel, in a line.
    """

    setup: Setup
    x0: Tensor
    kernel: Kernel
    block: int
    why: str

    def start(self, engine: Engine, cohort: int = 1) -> Backend:
        """The backend, ready for jobs; the usual size of a cohort tells Ray how much memory to share."""
        if engine.backend == "serial":
            return Serial(self.setup)
        from fedsim.engine.ray_pool import RayPool

        row = sum(t.nbytes for t in leaves(self.setup.algorithm.init_client(self.x0)))
        return RayPool(self.setup, engine, message_bytes=8 * len(self.x0), row_bytes=cohort * row)


def prepare(
    algorithm: ServerAlgorithm[Any, Any],
    data: Dataset,
    population: Population,
    factory: Factory | nn.Module,
    local: Local,
    aggregate: Mean,
    engine: Engine,
    seed: int,
) -> Prepared:
    """Everything a run needs before any worker exists; raises InputError for what cannot be run."""
    require(
        aggregate.weights == "uniform" or not getattr(algorithm, "uniform", False),
        "aggregate.weights",
        f"be uniform for {type(algorithm).__name__}, which averages its control variates over all clients alike",
        aggregate.weights,
        "add aggregate.weights=uniform",
    )
    _require_samples(data, population)
    model = build(factory, data.input_shape, data.outputs, {}, seed)
    layout = Layout.of(model)
    dtype = getattr(torch, engine.dtype)
    x0 = layout.flatten(model, dtype)
    if data.x0 is not None:
        require(data.x0.shape == x0.shape, "data.x0", f"have the model's {len(x0)} parameters", data.x0.shape)
        x0 = torch.from_numpy(data.x0).to(dtype)
    for method in (algorithm.init_server, algorithm.init_client):
        tensors(method(x0), method.__name__)
    kernel, most, why = _kernel(model, layout, data.input_shape, engine)
    train = _samples(data, data.train, population.train, dtype, augmented=True)
    test = train if data.test is None else _samples(data, data.test, population.test, dtype, augmented=False)
    setup = Setup(
        algorithm,
        model.to(dtype),
        data.task,
        train,
        test,
        local,
        aggregate,
        kernel,
        dtype,
        engine.device,
        engine.threads,
        seed,
    )
    return Prepared(setup, x0, kernel, most, why)


def _require_samples(data: Dataset, population: Population) -> None:
    """Raise InputError unless there is something to train every client on, and something to evaluate on."""
    if empty := [i for i, rows in enumerate(population.train) if not len(rows)]:
        raise InputError(f"partition must give every client a training sample, got none for client {empty[0]}")
    require(data.test is None or len(data.test) > 0, "data.test", "hold samples, or be None", 0)


def _kernel(model: nn.Module, layout: Layout, input_shape: tuple[int, ...], engine: Engine) -> tuple[Kernel, int, str]:
    """How blocks are computed: what the configuration says, ``auto`` filled in by a fixed rule."""
    kernel: Kernel
    kernel, most, why = kernel_rule(model, layout, input_shape, engine.device)
    if engine.kernel != "auto":
        kernel, why = engine.kernel, "engine.kernel"
    if engine.batching == "loop":
        kernel, why = "loop", "engine.batching=loop"
    return kernel, most if engine.block == "auto" else engine.block, why


def _samples(
    data: Dataset, split: Split, owned: tuple[np.ndarray, ...], dtype: torch.dtype, *, augmented: bool
) -> Samples:
    """A split in client order, in the run's dtype; samples that nobody owns (test only) come last."""
    order = np.concatenate(owned) if owned else np.empty(0, dtype=np.int64)
    start = np.concatenate([[0], np.cumsum([len(rows) for rows in owned])]).astype(np.int64)
    if not augmented:
        order = np.concatenate([order, np.setdiff1d(np.arange(len(split)), order)])
    x = as_tensor(split.x).index_select(0, torch.from_numpy(order))  # memory of torch's is aligned as workers want it
    x = x.to(dtype) if x.is_floating_point() else x  # here once, not in every worker
    return Samples(x.numpy(), split.y[order], start, data.mean, data.std, data.augment if augmented else None)
