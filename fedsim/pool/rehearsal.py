"""What messages will look like, and whether a round works, found out before anything is spawned.

One client works on one minibatch of two samples.

Links need memory in the shape of the first message. A method may change the fields of its messages with the round
(a warm-up, exchanges that take turns): the first three rounds and the last are rehearsed, and a link has room for the
fields of all.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fedsim.algorithms.kit.around import name_of
from fedsim.channel.message import heard
from fedsim.channel.noise import Addressed
from fedsim.data.batches import Feed
from fedsim.data.losses import loss_of
from fedsim.errors import Diverged, InputError
from fedsim.ground import addresses
from fedsim.ground.layout import Layout
from fedsim.ground.own_code import FAILURES, said
from fedsim.ground.tree import tensors, tree_map
from fedsim.kernels.oracle import ModelOracle
from fedsim.objective import Objective
from fedsim.pool.local_part import LocalPart, written
from fedsim.pool.returned import check_model, check_returned
from fedsim.pool.worker import Setup
from fedsim.traits.declared import traits_of
from fedsim.types import Batch, Known, Message, Owned, Round, State, Stretch


class Two:
    """One minibatch of two samples."""

    length = 1
    expected = torch.tensor(2)
    stretches = (Stretch(0, 1),)

    def __init__(self, batch: Batch):
        self.batch = batch

    def __call__(self, k: int) -> Batch:
        """Always the same."""
        return self.batch

    def holds(self, k: int) -> None:
        """The client works on samples."""
        return None


def broadcasts(algorithm: Any, x0: Any, population: int, rounds: int) -> Message:
    """The fields of the server's broadcasts."""
    server = algorithm.init_server(x0)
    found: Message = {}
    for t in rounds_of_all_fields(rounds):
        for name, value in algorithm.broadcast(server, Round(t, (0,), population)).items():
            if isinstance(found.get(name), (Known, type(None))):  # what is known in one round may travel in another
                found[name] = value
    return found


def offers(setup: Setup, state: State, rounds: int) -> Message:
    """The fields of what peers offer; raises InputError when the algorithm fails."""
    algorithm = setup.algorithm.base  # type: ignore[attr-defined]
    found: Message = {}
    try:
        for t in reversed(rounds_of_all_fields(rounds)):
            found |= algorithm.offer(state, Round(t, (0,), len(setup.train.sizes())))
    except FAILURES as error:  # user code: any type
        name = type(algorithm).__name__
        raise InputError(f"algorithm {name} fails on its first offer: {said(error)}") from error
    return found


def rounds_of_all_fields(rounds: int) -> list[int]:
    """The rounds in which every field of a message occurs."""
    return sorted(t for t in {0, 1, 2, rounds - 1} if t < rounds)


class Rehearsed:
    """A client of one architecture and its two samples, in a rehearsal.

    Args:
        setup: what workers are given.
        architecture: number of the client's model.
    """

    def __init__(self, setup: Setup, architecture: int):
        self.setup, self.architecture = setup, architecture
        loss, written = loss_of(setup.task), setup.written
        self.oracles = [ModelOracle(copy.deepcopy(model), loss, "loop", written=written) for model in setup.models]
        feed = Feed(setup.train, torch.device("cpu"), setup.dtype)
        rows = torch.zeros(2, dtype=torch.int64)
        x, y = feed.take(rows, torch.zeros(2, 3, dtype=torch.int64) if feed.augment else None)
        self.batches = Two(Batch(x, y, keys=torch.arange(2)))

    @torch.no_grad()
    def local(self, state: State, server: Any, rnd: Round) -> tuple[Message, State]:
        """Its message and new state after a broadcast of ``server``."""
        algorithm = self.setup.algorithm
        return algorithm.local(self.objective(rnd.index), state, heard(algorithm.broadcast(server, rnd)), rnd)

    def objective(self, index: int) -> Objective:
        """What it works on in round ``index``."""
        noise = Addressed(self.setup.seed, addresses.REHEARSAL, index, torch.tensor(self.architecture))
        oracle, two = self.oracles[self.architecture], torch.tensor(2)
        return Objective(oracle, self.batches, torch.tensor(1), two, noise, self.batches, self.oracles)


