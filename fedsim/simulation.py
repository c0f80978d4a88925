"""One run, from its parts to its result: the whole of ``fedsim`` without a command line."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn

from fedsim.aggregate import Aggregate, Mean
from fedsim.algorithms.kit.protocols import PeerAlgorithm, ServerAlgorithm
from fedsim.assembly import facts
from fedsim.assembly.assemble import Assembled, assemble
from fedsim.assembly.divide import load, unused_clients
from fedsim.assembly.keeping import Kept, keep, run_place, writing_first
from fedsim.assembly.part_roles import require_kind
from fedsim.assembly.parts import Parts
from fedsim.callbacks.base import Callback, RunView
from fedsim.channel.channel import Channel
from fedsim.data.arrays import with_digest
from fedsim.data.dataset import Dataset, Source
from fedsim.data.losses import Task
from fedsim.errors import Interrupted
from fedsim.evaluate import Evaluate
from fedsim.ground.console import Progress, warning
from fedsim.ground.interrupts import Stopping
from fedsim.ground.own_code import own_code
from fedsim.local import Local
from fedsim.models import Factory
from fedsim.partition import Partition
from fedsim.pool.engine import Engine
from fedsim.privacy.config import Privacy
from fedsim.record.checkpoint import Checkpointing
from fedsim.record.clients_file import ClientsFile
from fedsim.record.history import History
from fedsim.record.kept_models import KeptModels
from fedsim.record.result import Result as Result
from fedsim.record.run_folder import Status
from fedsim.runs.run import Run
from fedsim.schedule import All, Schedule, smaller_cohort
from fedsim.topology import Topology
from fedsim.topology.reading import order_of


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
    task: Task | None = None,
    seed: int = 0,
    trajectory: bool = False,
    events: bool = False,
    run_dir: str | Path | None = None,
    checkpoint: Checkpointing = Checkpointing(),  # noqa: B008
    resume: bool = False,
    progress: bool = False,
    config: Mapping[str, Any] | None = None,
    callbacks: Sequence[Callback] = (),
    name: str | None = None,
) -> Result:
    """Run a federated simulation.

    The parts are checked and put together, a round is rehearsed, and only then are workers started and rounds played.
    Signal handlers, torch's threads and whatever else a run changes in the process are as before when it returns or
    raises.

    >>> from fedsim import Local, simulate
    >>> from fedsim.algorithms.fedavg import FedAvg
    >>> from fedsim.data import Digits
    >>> from fedsim.models import mlp
    >>> from fedsim.partition import Iid
    >>> result = simulate(FedAvg(lr=0.1), data=Digits(), partition=Iid(clients=4), model=mlp, rounds=2)
    >>> result.status, len(result.metrics)
    ('finished', 3)
    >>> result.summary["eval/accuracy"]["last"] > 0.5
    True

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
        task: loss and metrics of one's own, in the place of what the data set says.
        seed: of everything random in the run.
        trajectory: keep the global model, or every peer's, after every round.
        events: keep the events of a run in virtual time, in the run's folder.
        run_dir: a new folder for metrics, summary, checkpoints and TensorBoard files; None writes nothing.
        checkpoint: when what the run needs to go on is saved in that folder.
        resume: go on from the folder's last checkpoint, to the bits of a run that was never interrupted; a folder that
            has none begins the run anew.
        progress: show a progress bar.
        config: what config.yaml shall hold; by default the parts themselves.
        callbacks: who is told of every round and may ask the run to stop, for example
            ``[fedsim.callbacks.EarlyStopping(target=0.9)]``.
        name: what the run is called; None: by what it is, as ``fedavg-digits-dirichlet-s0``.

    Returns:
        Metrics and final model. A run that diverges, or that a callback stopped, returns what it had, with its status.

    Raises:
        InputError: something cannot be run; raised before anything is spawned.
        ClientError: a client's computation failed. ``fedsim.errors.PoolLost``, one of them: Ray or the memory for its
            actors is gone.
        Interrupted: Ctrl-C, a KeyboardInterrupt, after records, checkpoint and summary (status ``interrupted``) were
            saved; ``error.result`` is what the run had. Another Ctrl-C within five seconds does not cut the saving.
            Before the first round a KeyboardInterrupt is raised as it came.
        OSError: the run's folder cannot be written any more; what was written is kept. ``fedsim.errors.NotSaved``, one
            of them: only the last checkpoint is missing.
    """
    begun = time.perf_counter()
    parts = Parts(
        algorithm=algorithm,
        data=data,
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
        evaluate=evaluate,
        task=task,
        checkpoint=checkpoint,
        seed=seed,
        trajectory=trajectory,
        events=events,
        callbacks=callbacks,
        name=name,
    )
    require_kind(progress, "progress", bool, "be True or False")
    run_dir = run_place(run_dir, config, resume)
    with ExitStack() as stack:
        stopping = stack.enter_context(Stopping())
        bar = stack.enter_context(Progress(parts.planned_rounds)) if progress else None
        say = bar.status if bar else lambda text: None
        say("reading the data")
        dataset = load(parts)
        if run_dir is not None and not dataset.digest:  # a resumed run shall have the same data
            dataset = with_digest(dataset)
        assembled = assemble(parts, dataset, say, run_dir if resume else None)
        kept = Kept() if run_dir is None else keep(assembled, run_dir, config, resume=resume)
        if kept.folder:
            stack.enter_context(kept.folder)
        say(f"starting {engine.actors} Ray actors" if engine.backend == "ray" else "starting")
        with writing_first(assembled, kept):
            with own_code("run"):
                backend = assembled.start()
                stack.callback(backend.close)
            say("drawing who holds what")
        with own_code("run"):
            run = assembled.begin(backend, evaluate)
        if progress:
            warn(assembled, run)
        points: list[Tensor] | None = [] if trajectory else None
        ledger, mark = assembled.ledger, kept.mark
        history = History(run, kept.folder, bar, kept.checkpoints, mark, points, ledger, begun, events=events)
        stack.callback(history.hooks.close)
        say("testing the first model")
        take_up(history, assembled, kept, config)
        status, message = history.play(stopping)
        result = finish(history, assembled, kept, status, message)
    if status == "interrupted":
        raise Interrupted(message, result)
    return result


def finish(history: History, assembled: Assembled, kept: Kept, status: Status, message: str) -> Result:
    """Write what the run came to; returns it."""
    run = history.run
    final = assembled.prepared.module(run.model())  # before anything says that the run has finished
    return Result(
        status=status,
        metrics=history.records,
        summary=history.finish(status, message),
        model=final,
        server=run.server,
        trajectory=history.trajectory(),
        run_dir=kept.folder.path if kept.folder else None,
        message=message,
        stores=tuple(run.stores),
        name=assembled.parts.called,
    )


def take_up(history: History, assembled: Assembled, kept: Kept, config: Mapping[str, Any] | None) -> None:
    """Go on from what is kept of the run, if anything is, and tell the callbacks."""
    if kept.folder:
        evaluate = assembled.parts.evaluate
        history.models = KeptModels(kept.folder.path, assembled.prepared.module, evaluate)
        history.clients = ClientsFile.wanted(kept.folder.path) if evaluate.clients else None
    if kept.saved:
        history.resume(kept.saved)
    view = view_of(assembled, history, kept, config)
    history.hooks.begin(assembled.parts.callbacks, view)


def view_of(assembled: Assembled, history: History, kept: Kept, config: Mapping[str, Any] | None) -> RunView:
    """What callbacks may know of a run."""
    parts, folder = assembled.parts, kept.folder.path if kept.folder else None
    before = tuple(MappingProxyType(dict(record)) for record in history.records)
    module = assembled.prepared.module
    return RunView(
        parts.called,
        facts.filled_in(assembled, config),
        folder,
        parts.planned_rounds,
        before,
        lambda: module(history.run.model()),
    )


def warn(assembled: Assembled, run: Run) -> None:
    """Say what the user should know of settings, kernels, the run, clients that nobody uses and a graph's nodes."""
    parts, mixing = assembled.parts, assembled.network.mixing
    order = order_of(mixing.graph) if mixing is not None else ()
    few = smaller_cohort(parts.schedule, len(assembled.population))
    unused = unused_clients(parts, assembled.dataset)
    for note in (*parts.engine.without_effect, *few, *assembled.prepared.notes, *run.notes, *unused, *order):
        warning(note)
