"""Assembling a run: one line of stages from its parts to a run that can start, before anything is spawned.

Each stage is a file of its own, is visited once, and hands on what it made; what it is given it leaves alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fedsim.assembly.choose import with_kernels
from fedsim.assembly.curvature import tuned
from fedsim.assembly.divide import divided, load
from fedsim.assembly.initial import initial_states
from fedsim.assembly.kernel_table import with_table
from fedsim.assembly.link_memory import compression_notes, linked
from fedsim.assembly.models import built
from fedsim.assembly.network import Network, network_of
from fedsim.assembly.owned import owner_notes, with_owner
from fedsim.assembly.parts import Parts
from fedsim.assembly.prepared import Prepared
from fedsim.assembly.promise import private
from fedsim.assembly.rule import require_server_rule
from fedsim.assembly.setup import set_up
from fedsim.data.dataset import Dataset
from fedsim.errors import require
from fedsim.evaluate import Evaluate
from fedsim.ground.own_code import own_code
from fedsim.partition import Population
from fedsim.pool.local_part import written
from fedsim.pool.worker import Backend
from fedsim.privacy.ledger import Ledger
from fedsim.runs.run import Run


@dataclass(frozen=True)
class Assembled:
    """A run that could start.

    Attributes:
        parts: as the user gave them.
        dataset: that the clients share.
        population: who holds what of it.
        network: who takes part when, and who talks to whom.
        ledger: what the run lets out, or None.
        prepared: what workers need, and where the run starts.
    """

    parts: Parts
    dataset: Dataset
    population: Population
    network: Network
    ledger: Ledger | None
    prepared: Prepared

    def start(self) -> Backend:
        """Workers, ready for jobs."""
        return self.prepared.start(self.parts.engine, self.network.schedule.expected(len(self.population)))

    def begin(self, backend: Backend, evaluation: Evaluate) -> Run:
        """The run before its first round."""
        parts, setup = self.parts, self.prepared.setup
        rounds = parts.planned_rounds
        run = self.prepared.begin(backend, self.network.schedule, evaluation, parts.engine, rounds)
        run.notes += compression_notes(written(setup.algorithm), parts.channel, parts.downlink, rounds)
        run.notes += owner_notes(written(setup.algorithm), setup.models[0])
        return run


@own_code("run")
def assemble(
    parts: Parts,
    dataset: Dataset | None = None,
    say: Callable[[str], None] = lambda text: None,
    before: Path | None = None,
) -> Assembled:
    """A run that could start.

    Args:
        parts: what it is made of.
        dataset: what ``load(parts)`` gives, if that was called already.
        say: is told what is being done, in a few words.
        before: the folder of the run that goes on, whose constants it keeps.

    Raises:
        InputError: the parts do not go together.
    """
    parts = with_table(parts, before)
    dataset = load(parts) if dataset is None else dataset
    say("dividing the data")
    population = divided(parts, dataset)
    network = network_of(parts, len(population))
    say("building the model")
    models = built(parts, dataset)
    algorithm, ledger = private(parts, population, network, models)
    require_server_rule(algorithm, parts.aggregate, parts.channel)
    algorithm, buffers = with_owner(parts, dataset, models, algorithm)
    initial = initial_states(algorithm, models, dataset, parts.dtype)
    say("trying the model on samples")
    setup = set_up(parts, dataset, population, initial, buffers)
    setup, chosen = with_kernels(parts, setup, initial, dataset.input_shape)
    say("trying a round")
    links, memory = linked(parts, setup, initial)
    rows = tuple(zip(initial.states, links, strict=True))
    setup = tuned(setup, network.graphs or network.mixing)
    prepared = Prepared(setup, rows, memory, initial.x0, chosen, parts.channel, parts.topology, network.graphs)
    require_measurable(parts, prepared)
    return Assembled(parts, dataset, population, network, ledger, prepared)


def require_measurable(parts: Parts, prepared: Prepared) -> None:
    """Raise InputError when a global model is to be measured or kept, and there is none."""
    must = f"be false for {type(parts.algorithm).__name__}, which has no global model"
    kept, gradient = parts.trajectory, parts.evaluate.gradient
    require(not kept or prepared.number is not None, "logger.trajectory", must, kept)
    require(not gradient or prepared.number == 0, "evaluate.gradient", must, gradient)