def first_round(setup: Setup, obj: Any, state: State, x0: Any, rnd: Round) -> None:
    """All that an algorithm does in a round, by one client, whose message alone the server steps on.

    Raises:
        TypeError: what a method returns is not what its protocol says.
        Exception: whatever the algorithm raises.
    """
    algorithm: Any = setup.algorithm
    rule, words, d = setup.aggregate, traits_of(algorithm), Layout.of(setup.models[rnd.clients[0]]).d
    server = algorithm.init_server(x0)
    sent = algorithm.broadcast(server, rnd)
    _require_message(sent, "broadcast")
    got = heard(sent)
    answer = algorithm.local(obj, state, got, rnd)
    if not isinstance(answer, tuple) or len(answer) != 2:
        must = "local must return a message of tensors by name, and the client's new state"
        raise TypeError(f"{must}, got {_kinds(answer)}")
    one, new, old = (tree_map(_alone, part) for part in (*answer, state))
    check_returned(one, new, old)
    if "own" in words.hooks:
        check_model(_alone(algorithm.own(obj, state, got, rnd)), 1, d, "own")
    if isinstance(algorithm, LocalPart):
        _exchange(algorithm.base, new, old, rnd, d)
    if words.asynchronous:  # its server steps on several arrivals, with their ages
        return
    sums = rule.add({}, rnd.clients, one, torch.ones(1, dtype=torch.float64))
    received = rule.finish(tree_map(lambda v: v.numpy(), sums), 1.0, setup.dtype)
    noise = Addressed(setup.seed, addresses.REHEARSAL_SERVER, rnd.index, torch.zeros((), dtype=torch.int64))
    after = algorithm.server(server, received, replace(rnd, noise=noise))
    tensors(after, "server")
    kind, had, has = type(server).__name__, getattr(server, "x", None), getattr(after, "x", None)
    if type(after) is not type(server):
        raise TypeError(f"server must return a state like the one it got, {kind}, got {type(after).__name__}")
    if isinstance(had, torch.Tensor) and _shape(had) != _shape(has):  # other fields may grow
        raise TypeError(f"server must return a state whose x is like the one it got, {_shape(had)}, got {_shape(has)}")


def _exchange(algorithm: Any, new: State, old: State, rnd: Round, d: int) -> None:
    """A peer alone: it hears itself; raises as ``first_round`` does. States are rows of one peer."""
    hooks = traits_of(algorithm).hooks
    if traits_of(algorithm).role != "peers" or "tuned" in hooks:
        return
    peer = tree_map(lambda t: t[0], new)
    message = algorithm.offer(peer, rnd)
    _require_message(message, "offer")
    if "publish" in hooks:
        peer, message = algorithm.publish(peer, message, rnd)
    peer = algorithm.mix(peer, message, rnd)
    check_returned({}, tree_map(_alone, peer), old, "mix")
    check_model(_alone(algorithm.model(peer)), 1, d, "model")


def _require_message(message: Any, method: str) -> None:
    if not isinstance(message, dict) or not all(
        isinstance(value, (Tensor, Owned, Known)) for value in message.values()
    ):
        raise TypeError(f"{method} must return a message of tensors by name, got {_kinds(message)}")


def _alone(value: Any) -> Any:
    """One client's value as that of a block of one."""
    return value[None] if isinstance(value, Tensor) else value


def _shape(value: Any) -> str:
    return f"{str(value.dtype)[6:]}{list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def _kinds(value: Any) -> str:
    """What a method returned, for messages."""
    if isinstance(value, dict):
        return f"a dict of {', '.join(sorted({type(item).__name__ for item in value.values()}))}"
    return f"{len(value)} values" if type(value) is tuple else type(value).__name__


def require_round(setup: Setup, states: Sequence[State], x0: Any, rounds: int) -> None:
    """Raise InputError when clients cannot do a round, one for each architecture, on one minibatch of two samples.

    Peers whose step sizes depend on the graph do not have them yet, and are not tried.

    Args:
        setup: what workers are given.
        states: a client's first state, of each architecture.
        x0: what the server starts from.
        rounds: how many there will be.
    """
    mine = traits_of(written(setup.algorithm))
    if mine.role == "events" or "tuned" in mine.hooks:
        return
    try:
        for number, state in enumerate(states):
            client = Rehearsed(setup, number)
            for t in tried(rounds):
                rnd = Round(t, (number,), len(setup.train.sizes()), int(setup.train.sizes().min()))
                with torch.no_grad():
                    first_round(setup, client.objective(t), state, x0, rnd)
    except (InputError, Diverged):
        raise
    except FAILURES as error:  # user code: any type
        name = name_of(written(setup.algorithm))
        raise InputError(f"algorithm {name} fails on one minibatch of two samples: {said(error)}") from error


def tried(rounds: int) -> list[int]:
    """The rounds that are rehearsed in full."""
    return sorted({0, min(1, rounds - 1), rounds - 1})


def messages(setup: Setup, architecture: int, state: State, x0: Any, rounds: int) -> Message:
    """The fields of the messages of clients of one architecture.

    Raises:
        InputError: the algorithm fails.
    """
    client = Rehearsed(setup, architecture)
    found: Message = {}
    try:
        for t in reversed(rounds_of_all_fields(rounds)):
            server = setup.algorithm.init_server(x0)
            found |= client.local(state, server, Round(t, (architecture,), len(setup.train.sizes())))[0]
    except FAILURES as error:  # user code: any type
        name = name_of(written(setup.algorithm))
        raise InputError(f"algorithm {name} fails on one minibatch of two samples: {said(error)}") from error
    return found


def message(setup: Setup, architecture: int, state: State, server: Any, rnd: Round) -> Message:
    """What a client of one architecture sends in a round, after one minibatch of two samples."""
    return Rehearsed(setup, architecture).local(state, server, rnd)[0]
