"""One block of clients, computed at once or one by one: the only file in which the leading dimension [b] exists."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fedsim.channel.channel import Channel, noises
from fedsim.channel.noise import Addressed
from fedsim.data.batches import ClientMinibatches, Everything, Feed, Work, as_tensor, lanes, work_of
from fedsim.data.keys import client_keys
from fedsim.ground import addresses
from fedsim.ground.layout import aligned
from fedsim.ground.opaque import at_once
from fedsim.ground.own_code import all_built_in
from fedsim.ground.transfer import fetched, sent
from fedsim.ground.tree import leaves, tree_map
from fedsim.kernels.oracle import ModelOracle
from fedsim.kernels.replaying import Replays
from fedsim.local import Local
from fedsim.objective import Objective
from fedsim.pool.recurring import RoundReplay, Same, shares_memory
from fedsim.pool.returned import check_message, check_model, check_returned
from fedsim.traits.declared import traits_of
from fedsim.types import Message, Round, State

Client = Callable[[Objective, State, Tensor, Message, Round], Any]
"""What one client computes, from its objective, its row of the store, its number, the broadcast and the round.

A tree of tensors.
"""


@dataclass(frozen=True)
class Job:
    """A share of a round's local work, handed to one worker: some blocks of clients, with these clients' states."""

    number: int  # of the job in its round
    round: Round
    architecture: int  # which of the run's models these clients have
    blocks: tuple[tuple[int, ...], ...]
    rows: State  # tree of [clients of all blocks, ...] numpy arrays, in block order

    @property
    def clients(self) -> tuple[int, ...]:
        """Ids of all clients, in block order."""
        return tuple(i for block in self.blocks for i in block)


class Outcome(NamedTuple):
    """What b clients produced."""

    messages: Message  # [b, ...]
    states: State  # tree of [b, ...] tensors
    losses: Tensor  # [b] mean training loss over the local steps; 0 where none counts
    counted: Tensor  # [b] bool, whether some local step counts; see ``Objective.loss``
    sent: Tensor  # [b] int64 bytes that the channel counted; 0 without one

    def finite(self) -> Tensor:
        """[b] whether the client's loss and every number of its message are finite."""
        sums = [t.reshape(len(self.losses), -1).sum(1, dtype=torch.float64) for t in leaves(self.messages)]
        return torch.isfinite(torch.stack([self.losses.double(), *sums])).all(0)


