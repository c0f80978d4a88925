"""What messages will look like, found out before anything is spawned: one client, one minibatch of two zero samples.

Links need memory in the shape of the first message. A method may change the fields of its messages with the round
(a warm-up, exchanges that take turns): the first three rounds and the last are rehearsed, and a link has room for the
fields of all.
"""

from __future__ import annotations

import copy
from typing import Any

import torch

from fedsim.channel.message import heard
from fedsim.channel.noise import Addressed
from fedsim.data.batches import Feed
from fedsim.engine.oracle import ModelOracle
from fedsim.engine.worker import Setup
from fedsim.errors import InputError
from fedsim.losses import loss_of
from fedsim.objective import Objective
from fedsim.own_code import said
from fedsim.types import Batch, Known, Message, Round, State


class _Two:
    """One minibatch of two samples."""

    length = 1
    expected = torch.tensor(2)

    def __init__(self, batch: Batch):
        self.batch = batch

    def __call__(self, k: int) -> Batch:
        return self.batch

    def active(self, k: int) -> None:
        return None


def broadcasts(algorithm: Any, x0: Any, population: int, rounds: int) -> Message:
    """The fields of the server's broadcasts."""
    server = algorithm.init_server(x0)
    found: Message = {}
    for t in _rounds(rounds):
        for name, value in algorithm.broadcast(server, Round(t, (0,), population)).items():
            if isinstance(found.get(name), (Known, type(None))):  # what is known in one round may travel in another
                found[name] = value
    return found


def offers(setup: Setup, state: State, rounds: int) -> Message:
    """The fields of what peers offer; raises InputError when the algorithm fails."""
    algorithm = setup.algorithm.base  # type: ignore[attr-defined]
    found: Message = {}
    try:
        for t in reversed(_rounds(rounds)):
            found |= algorithm.offer(state, Round(t, (0,), len(setup.train.sizes())))
    except Exception as error:  # user code: any type
        name = type(algorithm).__name__
        raise InputError(f"algorithm {name} fails on its first offer: {said(error)}") from error
    return found


def _rounds(rounds: int) -> list[int]:
    return sorted({0, 1, 2, rounds - 1} & set(range(rounds)))


@torch.no_grad()
def messages(setup: Setup, architecture: int, state: State, x0: Any, rounds: int) -> Message:
    """The fields of the messages of clients of one architecture.

    Raises:
        InputError: the algorithm fails.
    """
    oracles = [ModelOracle(copy.deepcopy(model), loss_of(setup.task), "loop") for model in setup.models]
    feed = Feed(setup.train, torch.device("cpu"), setup.dtype)
    rows = torch.zeros(2, dtype=torch.int64)
    batches = _Two(Batch(*feed.take(rows, torch.zeros(2, 3, dtype=torch.int64) if feed.augment else None)))
    found: Message = {}
    for t in reversed(_rounds(rounds)):
        rnd = Round(t, (architecture,), len(setup.train.sizes()))
        try:
            server = setup.algorithm.init_server(x0)
            noise = Addressed(setup.seed, "rehearsal", t, torch.tensor(architecture))
            obj = Objective(oracles[architecture], batches, torch.tensor(1), torch.tensor(2), noise, batches, oracles)
            message, _ = setup.algorithm.local(obj, state, heard(setup.algorithm.broadcast(server, rnd)), rnd)
        except Exception as error:  # user code: any type
            name = type(getattr(setup.algorithm, "base", setup.algorithm)).__name__
            raise InputError(f"algorithm {name} fails on one minibatch of two samples: {said(error)}") from error
        found |= message
    return found
