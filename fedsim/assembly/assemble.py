"""The parts of a run put together and checked, before anything is spawned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from fedsim.aggregate import Aggregate
from fedsim.assembly.checks import (
    compression_notes,
    require_cohorts,
    require_everyone,
    require_matrix,
    require_network,
    require_population,
)
from fedsim.assembly.curvature import tuned
from fedsim.assembly.prepare import length_of, prepare
from fedsim.assembly.prepared import Prepared
from fedsim.channel.channel import Channel
from fedsim.data.dataset import Dataset, Source
from fedsim.errors import require
from fedsim.evaluate import Evaluate
from fedsim.ground.own_code import own_code
from fedsim.local import Local
from fedsim.models import Factory
from fedsim.partition import Partition, Population
from fedsim.pool.engine import Engine
from fedsim.pool.local_part import written
from fedsim.pool.worker import Backend
from fedsim.privacy.config import Privacy, promised
from fedsim.privacy.ledger import Ledger
from fedsim.privacy.links import check_links, check_rule
from fedsim.runs.events import graphs_of
from fedsim.runs.mixings import require_mixing
from fedsim.runs.run import Run
from fedsim.schedule import Events, Schedule, as_accounted
from fedsim.topology import Mixing, Topology
from fedsim.traits.releases import unit_of


@dataclass(frozen=True)
class Assembled:
    """A run that could start.

    Attributes:
        prepared: model, samples, what workers need.
        population: who holds what.
        schedule: who takes part when.
        engine: how it is executed.
        rounds: how many there will be; those of a schedule of events are its own.
        ledger: what the run lets out, or None.
        mixing: W of peers in the first round, or None.
    """

    prepared: Prepared
    population: Population
    schedule: Schedule
    engine: Engine
    rounds: int
    ledger: Ledger | None
    mixing: Mixing | None = None

    def start(self) -> Backend:
        """Workers, ready for jobs."""
        return self.prepared.start(self.engine, self.schedule.expected(len(self.population)))

    def orchestrator(self, backend: Backend, evaluation: Evaluate) -> Run:
        """The run before its first round."""
        run = self.prepared.orchestrator(backend, self.schedule, evaluation, self.engine, self.rounds)
        setup = self.prepared.setup
        run.notes += compression_notes(written(setup.algorithm), self.prepared.channel, setup.downlink, self.rounds)
        return run


def load(data: Source | Dataset, seed: int) -> Dataset:
    """The data set of a source, or the one that is in memory already; raises InputError when there is none."""
    if isinstance(data, Dataset):
        return data
    with own_code("data", data):
        dataset = data.load(seed)
    name = f"data: {type(data).__name__}.load"
    require(isinstance(dataset, Dataset), name, "return a fedsim.data.Dataset", type(dataset).__name__)
    return dataset


@own_code("run")
def assemble(
    algorithm: Any,
    dataset: Dataset,
    *,
    partition: Partition,
    model: Factory | nn.Module | Sequence[Factory | nn.Module],
    rounds: int,
    schedule: Schedule,
    local: Local,
    aggregate: Aggregate,
    topology: Topology | None,
    channel: Channel,
    downlink: Channel,
    privacy: Privacy | None,
    engine: Engine,
    seed: int,
) -> Assembled:
    """From the arguments of ``fedsim.simulate``.

    Raises:
        InputError: the parts do not go together.
    """
    with own_code("partition", partition):
        population = partition.split(dataset, seed)
    require_population(population, dataset, partition)
    n = len(population)
    schedule = schedule if privacy is None else as_accounted(schedule)
    with own_code("schedule", schedule):
        schedule.check(n, rounds)
        require_cohorts(schedule, n, rounds, seed)
    require_network(algorithm, topology, schedule, channel, downlink, privacy)
    graphs = mixing = None
    if topology is not None:
        with own_code("topology", topology):
            mixing = topology.mixing(n, 0, seed)
        require_matrix(mixing, n, type(topology).__name__)
        if isinstance(schedule, Events):
            rounds = len(schedule.times(rounds))
            graphs = graphs_of(topology, n, seed, schedule)
        else:
            require_mixing(algorithm, mixing)
    require_everyone(algorithm, schedule, n, rounds, seed)
    models = list(model) if isinstance(model, Sequence) else [model]
    ledger: Ledger | None = None
    if privacy is not None:
        sizes, d = [len(rows) for rows in population.train], length_of(dataset, models, seed)
        algorithm, ledger = promised(privacy, algorithm, schedule, sizes, rounds, local, seed, d)
        check_rule(algorithm, aggregate)
        check_links(algorithm, channel, downlink, unit_of(ledger.releases(1)))
    common = (local, aggregate, engine, seed, channel, downlink, rounds, topology, graphs)
    prepared = prepare(algorithm, dataset, population, models, *common)
    if mixing is not None:
        prepared = replace(prepared, setup=tuned(prepared.setup, graphs or mixing))
    return Assembled(prepared, population, schedule, engine, rounds, ledger, mixing)


def configured(parts: Mapping[str, Any]) -> Assembled:
    """From what ``assembly.configuration.build_run`` built; raises InputError when the parts do not go together."""
    data = parts["data"]
    dataset = load(data, parts["seed"])
    others = ("data", "algorithm", "evaluate", "trajectory", "events", "checkpoint")
    return assemble(parts["algorithm"], dataset, **{name: part for name, part in parts.items() if name not in others})


def require_measurable(algorithm: Any, prepared: Prepared, evaluate: Evaluate, *, trajectory: bool) -> None:
    """Raise InputError when a global model is to be measured or kept, and there is none."""
    must = f"be false for {type(algorithm).__name__}, which has no global model"
    require(not trajectory or prepared.number is not None, "logger.trajectory", must, trajectory)
    require(not evaluate.gradient or prepared.number == 0, "evaluate.gradient", must, evaluate.gradient)
