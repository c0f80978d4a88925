"""One run, from its parts to its result: the whole of ``fedsim`` without a command line."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.aggregate import Aggregate, Mean
from fedsim.algorithms.kit.protocols import PeerAlgorithm, ServerAlgorithm
from fedsim.assembly.assemble import assemble, load, require_measurable
from fedsim.assembly.parts import require_kind, require_models, require_parts, whole
from fedsim.channel.channel import Channel
from fedsim.channel.onion import Layer
from fedsim.data.arrays import with_digest
from fedsim.data.dataset import Dataset, Source
from fedsim.errors import require
from fedsim.evaluate import Evaluate
from fedsim.ground.console import Progress, warning
from fedsim.ground.own_code import own_code
from fedsim.ground.public_names import name_of_class
from fedsim.ground.tree import tree_map
from fedsim.local import Local
from fedsim.models import Factory
from fedsim.partition import Partition
from fedsim.pool.engine import Engine
from fedsim.pool.jobs import Rows
from fedsim.privacy.config import Privacy
from fedsim.record.checkpoint import Checkpointing
from fedsim.record.history import History, opened
from fedsim.record.provenance import provenance
from fedsim.record.run_folder import RunFolder, Status
from fedsim.runs.traffic import Record
from fedsim.schedule import All, Events, Schedule
from fedsim.topology import Mixing, Topology
from fedsim.topology.reading import order_of


@dataclass(frozen=True)
class Result:
    """What a run came to.

    Attributes:
        status: ``finished``, ``diverged`` or ``interrupted``.
        metrics: one record per round, round 0 being the initial model: every scalar by its TensorBoard tag.
        summary: last and best of each ``eval/*``, totals of ``comm/*``, ``digest``, ``cpu_capability``; as in
            summary.json.
        model: the final global model, or the mean of the peers', in evaluation mode; None for an algorithm that has
            none.
        server: the algorithm's final server state; () where there is no server.
        trajectory: [rounds + 1, d] when asked for, the initial model and that after each round, as ``metrics`` has
            them; [rounds + 1, n, d] of peers; else None.
        run_dir: the run's folder, or None.
        message: why the run stopped early, or "".
        stores: the clients' states, of each architecture; ``client`` reads them.
    """

    status: Status
    metrics: list[Record]
    summary: dict[str, Any]
    model: nn.Module | None
    server: Any
    trajectory: np.ndarray | None = None
    run_dir: Path | None = None
    message: str = ""
    stores: tuple[Rows, ...] = ()

    def client(self, number: int) -> Any:
        """The final state of one client, a tree of tensors."""
        rows = self.stores[number % len(self.stores)].read([number])
        return tree_map(lambda array: torch.from_numpy(array)[0], rows[0])


def simulate(
    algorithm: ServerAlgorithm[Any, Any] | PeerAlgorithm[Any],
    *,
    data: Source | Dataset,
    partition: Partition,
    model: Factory | nn.Module | Sequence[Factory | nn.Module],
    rounds: int,
    schedule: Schedule = All(),  # noqa: B008 - a frozen dataclass
    local: Local = Local(),  # noqa: B008
    aggregate: Aggregate = Mean(),  # noqa: B008
    topology: Topology | None = None,
    channel: Channel = Channel(),  # noqa: B008
    downlink: Channel = Channel(),  # noqa: B008
    privacy: Privacy | None = None,
    engine: Engine = Engine(backend="serial"),  # noqa: B008
    evaluate: Evaluate = Evaluate(),  # noqa: B008
    seed: int = 0,
    trajectory: bool = False,
    events: bool = False,
    run_dir: str | Path | None = None,
    checkpoint: Checkpointing = Checkpointing(),  # noqa: B008
    resume: bool = False,
    progress: bool = False,
    config: Mapping[str, Any] | None = None,
) -> Result:
    """Run a federated simulation.

    Args:
        algorithm: for example ``FedAvg(lr=0.1)``.
        data: a source such as ``fedsim.data.Digits()``, or a ``Dataset`` already in memory.
        partition: who holds what, for example ``fedsim.partition.Dirichlet(clients=20, alpha=0.5)``.
        model: a factory such as ``fedsim.models.mlp``, a class of modules, or a module (which is copied); or several of
            them, of which client i has number i modulo their count.
        rounds: communication rounds, >= 1.
        schedule: who takes part in which round.
        local: a client's work in one round.
        aggregate: the server's rule.
        topology: who gossips with whom, for a decentralized algorithm; None for one with a server.
        channel: what happens to the clients' messages on their way to the server, or to their neighbours.
        downlink: the same for the server's broadcast.
        privacy: the mechanism around the algorithm, its noise, and how epsilon is computed.
        engine: how the run is executed.
        evaluate: when and what to evaluate.
        seed: of everything random in the run.
        trajectory: keep the global model, or every peer's, after every round.
        events: keep the events of a run in virtual time, in the run's folder.
        run_dir: a new folder for metrics, summary, checkpoints and TensorBoard files; None writes nothing.
        checkpoint: when what the run needs to go on is saved in that folder.
        resume: go on from the folder's last checkpoint, to the bits of a run that was never interrupted; a folder that
            has none begins the run anew.
        progress: show a progress bar.
        config: what config.yaml shall hold; by default the parts themselves.

    Returns:
        Metrics and final model. A run that diverges or is interrupted (Ctrl-C) returns what it had, with its status.

    Raises:
        InputError: something cannot be run; raised before anything is spawned.
        ClientError: a client's computation failed.
    """
    given: dict[str, Any] = {"algorithm": algorithm, "data": data, "partition": partition, "schedule": schedule}
    given |= {"local": local, "aggregate": aggregate, "topology": topology, "channel": channel, "downlink": downlink}
    require_parts(given | {"privacy": privacy, "engine": engine, "evaluate": evaluate, "checkpoint": checkpoint})
    require_models(model)
    rounds, seed = whole(rounds, "rounds", 1), whole(seed, "seed")
    switches = {"trajectory": trajectory, "events": events, "resume": resume, "progress": progress}
    for name, value in switches.items():
        require_kind(value, name, bool, "be True or False")
    require_kind(run_dir, "run_dir", (str, Path, NoneType), "be a path or None")
    require(run_dir != "", "run_dir", "be a path or None", run_dir, "for the current folder pass '.'")
    require_kind(config, "config", (Mapping, NoneType), "be a mapping or None")
    require(not resume or run_dir is not None, "run_dir", "be the folder of the run to resume", run_dir)
    require(
        engine.device == "cpu" or torch.cuda.is_available(),
        "engine.device",
        "be cpu on a machine without a CUDA device",
        engine.device,
    )
    must = "be false for rounds, which have no events; it is for schedule=events"
    require(not events or isinstance(schedule, Events), "logger.events", must, events)
    if isinstance(schedule, Events):
        rounds = len(schedule.times(rounds))
    begun = time.perf_counter()
    with ExitStack() as stack:
        bar = stack.enter_context(Progress(rounds)) if progress else None
        say = bar.status if bar else lambda text: None
        say("reading the data")
        dataset = load(data, seed)
        if run_dir is not None and not dataset.digest:  # a resumed run shall have the same data
            dataset = with_digest(dataset)
        say("dividing the data")
        assembled = assemble(
            algorithm,
            dataset,
            partition=partition,
            model=model,
            rounds=rounds,
            schedule=schedule,
            local=local,
            aggregate=aggregate,
            topology=topology,
            channel=channel,
            downlink=downlink,
            privacy=privacy,
            engine=engine,
            seed=seed,
        )
        prepared, population, ledger = assembled.prepared, assembled.population, assembled.ledger
        mixing = assembled.mixing
        require_measurable(algorithm, prepared, evaluate, trajectory=trajectory)
        chosen = prepared.described() | {"threads": engine.threads}
        folder = checkpoints = saved = None
        mark: dict[str, Any] = {}
        if run_dir is not None:
            parts: dict[str, Any] = {"algorithm": algorithm, "partition": partition, "model": model}
            parts["data"] = dataset if isinstance(data, Dataset) else data
            parts |= {"schedule": schedule, "local": local, "aggregate": aggregate, "engine": engine}
            parts |= {"channel": channel, "downlink": downlink, "privacy": privacy, "topology": topology}
            parts |= {"evaluate": evaluate, "rounds": rounds, "seed": seed, "checkpoint": checkpoint}
            parts |= {"logger": {"trajectory": trajectory, "events": events}}
            machine = provenance(
                engine.device,
                data={"name": dataset.name, "digest": dataset.digest},
                partition={"clients": len(population), "digest": population.digest},
                engine=chosen,
                parameters=prepared.parameters[0] if len(prepared.parameters) == 1 else list(prepared.parameters),
                **_nodes(mixing),
            )
            method: dict[str, Any] = {"data": dataset.digest, "partition": population.digest}
            method |= {"noise": ledger.noise_multiplier} if ledger else {}
            method |= {"rounds": rounds} if isinstance(schedule, Events) else {}  # they divide the time
            described = config if config is not None else {name: _described(part) for name, part in parts.items()}
            folder, checkpoints, mark, saved = opened(
                run_dir, described, machine, method, checkpoint, rounds, resume=resume
            )
            stack.enter_context(folder)
        if folder and not saved:
            _draw_split(folder, population.counts(dataset))
            if mixing is not None:
                _draw_graph(folder, type(topology).__name__, mixing, population.counts(dataset))
        say(f"starting {engine.actors} Ray actors" if engine.backend == "ray" else "starting")
        with own_code("run"):
            backend = assembled.start()
            stack.callback(backend.close)
            run = assembled.orchestrator(backend, evaluate)
        points: list[Tensor] | None = [] if trajectory else None
        history = History(run, folder, bar, checkpoints, mark, points, ledger, begun, events=events)
        order = order_of(mixing.graph) if mixing is not None else ()
        for note in (*prepared.notes, *run.notes, *order) if progress else ():
            warning(note)
        if saved:
            history.resume(saved)
        try:
            status, message = history.loop()
        except Exception as error:
            history.catch_up()
            if not isinstance(error, OSError):
                history.save()
            history.finish("failed", str(error))
            raise
        if status != "diverged":
            history.save()
        if folder and run.confusion is not None and status != "interrupted":  # that one may go on, to another matrix
            _draw_confusion(folder, run.confusion, run.done)
        final = prepared.module(run.model())  # before anything says that the run has finished
        summary = history.finish(status, message)
    where = folder.path if folder else None
    return Result(
        status, history.records, summary, final, run.server, history.trajectory(), where, message, tuple(run.stores)
    )


def _draw_split(folder: RunFolder, counts: np.ndarray) -> None:
    from fedsim.record.figures import split_by_client

    folder.figure("data/split", split_by_client(counts, "training samples by client"))


def _nodes(mixing: Mixing | None) -> dict[str, Any]:
    """The labels of the clients' nodes in a graph that has other labels than 0..n-1, for provenance.json."""
    labels = () if mixing is None else mixing.graph.graph.get("labels", ())
    return {"topology": {"nodes": list(labels)}} if labels else {}


def _draw_graph(folder: RunFolder, name: str, mixing: Mixing, counts: np.ndarray) -> None:
    """The graph of the first round, its peers coloured by how far their labels are from everybody's."""
    from fedsim.topology.figure import draw

    n = len(counts)
    skew = np.abs(counts / counts.sum(1, keepdims=True) - counts.sum(0) / counts.sum()).sum(1) / 2
    title = f"{name}, {n} peers, {len(mixing.edges)} edges" + ("" if mixing.static else ", round 1")
    several = counts.shape[1] > 1
    folder.figure(
        "topology/graph", draw(mixing.graph, skew if several else None, title, "label skew" if several else "")
    )


def _draw_confusion(folder: RunFolder, matrix: np.ndarray, done: int) -> None:
    from fedsim.record.figures import confusion

    folder.figure("eval/confusion", confusion(matrix), done)


def _described(part: Any) -> Any:
    """A part of a run as a configuration would name it, for config.yaml."""
    if part is None or isinstance(part, (bool, int, float, str, Mapping)):
        return part
    if isinstance(part, Channel):
        layers = {layer.name: _described(layer.middleware) | _fields(layer) for layer in part.layers}
        return layers | {"encode": part.encode}
    if isinstance(part, (list, tuple)):
        return [_described(item) for item in part]
    if isinstance(part, Dataset):
        return {"name": part.name, "digest": part.digest}
    maker = part if callable(part) and hasattr(part, "__qualname__") else type(part)
    node: dict[str, Any] = {"_target_": name_of_class(maker)}
    if not dataclasses.is_dataclass(part) or isinstance(part, type):
        return node
    return node | {f.name: _described(getattr(part, f.name)) for f in dataclasses.fields(part)}


def _fields(layer: Layer) -> dict[str, Any]:
    return {} if layer.fields is None else {"fields": list(layer.fields)}
