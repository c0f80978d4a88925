"""A run that could start: what its parts came to, its backend, its run and its final model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from fedsim.assembly.choose import Chosen
from fedsim.channel.channel import Channel
from fedsim.evaluate import Evaluate
from fedsim.ground.buffers import Buffers
from fedsim.ground.layout import Layout
from fedsim.ground.tree import leaves
from fedsim.models import copied
from fedsim.pool.engine import Engine
from fedsim.pool.serial import Serial
from fedsim.pool.worker import Backend, Setup
from fedsim.runs.begin import begin
from fedsim.runs.events import Graphs
from fedsim.runs.run import Run
from fedsim.runs.start import Beginning, Between, Memory, Start
from fedsim.schedule import Schedule
from fedsim.topology import Topology
from fedsim.traits.declared import traits_of
from fedsim.types import State


@dataclass(frozen=True)
class Prepared:
    """A run that could start.

    Attributes:
        setup: what every worker is given.
        rows: what the store starts from for clients of each architecture: their state, their link's memory.
        memory: what the channels' far ends start from.
        x0: what the server starts from: the model, or the part of it that the algorithm shares.
        chosen: how each architecture is computed.
        channel: around the clients' messages; peers' is the driver's, and ``setup`` has none.
        topology: of peers; None for clients of a server.
        graphs: of peers in virtual time.
    """

    setup: Setup
    rows: tuple[State, ...]
    memory: Memory
    x0: Tensor | dict[str, Tensor]
    chosen: tuple[Chosen, ...]
    channel: Channel
    topology: Topology | None = None
    graphs: Graphs | None = None

    @property
    def parameters(self) -> tuple[int, ...]:
        """d of every architecture."""
        return tuple(Layout.of(model).d for model in self.setup.models)

    @property
    def blocks(self) -> tuple[int, ...]:
        """Most clients of each architecture computed at once, ``auto`` resolved."""
        return tuple(one.block for one in self.chosen)

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know of the kernels."""
        return tuple(one.note for one in self.chosen if one.note)

    def start(self, engine: Engine, cohort: int = 1) -> Backend:
        """The backend, ready for jobs; the usual size of a cohort tells Ray how much memory to share."""
        if engine.backend == "serial":
            return Serial(self.setup)
        from fedsim.pool.ray_pool import RayPool

        rows = [sum(t.nbytes for t in leaves(row)) for row in self.rows]
        return RayPool(self.setup, engine, message_bytes=8 * max(self.parameters), row_bytes=cohort * max(rows))

    def begin(self, backend: Backend, schedule: Schedule, evaluation: Evaluate, engine: Engine, rounds: int) -> Run:
        """The run, before its first round."""
        beginning = Beginning(self.x0, self.rows, self.memory)
        between = Between(self.channel, self.topology, self.graphs)
        start = Start(self.setup, schedule, evaluation, rounds, self.blocks, engine.pieces, beginning, between)
        return begin(start, backend)

    @property
    def number(self) -> int | None:
        """Which architecture the model of all has, or None when there is no such model; peers' is their mean."""
        if self.topology is not None:
            return 0
        shares = traits_of(self.setup.algorithm).shares
        if shares == "common":
            return int(self.setup.algorithm.common)  # type: ignore[attr-defined]
        return 0 if shares in ("model", "parameters") else None

    def module(self, x: Tensor | None) -> nn.Module | None:
        """The model of all with these parameters [d], or [d + q] with written buffers, in evaluation mode.

        Where these are the clients' own the model has those that it began with.
        """
        if self.number is None or x is None:
            return None
        layout = Layout.of(self.setup.models[self.number])
        model = layout.load(copied(self.setup.models[self.number]), x[: layout.d])
        if len(x) > layout.d:
            Buffers.of(model, self.setup.written).load(model, x[layout.d :])
        model.eval()
        return model

    def described(self) -> dict[str, Any]:
        """The execution choices, for the run's provenance; one value where there is one architecture."""
        chosen = {"kernel": self.setup.kernels, "block": self.blocks, "why": tuple(one.why for one in self.chosen)}
        return {name: values[0] if len(values) == 1 else list(values) for name, values in chosen.items()}
