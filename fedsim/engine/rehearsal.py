"""What messages will look like, found out before anything is spawned: one client, one minibatch of two zero samples.

Links need memory in the shape of the first message. A method may change the fields of its messages with the round
(a warm-up, exchanges that take turns): the first three rounds and the last are rehearsed, and a link has room for the
fields of all.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fedsim.algorithms.around import name_of
from fedsim.channel.channel import noises
from fedsim.channel.message import heard
from fedsim.channel.noise import Addressed
from fedsim.data.batches import Feed
from fedsim.declared import traits_of
from fedsim.engine.block import check, check_model
from fedsim.engine.local_part import LocalPart, written
from fedsim.engine.oracle import ModelOracle
from fedsim.engine.worker import Setup
from fedsim.errors import Diverged, InputError
from fedsim.layout import Layout
from fedsim.losses import loss_of
from fedsim.objective import Objective
from fedsim.own_code import FAILURES, said
from fedsim.rng import stream
from fedsim.tree import tensors, tree_map
from fedsim.types import Batch, Known, Message, Owned, Round, State


class Two:
    """One minibatch of two samples."""

    length = 1
    expected = torch.tensor(2)

    def __init__(self, batch: Batch):
        self.batch = batch

    def __call__(self, k: int) -> Batch:
        """Always the same."""
        return self.batch

    def active(self, k: int) -> None:
        """The client works."""
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
    except FAILURES as error:  # user code: any type
        name = type(algorithm).__name__
        raise InputError(f"algorithm {name} fails on its first offer: {said(error)}") from error
    return found


def _rounds(rounds: int) -> list[int]:
    return sorted({0, 1, 2, rounds - 1} & set(range(rounds)))


class _Client:
    """A client of one architecture and its two samples.

    Args:
        setup: what workers are given.
        architecture: number of the client's model.
    """

    def __init__(self, setup: Setup, architecture: int):
        self.setup, self.architecture = setup, architecture
        self.oracles = [ModelOracle(copy.deepcopy(model), loss_of(setup.task), "loop") for model in setup.models]
        feed = Feed(setup.train, torch.device("cpu"), setup.dtype)
        rows = torch.zeros(2, dtype=torch.int64)
        self.batches = Two(Batch(*feed.take(rows, torch.zeros(2, 3, dtype=torch.int64) if feed.augment else None)))

    @torch.no_grad()
    def local(self, state: State, server: Any, rnd: Round) -> tuple[Message, State]:
        """Its message and new state after a broadcast of ``server``."""
        algorithm = self.setup.algorithm
        return algorithm.local(self.objective(rnd.index), state, heard(algorithm.broadcast(server, rnd)), rnd)

    def objective(self, index: int) -> Objective:
        """What it works on in round ``index``."""
        noise = Addressed(self.setup.seed, "rehearsal", index, torch.tensor(self.architecture))
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
    check(one, new, old)
    if "own" in words.hooks:
        check_model(_alone(algorithm.own(obj, state, got, rnd)), 1, d, "own")
    if isinstance(algorithm, LocalPart):
        _exchange(algorithm.base, new, old, rnd, d)
    if words.asynchronous:  # its server steps on several arrivals, with their ages
        return
    sums = rule.add({}, rnd.clients, one, torch.ones(1, dtype=torch.float64))
    received = rule.finish(tree_map(lambda v: v.numpy(), sums), 1.0, setup.dtype)
    noise = Addressed(setup.seed, "rehearsal.server", rnd.index, torch.zeros((), dtype=torch.int64))
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
    check({}, tree_map(_alone, peer), old, "mix")
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
            client = _Client(setup, number)
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
    client = _Client(setup, architecture)
    found: Message = {}
    try:
        for t in reversed(_rounds(rounds)):
            server = setup.algorithm.init_server(x0)
            found |= client.local(state, server, Round(t, (architecture,), len(setup.train.sizes())))[0]
    except FAILURES as error:  # user code: any type
        name = name_of(written(setup.algorithm))
        raise InputError(f"algorithm {name} fails on one minibatch of two samples: {said(error)}") from error
    return found


def message(setup: Setup, architecture: int, state: State, server: Any, rnd: Round) -> Message:
    """What a client of one architecture sends in a round, after one minibatch of two samples."""
    return _Client(setup, architecture).local(state, server, rnd)[0]


def require_known(setup: Setup, state: State, x0: Any, rounds: int, link: State, far: State) -> None:
    """Raise InputError when clients are to know what the downlink keeps from them.

    What a broadcast calls ``Known`` after the first round is computed from earlier broadcasts, so all of these have to
    arrive as they are sent, up to rounding: 1-bit Adam's momentum does through the layer that the server itself has put
    it through. The first six rounds and the last three are rehearsed, for feedback may send first messages in full.

    Args:
        setup: what workers are given.
        state: a client's first.
        x0: what the server starts from.
        rounds: how many there will be.
        link: memory of the downlink.
        far: memory of its far end.
    """
    algorithm, downlink, n = setup.algorithm, setup.downlink, len(setup.train.sizes())
    server = algorithm.init_server(x0)
    told = [algorithm.broadcast(server, Round(t, (0,), n)) for t in _rounds(rounds)[1:]]
    known = " and ".join(dict.fromkeys(k for sent in told for k, value in sent.items() if isinstance(value, Known)))
    if not known:
        return
    sizes, who = tuple(Layout.of(setup.models[0]).sizes), torch.zeros((), dtype=torch.int64)
    for t, broadcast in _told(setup, state, server, sorted({*range(6), *range(rounds - 3, rounds)} & {*range(rounds)})):
        arrived, link, _ = downlink.send(broadcast, link, noises(setup.seed, "rehearsal", t, who), sizes)
        arrived, far = downlink.receive(arrived, far, 1.0, sizes)
        if lost := next((name for name in broadcast if not _equal(arrived[name], broadcast[name])), None):
            name, layers = name_of(written(algorithm)), [one.name for one in downlink.layers]
            raise InputError(
                f"downlink must deliver {lost} unchanged for {name}, whose clients compute {known} themselves from "
                f"what they received, got [{','.join(layers)}], which loses a part of it; leave these layers out, or "
                "limit them to fields that arrive unchanged"
            )


@torch.no_grad()
def _told(setup: Setup, state: State, server: Any, rounds: list[int]) -> Iterator[tuple[int, Message]]:
    """(round, its broadcast), where arbitrary numbers in the shapes of clients' messages moved the server before it."""
    algorithm, rule, sizes = setup.algorithm, setup.aggregate, setup.train.sizes()
    client, everybody, smallest = _Client(setup, 0), tuple(range(len(sizes))), int(sizes.min())
    for t in rounds:
        if t:
            noise = Addressed(setup.seed, "rehearsal.server", t, torch.zeros((), dtype=torch.int64))
            rnd = Round(t - 1, everybody, len(sizes), smallest, noise=noise)
            sent, state = client.local(state, server, rnd)
            one = tree_map(lambda v: v[None], _arbitrary(sent, stream(setup.seed, "rehearsal", t)))
            sums = rule.add({}, (0,), one, torch.ones(1, dtype=torch.float64))
            server = algorithm.server(server, rule.finish(tree_map(lambda v: v.numpy(), sums), 1.0, setup.dtype), rnd)
        yield t, algorithm.broadcast(server, Round(t, everybody, len(sizes), smallest))


def _arbitrary(message: Message, generator: torch.Generator) -> Message:
    """Numbers that no layer happens to leave alone, in the shapes of a message; all of its rows are there."""

    def other(value: Any) -> Any:
        if isinstance(value, Owned):
            return Owned(other(value.values), torch.ones_like(value.mask))
        if not value.is_floating_point() or not value.dim():  # counts and bits have ranges of their own
            return value
        return value + torch.randn(value.shape, generator=generator).to(value.dtype)

    return {name: other(value) for name, value in message.items()}


def _equal(arrived: Any, sent: Any) -> bool:
    """Up to rounding: a scale computed twice, an estimate taken off and put on again; 16 bits round far more."""
    if not isinstance(sent, torch.Tensor) or not sent.is_floating_point() or not sent.numel():
        return True
    return bool((arrived - sent).abs().max() <= 64 * torch.finfo(sent.dtype).eps * sent.abs().max())
