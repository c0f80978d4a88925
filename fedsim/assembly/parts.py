"""The parts of a run as the user gave them, each checked when they are put into one value; not yet whether they fit.

``fedsim.simulate`` makes this value from its arguments, the command line from a configuration. Every stage of
``fedsim.assembly.assemble`` reads it, and none changes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fedsim.aggregate import Aggregate, Mean
from fedsim.assembly.part_roles import ROLES, require_callbacks, require_kind, require_models, require_parts, whole
from fedsim.assembly.run_name import default_name, require_name
from fedsim.callbacks.base import Callback
from fedsim.channel.channel import Channel
from fedsim.data.dataset import Dataset, Source
from fedsim.data.losses import Task
from fedsim.errors import require
from fedsim.evaluate import Evaluate
from fedsim.local import Local
from fedsim.models import Factory
from fedsim.partition import Partition
from fedsim.pool.engine import Engine
from fedsim.privacy.config import Privacy
from fedsim.record.checkpoint import Checkpointing
from fedsim.schedule import All, Events, Schedule
from fedsim.topology import Topology

DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True)
class Parts:
    """What a run is made of; see ``fedsim.simulate``, whose arguments have these names.

    Attributes:
        algorithm: the method, a ``ServerAlgorithm``, ``PeerAlgorithm`` or ``EventAlgorithm``.
        data: where samples come from, or the data set itself.
        partition: who holds what.
        model: one architecture, or several that the clients take in turn.
        rounds: communication rounds, >= 1; or, in virtual time, how often the run is measured.
        schedule: who takes part when.
        local: a client's work in one round.
        aggregate: the server's rule.
        topology: who gossips with whom; None for clients of a server.
        channel: layers around the clients' messages.
        downlink: layers around the server's broadcast.
        privacy: the mechanism, or None.
        engine: how the run is executed.
        evaluate: when and what to evaluate.
        checkpoint: when what the run needs to go on is saved.
        task: what the model is trained for, if it is not what the data set says.
        seed: of everything random in the run.
        trajectory: whether the model after every round is kept.
        events: whether the events of a run in virtual time are kept.
        callbacks: who is told of every round.
        name: what the run is called; None: by what it is, as ``fedavg-digits-dirichlet-s0``.

    Raises:
        InputError: a part is not what its name says.
    """

    algorithm: Any
    data: Source | Dataset
    partition: Partition
    model: Factory | nn.Module | Sequence[Factory | nn.Module]
    rounds: int
    schedule: Schedule = All()  # noqa: RUF009 - a frozen dataclass
    local: Local = Local()  # noqa: RUF009
    aggregate: Aggregate = Mean()  # noqa: RUF009
    topology: Topology | None = None
    channel: Channel = Channel()  # noqa: RUF009
    downlink: Channel = Channel()  # noqa: RUF009
    privacy: Privacy | None = None
    engine: Engine = Engine(backend="serial")  # noqa: RUF009
    evaluate: Evaluate = Evaluate()  # noqa: RUF009
    checkpoint: Checkpointing = Checkpointing()  # noqa: RUF009
    task: Task | None = None
    seed: int = 0
    trajectory: bool = False
    events: bool = False
    callbacks: Sequence[Callback] = ()
    name: str | None = None

    def __post_init__(self) -> None:
        require_parts({name: vars(self)[name] for name in ROLES})
        require_models(self.model)
        object.__setattr__(self, "callbacks", require_callbacks(self.callbacks))
        require_name(self.name)
        object.__setattr__(self, "rounds", whole(self.rounds, "rounds", 1))  # of Python's own type, if it was numpy's
        object.__setattr__(self, "seed", whole(self.seed, "seed"))
        for name in ("trajectory", "events"):
            require_kind(vars(self)[name], name, bool, "be True or False")
        here = self.engine.device == "cpu" or torch.cuda.is_available()
        require(here, "engine.device", "be cpu on a machine without a CUDA device", self.engine.device)
        must = "be false for rounds, which have no events; it is for schedule=events"
        require(not self.events or isinstance(self.schedule, Events), "logger.events", must, self.events)

    @property
    def factories(self) -> list[Factory | nn.Module]:
        """The architectures: client i has number i modulo their count."""
        return list(self.model) if isinstance(self.model, Sequence) else [self.model]

    @property
    def called(self) -> str:
        """What the run is called."""
        if self.name is not None:
            return self.name
        data = self.data.name if isinstance(self.data, Dataset) else type(self.data).__name__
        return default_name([type(self.algorithm).__name__, data, type(self.partition).__name__], self.seed)

    @property
    def planned_rounds(self) -> int:
        """How many rounds there will be; in virtual time, how often the run is measured."""
        return len(self.schedule.times(self.rounds)) if isinstance(self.schedule, Events) else self.rounds

    @property
    def dtype(self) -> torch.dtype:
        """What the run computes in."""
        return DTYPES[self.engine.dtype]