class ClientSide:
    """Runs an algorithm's methods for blocks of clients that have one architecture.

    Args:
        algorithm: written for one client.
        oracles: gradients of every architecture.
        architecture: of these clients; its kernel says whether blocks are computed at once or one by one.
        feed: the training samples.
        local: how much a client works.
        uplink: the channel of the clients' messages.
        seed: of the run.
    """

    def __init__(
        self,
        algorithm: Any,
        oracles: Sequence[ModelOracle],
        architecture: int,
        feed: Feed,
        local: Local,
        uplink: Channel,
        seed: int,
    ):
        self.algorithm, self.oracles, self.oracle = algorithm, oracles, oracles[architecture]
        self.feed, self.local, self.uplink, self.seed = feed, local, uplink, seed
        self.draws = any(oracle.draws for oracle in oracles)
        self.settle = algorithm.settle if "settle" in traits_of(algorithm).hooks else None
        # A user's line may do another thing each time, and whoever tries one out shall see it at work.
        known = all_built_in((algorithm, uplink, feed.augment)) and all(oracle.replays for oracle in oracles)
        self.replays = known and feed.device.type == "cpu"
        self._replays = Replays()
        self._same = Same()

    def run(self, clients: tuple[int, ...], rows: State, got: Message, rnd: Round) -> Outcome:
        """``algorithm.local`` of these clients, then the channel; ``rows`` is a tree of [b, ...] tensors."""
        got = tree_map(aligned, got)
        out = Outcome(*self._of_clients(self._local, clients, rows, got, rnd))
        check_returned(out.messages, out.states, rows)
        return out._replace(messages=tree_map(aligned, self.uplink.decoded(out.messages)))

    def _local(self, obj: Objective, row: State, client: Tensor, got: Message, rnd: Round) -> Any:
        """What one client computes, the fields of ``Outcome``."""
        state, links = row
        message, state = self.algorithm.local(obj, state, got, rnd)
        arrived, sent = message, torch.zeros_like(obj.steps)
        if self.uplink:
            noise = noises(self.seed, addresses.UPLINK, rnd.index, client)
            sizes = tuple(self.oracle.layout.sizes)
            arrived, links, size = self.uplink.send(check_message(message), links, noise, sizes)
            sent = sent + size
        if self.settle is not None:
            state = self.settle(state, message, arrived, rnd)
        return arrived, (state, links), *obj.loss, sent

    def each_round(self, clients: tuple[int, ...], index: int) -> Callable[[Round, State], Outcome] | None:
        """Local work of clients who get nothing, as a function of the round and their rows alone.

        None where it is not known to do the same in every round, the round's own part in it aside.
        """
        if not self.replays or len(clients) < 2 or self.uplink:
            return None
        drawn, lane = self._work(clients, index)
        if clients not in self._same:
            return None

        def work(rnd: Round, rows: State) -> Outcome:
            out = Outcome(*self._stacked(self._local, index, drawn, lane, rows, {}, rnd))
            check_returned(out.messages, out.states, rows)
            return out

        return work

    def models(self, clients: tuple[int, ...], rows: State, got: Message, rnd: Round) -> Tensor:
        """``algorithm.own`` of these clients: the model [b, d + q] that each predicts with, and its written buffers."""
        got = tree_map(aligned, got)

        def own(obj: Objective, row: State, _: Tensor, got: Message, rnd: Round) -> Any:
            return self.algorithm.own(obj, row[0], got, rnd), obj.buffers

        models, buffers = self._of_clients(own, clients, rows, got, rnd)
        check_model(models, len(clients), self.oracle.layout.d, "own")
        return torch.cat([models, buffers], 1) if buffers.shape[1] else models

    @torch.no_grad()
    def _of_clients(self, work: Client, clients: tuple[int, ...], rows: State, got: Message, rnd: Round) -> Any:
        """What ``work`` gives for each client: a tree of tensors [b, ...]."""
        rows = tree_map(aligned, rows)  # of some block of a job: they begin anywhere
        # A client that writes into what all share would change the next client's result, and only with some block
        # sizes.
        shared = [*leaves(got), self.feed.x, self.feed.y]
        versions = [t._version for t in shared]
        if self.oracle.kernel == "loop":
            singly = [
                self._alone(work, i, tree_map(lambda t, p=p: aligned(t[p]), rows), got, rnd)
                for p, i in enumerate(clients)
            ]
            stacked = tree_map(lambda *t: torch.stack(t), *singly)
        elif len(clients) == 1:  # kernels of one take another path and give other bits: pad to two
            twice = self._together(work, clients * 2, tree_map(lambda t: torch.cat([t, t]), rows), got, rnd)
            stacked = tree_map(lambda t: t[:1], twice)
        else:
            stacked = self._together(work, clients, rows, got, rnd)
        if [t._version for t in shared] != versions:  # the next client would see it
            raise TypeError("local must not write into the broadcast or the data, which all clients share")
        return stacked

    def _work(self, clients: tuple[int, ...], index: int) -> tuple[Work, dict[str, Tensor]]:
        """The minibatches of these clients, and their lanes."""
        if (known := self._same.get(clients)) is not None:
            return known
        drawn = work_of(clients, index, self.feed, self.local, self.seed)
        lane = lanes(self.feed, drawn, client_keys(clients, index, self.seed) if self.draws else None)
        if not self.draws and drawn.rows is None and shares_memory(lane["x"], self.feed.x):
            # all examples in stored order, not copied: nothing was drawn, and next to nothing has to be kept
            self._same.keep(clients, drawn, lane)
        return drawn, lane

    def _objective(self, lane: dict[str, Tensor], work: Work, index: int, *, alone: bool) -> Objective:
        batches = ClientMinibatches(self.feed, work, lane, alone=alone)
        everything = Everything(self.feed, work, lane, alone=alone)
        noise = Addressed(self.seed, addresses.LOCAL, index, lane["client"], lane["number"])
        return Objective(self.oracle, batches, lane["steps"], lane["sizes"], noise, everything, self.oracles)

    def _alone(self, work: Client, client: int, row: State, got: Message, rnd: Round) -> Any:
        drawn, lane = self._work((client,), rnd.index)
        lane = {name: t[0] for name, t in lane.items()}
        return work(self._objective(lane, drawn, rnd.index, alone=True), row, lane["number"], got, rnd)

    def _together(self, work: Client, clients: tuple[int, ...], rows: State, got: Message, rnd: Round) -> Any:
        drawn, batched = self._work(clients, rnd.index)

        def all_of_them(known: Round, batched: dict[str, Tensor], rows: State, got: Message) -> Any:
            return self._stacked(work, rnd.index, drawn, batched, rows, got, known)

        # Unequal clients hardly ever meet in the same shapes again.
        equal = len(drawn.stretches) == 1 and not any(drawn.partial) and not any(drawn.empty)
        if not self.replays or not (equal or clients in self._same):
            return all_of_them(rnd, batched, rows, got)
        # Minibatches of the same shapes as in other rounds: the operations are those too, where the algorithm does the
        # same.
        shapes = tuple((t.shape, t.dtype) for t in leaves((batched, rows, got)))
        kind = (work.__name__, drawn.counts.shape, drawn.stretches, drawn.partial, drawn.empty, drawn.most, shapes)
        return self._replays.of(kind, RoundReplay)(all_of_them, rnd, batched, rows, got)

    def _stacked(
        self, work: Client, index: int, drawn: Work, batched: dict[str, Tensor], rows: State, got: Message, rnd: Round
    ) -> Any:
        """What ``work`` gives for all clients of a block at once."""

        def one(lane: dict[str, Tensor], row: State) -> Any:
            return work(self._objective(lane, drawn, index, alone=False), row, lane["number"], got, rnd)

        return at_once(one, batched, rows)


def to_device(tree: Any, device: torch.device) -> Any:
    """A tree of numpy arrays -> tensors on the device, private copies (Ray's arrays are read-only)."""
    tensors = [as_tensor(a) for a in leaves(tree)]
    moved = iter([t.clone() for t in tensors] if device.type == "cpu" else sent(tensors, device))
    return tree_map(lambda _: next(moved), tree)


def to_numpy(tree: Any) -> Any:
    """A tree of tensors -> numpy arrays."""
    back = iter(fetched(leaves(tree)))
    return tree_map(lambda _: next(back).numpy(), tree)
