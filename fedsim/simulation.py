"""One run, from its parts to its result: the whole of ``fedsim`` without a command line."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.aggregate import Mean
from fedsim.algorithms.base import ServerAlgorithm
from fedsim.console import Progress
from fedsim.data.base import Dataset, Source, Split
from fedsim.data.batches import Samples
from fedsim.engine.config import Engine
from fedsim.engine.kernel import kernel_rule
from fedsim.engine.oracle import Kernel
from fedsim.engine.orchestrator import Orchestrator, Record
from fedsim.engine.serial import Serial
from fedsim.engine.worker import Backend, Setup
from fedsim.errors import Diverged, require
from fedsim.evaluate import Evaluate
from fedsim.layout import Layout
from fedsim.local import Local
from fedsim.models import Factory, build
from fedsim.partition import Partition, Population
from fedsim.provenance import provenance
from fedsim.run_folder import RunFolder, Status, summarise
from fedsim.schedule import All, Schedule


@dataclass(frozen=True)
class Result:
    """What a run came to.

    Attributes:
        status: ``finished``, ``diverged`` or ``interrupted``.
        metrics: one record per round, round 0 being the initial model: every scalar by its TensorBoard tag.
        summary: last and best of each ``eval/*``, totals of ``comm/*``, ``digest``; as in summary.json.
        model: the final global model.
        server: the algorithm's final server state.
        trajectory: [rounds + 1, d] models after each round when asked for, else None.
        run_dir: the run's folder, or None.
        message: why the run stopped early, or "".
    """

    status: Status
    metrics: list[Record]
    summary: dict[str, Any]
    model: nn.Module
    server: Any
    trajectory: np.ndarray | None = None
    run_dir: Path | None = None
    message: str = ""


def simulate(
    algorithm: ServerAlgorithm[Any, Any],
    *,
    data: Source | Dataset,
    partition: Partition,
    model: Factory | nn.Module,
    rounds: int,
    schedule: Schedule = All(),  # noqa: B008 - a frozen dataclass
    local: Local = Local(),  # noqa: B008
    aggregate: Mean = Mean(),  # noqa: B008
    engine: Engine = Engine(backend="serial"),  # noqa: B008
    evaluate: Evaluate = Evaluate(),  # noqa: B008
    seed: int = 0,
    trajectory: bool = False,
    run_dir: str | Path | None = None,
    progress: bool = False,
    config: Mapping[str, Any] | None = None,
) -> Result:
    """Run a federated simulation.

    Args:
        algorithm: for example ``FedAvg(lr=0.1)``.
        data: a source such as ``fedsim.data.Digits()``, or a ``Dataset`` already in memory.
        partition: who holds what, for example ``fedsim.partition.Dirichlet(clients=20, alpha=0.5)``.
        model: a factory such as ``fedsim.models.mlp``, a class of modules, or a module (which is copied).
        rounds: communication rounds, >= 1.
        schedule: who takes part in which round.
        local: a client's work in one round.
        aggregate: the server's rule.
        engine: how the run is executed.
        evaluate: when and what to evaluate.
        seed: of everything random in the run.
        trajectory: keep the global model after every round.
        run_dir: a new folder for metrics, summary and TensorBoard files; None writes nothing.
        progress: show a progress bar.
        config: what config.yaml shall hold; by default the parts themselves.

    Returns:
        Metrics and final model. A run that diverges or is interrupted (Ctrl-C) returns what it had, with its status.

    Raises:
        InputError: something cannot be run; raised before anything is spawned.
        ClientError: a client's computation failed.
    """
    require(rounds >= 1, "rounds", "be >= 1", rounds)
    require(
        engine.device == "cpu" or torch.cuda.is_available(),
        "engine.device",
        "be cpu on a machine without a CUDA device",
        engine.device,
    )
    begun = time.perf_counter()
    with ExitStack() as stack:
        bar = stack.enter_context(Progress(rounds)) if progress else None
        say = bar.status if bar else lambda text: None
        say("reading the data")
        dataset = data if isinstance(data, Dataset) else data.load(seed)
        say("dividing the data")
        population = partition.split(dataset, seed)
        schedule.check(len(population), rounds)
        prepared = _prepare(algorithm, dataset, population, model, local, aggregate, engine, schedule, seed)
        chosen = prepared.engine | {"model_parameters": len(prepared.x0)}
        folder = None
        if run_dir is not None:
            shown = config if config is not None else _shown(locals())
            folder = RunFolder.create(
                run_dir,
                shown,
                provenance(
                    engine.device,
                    data={"name": dataset.name, "digest": dataset.digest},
                    partition={"clients": len(population), "digest": population.digest},
                    engine=chosen | {"threads": engine.threads},
                ),
            )
            stack.enter_context(folder)
            _draw_split(folder, population.counts(dataset))
        say(f"starting {engine.actors} Ray actors" if engine.backend == "ray" else "starting")
        backend = _start(prepared.setup, engine, len(prepared.x0))
        stack.callback(backend.close)
        run = Orchestrator(
            prepared.setup,
            backend,
            schedule,
            evaluate,
            prepared.x0,
            block=prepared.engine["block"],
            jobs=engine.jobs,
            rounds=rounds,
        )
        history = _History(folder, bar, [run.server.x] if trajectory else None)
        status, message = _loop(run, history)
        summary = summarise(history.records, status, run.digest(), time.perf_counter() - begun)
        points = torch.stack(history.points).numpy() if history.points is not None else None
        if folder:
            if points is not None:
                folder.trajectory(points)
            folder.finish(summary | ({"message": message} if message else {}))
    final = Layout.of(prepared.setup.model).load(prepared.setup.model.cpu(), run.server.x)
    return Result(status, history.records, summary, final, run.server, points, folder.path if folder else None, message)


@dataclass
class _History:
    """Where records go as they come."""

    folder: RunFolder | None
    bar: Progress | None
    points: list[Tensor] | None
    records: list[Record] = field(default_factory=list)

    def add(self, record: Record) -> None:
        self.records.append(record)
        if self.folder:
            self.folder.write(record)
        if self.bar:
            self.bar.update(record)


def _loop(run: Orchestrator, history: _History) -> tuple[Status, str]:
    """All rounds, or as many as go well; every finished round is on record whatever happens next."""
    try:
        history.add({"round": 0, **run.evaluate()})
        while run.done < run.rounds:
            history.add(run.step())
            if history.points is not None:
                history.points.append(run.server.x)
    except Diverged as error:
        return "diverged", str(error)
    except KeyboardInterrupt as stop:
        return "interrupted", f"{type(stop).__name__} after round {run.done}"
    return "finished", ""


@dataclass(frozen=True)
class _Prepared:
    setup: Setup
    x0: Tensor
    engine: dict[str, Any]  # what ``auto`` came to


def _prepare(
    algorithm: ServerAlgorithm[Any, Any],
    data: Dataset,
    population: Population,
    factory: Factory | nn.Module,
    local: Local,
    aggregate: Mean,
    engine: Engine,
    schedule: Schedule,
    seed: int,
) -> _Prepared:
    """Model, samples in client order and execution choices: everything that needs no worker yet."""
    model = build(factory, data.input_shape, data.outputs, {}, seed)
    layout = Layout.of(model)
    dtype = getattr(torch, engine.dtype)
    x0 = layout.flatten(model, dtype)
    if data.x0 is not None:
        require(data.x0.shape == x0.shape, "data.x0", f"have the model's {len(x0)} parameters", data.x0.shape)
        x0 = torch.from_numpy(data.x0).to(dtype)
    kernel, most, why = _kernel(model, layout, data.input_shape, engine)
    train = _samples(data, data.train, population.train, augmented=True)
    test = train if data.test is None else _samples(data, data.test, population.test, augmented=False)
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
    return _Prepared(setup, x0, {"kernel": kernel, "block": most, "why": why})


def _kernel(model: nn.Module, layout: Layout, input_shape: tuple[int, ...], engine: Engine) -> tuple[Kernel, int, str]:
    """How blocks are computed: what the configuration says, ``auto`` filled in by a fixed rule."""
    kernel: Kernel
    kernel, most, why = kernel_rule(model, layout, input_shape, engine.device)
    if engine.kernel != "auto":
        kernel, why = engine.kernel, "engine.kernel"
    if engine.batching == "loop":
        kernel, why = "loop", "engine.batching=loop"
    return kernel, most if engine.block == "auto" else engine.block, why


def _samples(data: Dataset, split: Split, owned: tuple[np.ndarray, ...], *, augmented: bool) -> Samples:
    """A split in client order; samples that nobody owns (test only) come last."""
    order = np.concatenate(owned) if owned else np.empty(0, dtype=np.int64)
    start = np.concatenate([[0], np.cumsum([len(rows) for rows in owned])]).astype(np.int64)
    if not augmented:
        order = np.concatenate([order, np.setdiff1d(np.arange(len(split)), order)])
    return Samples(split.x[order], split.y[order], start, data.mean, data.std, data.augment if augmented else None)


def _start(setup: Setup, engine: Engine, d: int) -> Backend:
    if engine.backend == "serial":
        return Serial(setup)
    from fedsim.engine.ray_pool import RayPool

    return RayPool(setup, engine, 8 * d)


def _draw_split(folder: RunFolder, counts: np.ndarray) -> None:
    from fedsim.figures import split_by_client

    folder.figure("data/split", split_by_client(counts, "training samples by client"))


def _shown(parts: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of a run as config.yaml shows them when no configuration made them."""
    keys = ("algorithm", "data", "partition", "model", "schedule", "local", "aggregate", "engine", "evaluate")
    out = {key: _described(parts[key]) for key in keys}
    return out | {key: parts[key] for key in ("rounds", "seed")}


def _described(part: Any) -> Any:
    if isinstance(part, Dataset):
        return {"name": part.name, "digest": part.digest}
    name = getattr(part, "__qualname__", type(part).__qualname__)
    if not dataclasses.is_dataclass(part):
        return name
    return {"class": name} | {f.name: _yaml(getattr(part, f.name)) for f in dataclasses.fields(part)}


def _yaml(value: Any) -> Any:
    return os.fspath(value) if isinstance(value, os.PathLike) else value
