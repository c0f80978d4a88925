"""One block of clients, computed at once or one by one: the only file in which the leading dimension [b] exists."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fedsim.algorithms.base import ServerAlgorithm
from fedsim.data.batches import Feed, Minibatches, Work, as_tensor, lanes, work_of
from fedsim.engine.oracle import ModelOracle
from fedsim.local import Local
from fedsim.objective import Objective
from fedsim.tree import leaves, tree_map
from fedsim.types import Message, Round, State


@dataclass(frozen=True)
class Job:
    """What a worker is handed: some blocks of one round and their clients' rows of the store."""

    number: int  # of the job in its round
    round: Round
    blocks: tuple[tuple[int, ...], ...]
    rows: State  # tree of [clients of all blocks, ...] numpy arrays, in block order


class Outcome(NamedTuple):
    """What b clients produced."""

    messages: Message  # [b, ...]
    states: State  # tree of [b, ...] tensors
    losses: Tensor  # [b] mean training loss over the local steps

    def finite(self) -> Tensor:
        """[b] whether the client's loss and every number of its message are finite."""
        sums = [t.reshape(len(self.losses), -1).double().sum(1) for t in self.messages.values()]
        return torch.isfinite(torch.stack([self.losses.double(), *sums])).all(0)


class Blocks:
    """Runs ``algorithm.local`` for blocks of clients.

    Args:
        algorithm: written for one client.
        oracle: gradients of the model; its kernel says whether blocks are computed at once or one by one.
        feed: the training samples.
        local: how much a client works.
        seed: of the run.
    """

    def __init__(self, algorithm: ServerAlgorithm[Any, Any], oracle: ModelOracle, feed: Feed, local: Local, seed: int):
        self.algorithm, self.oracle, self.feed, self.local, self.seed = algorithm, oracle, feed, local, seed

    @torch.no_grad()
    def run(self, clients: tuple[int, ...], rows: State, got: Message, rnd: Round) -> Outcome:
        """Compute these clients; ``rows`` is a tree of [b, ...] tensors."""
        shared = [*leaves(got), self.feed.x, self.feed.y]
        versions = [t._version for t in shared]
        if self.oracle.kernel == "loop":
            each = [self._alone(i, tree_map(lambda t, p=p: t[p], rows), got, rnd) for p, i in enumerate(clients)]
            stacked = tree_map(lambda *t: torch.stack(t), *each)
        elif len(clients) == 1:  # kernels of one take another path and give other bits: pad to two
            twice = self._together(clients * 2, tree_map(lambda t: torch.cat([t, t]), rows), got, rnd)
            stacked = tree_map(lambda t: t[:1], twice)
        else:
            stacked = self._together(clients, rows, got, rnd)
        if [t._version for t in shared] != versions:  # the next client would see it
            raise TypeError("local must not write into the broadcast or the data, which all clients share")
        _check(stacked[0], stacked[1], rows)
        return Outcome(*stacked)

    def _client(self, lane: dict[str, Tensor], work: Work, row: State, got: Message, rnd: Round, alone: bool) -> Any:
        batches = Minibatches(self.feed, work, lane, alone=alone)
        obj = Objective(self.oracle, batches, lane["steps"], lane["sizes"])
        message, state = self.algorithm.local(obj, row, got, rnd)
        return message, state, obj.loss

    def _alone(self, client: int, row: State, got: Message, rnd: Round) -> Any:
        work = work_of((client,), rnd.index, self.feed, self.local, self.seed)
        lane = {name: t[0] for name, t in lanes(self.feed, work).items()}
        return self._client(lane, work, row, got, rnd, alone=True)

    def _together(self, clients: tuple[int, ...], rows: State, got: Message, rnd: Round) -> Any:
        work = work_of(clients, rnd.index, self.feed, self.local, self.seed)
        batched = lanes(self.feed, work)
        states = leaves(rows)

        def one(lane: dict[str, Tensor], row: list[Tensor]) -> Any:
            values = iter(row)
            return self._client(lane, work, tree_map(lambda _: next(values), rows), got, rnd, alone=False)

        return torch.func.vmap(one)(batched, states)


def _check(message: Any, new: State, old: State) -> None:
    """Raise TypeError unless b clients' message and new states are of the kinds that travel and fit the store."""
    if not isinstance(message, dict) or not all(isinstance(t, Tensor) for t in message.values()):
        raise TypeError("local must return a message of tensors by name, and the client's new state")
    before, after = (tree_map(lambda t: f"{str(t.dtype)[6:]}{list(t.shape[1:])}", state) for state in (old, new))
    if before != after:
        raise TypeError(f"local must return a client state like the one it got, {before}, got {after}")


def to_device(tree: Any, device: torch.device) -> Any:
    """A tree of numpy arrays -> tensors on the device, private copies (Ray's arrays are read-only)."""
    return tree_map(lambda a: as_tensor(a).clone().to(device), tree)


def to_numpy(tree: Any) -> Any:
    """A tree of tensors -> numpy arrays."""
    return tree_map(lambda t: t.detach().cpu().numpy(), tree)
