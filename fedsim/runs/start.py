"""What a run starts from, whatever its kind: everything that was checked and prepared before the first round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from torch import Tensor

from fedsim.channel.channel import Channel
from fedsim.evaluate import Evaluate
from fedsim.pool.worker import Setup
from fedsim.runs.events import Graphs
from fedsim.topology import Topology
from fedsim.types import State


class Memory(NamedTuple):
    """What the channels remember beside the clients' own links."""

    uplink: State  # {field: {layer: state}} of the server's end
    downlink: State  # of the one link that all clients listen to
    heard: State  # of its far end, the clients, who hold it alike


class Beginning(NamedTuple):
    """What everybody has before the first round."""

    x0: Tensor | dict[str, Tensor]  # what the server starts from
    rows: Sequence[State]  # what a client of each architecture starts from: its state and its link's memory
    memory: Memory  # what the channels' far ends start from


class Between(NamedTuple):
    """What lies between peers; clients of a server have neither topology nor graphs."""

    channel: Channel  # of the messages between peers; that of a server's clients is in the set-up
    topology: Topology | None
    graphs: Graphs | None  # of peers in virtual time


@dataclass(frozen=True)
class Start:
    """A run before its first round.

    Attributes:
        setup: what the workers are given.
        schedule: who takes part when.
        evaluation: when and what to evaluate.
        rounds: how many there will be.
        blocks: most clients of each architecture computed at once.
        jobs: pieces that clients are cut into, or ``auto``.
        beginning: what server, clients and links start from.
        between: what lies between peers.
    """

    setup: Setup
    schedule: Any
    evaluation: Evaluate
    rounds: int
    blocks: Sequence[int]
    jobs: int | Literal["auto"]
    beginning: Beginning
    between: Between
