"""One exchange among all peers: offers through the channel, one sparse product with W, each peer's step on its row."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from fedsim.channel import message
from fedsim.channel.channel import Channel, noises
from fedsim.ground import addresses
from fedsim.ground.layout import aligned
from fedsim.ground.opaque import at_once
from fedsim.ground.recorded import outside
from fedsim.ground.tree import leaves, tree_map
from fedsim.traits.declared import traits_of
from fedsim.types import Message, Round, State

TOGETHER = 64
"""Peers whose messages go through the channel at once; fixed, and what their intermediate vectors need of memory."""


class Exchanged(NamedTuple):
    """What an exchange came to."""

    peers: State  # tree of [n, ...] tensors
    links: State  # tree of [n, ...] tensors: each peer's memory of its link, and its neighbours' of it
    sent: Tensor  # [n] int64, bytes of each peer's message to one neighbour
    plain: int  # bytes that it would have without a channel


@dataclass(frozen=True)
class Gossip:
    """How peers exchange.

    Attributes:
        algorithm: written for one peer.
        channel: of the messages; a peer sends the same message to all its neighbours.
        parameters: entries of each parameter of the model, for ``layerwise``.
        seed: of the run.
    """

    algorithm: Any
    channel: Channel
    parameters: tuple[int, ...]
    seed: int

    @cached_property
    def publish(self) -> Any:
        """The algorithm's hook of that name, or None."""
        return self.algorithm.publish if "publish" in traits_of(self.algorithm).hooks else None

    def exchange(self, peers: State, links: State, w: sparse.csr_matrix, rnd: Round, step: int) -> Exchanged:
        """Exchange number ``step`` of a round.

        Args:
            peers: tree of [n, ...] tensors.
            links: tree of [n, ...] tensors, see ``Exchanged``.
            w: [n, n] in the dtype of the messages, see ``Mixing``.
            rnd: the round.
            step: 0 .. gossip_steps - 1; random numbers of the channel differ.
        """
        n = w.shape[0]
        pieces = [self._held(*self._some(a, peers, links), rnd, step) for a in range(0, n, self._at_once(n))]
        peers, links, held, sent, plain = pieces[0] if len(pieces) == 1 else _joined(pieces)
        mixed = {name: outside(partial(product, w), value) for name, value in held.items()}
        new = at_once(lambda peer, got: self.algorithm.mix(peer, got, rnd), peers, mixed)
        return Exchanged(new, links, sent, plain)

    def free(self, n: int) -> bool:
        """Whether what n peers exchange goes through nothing that has a memory, or numbers of its own in each round."""
        return not self.channel and self._at_once(n) >= n

    def _at_once(self, n: int) -> int:
        return TOGETHER if self.channel or self.publish is not None else n

    def _some(self, first: int, peers: State, links: State) -> tuple[State, State, Tensor]:
        """Peers ``first`` and those after it, as many as are taken at once."""
        n = len(leaves(peers)[0])
        last = min(n, first + self._at_once(n))
        mine, ends = tree_map(lambda t: aligned(t[first:last]), (peers, links))
        return mine, ends, torch.arange(first, last)

    def _held(self, peers: State, links: State, ids: Tensor, rnd: Round, step: int) -> tuple[Any, ...]:
        """What some peers' neighbours hold of them: (peers, links, messages [b, ...], bytes [b], plain bytes)."""
        plain = 0

        def one(peer: State, link: State, i: Tensor) -> Any:
            nonlocal plain
            offered: Message = self.algorithm.offer(peer, rnd)
            size: Any = message.message_size(offered)
            plain = size
            arrived = offered
            if self.channel:
                mine, theirs = link
                purpose = addresses.member(addresses.GOSSIP, step) if step else addresses.GOSSIP
                noise = noises(self.seed, purpose, rnd.index, i)
                arrived, mine, size = self.channel.send(offered, mine, noise, self.parameters)
                arrived, theirs = self.channel.receive(arrived, theirs, 1.0, self.parameters)
                link = (mine, theirs)
            if self.publish is not None:
                peer, arrived = self.publish(peer, arrived, rnd)
            return peer, link, arrived, torch.zeros_like(i) + size

        states, ends, held, sent = at_once(one, peers, links, ids)
        return states, ends, held, sent, plain


@dataclass(frozen=True)
class Exchanges:
    """All exchanges of a round, where ``Gossip.free``: from the peers' states after local work to their new ones.

    Attributes:
        gossip: how peers exchange.
        steps: exchanges in a round.
        each: W of the rounds of a period.
    """

    gossip: Gossip
    steps: int
    each: tuple[sparse.csr_matrix, ...]

    def __call__(self, peers: State, rnd: Round, at: int) -> State:
        """Those of a round at this place of the period."""
        for step in range(self.steps):
            peers = self.gossip.exchange(peers, ({}, {}), self.each[at], rnd, step).peers
        return peers


def _joined(pieces: list[tuple[Any, ...]]) -> tuple[Any, ...]:
    columns = list(zip(*pieces, strict=True))
    return (*(tree_map(lambda *t: torch.cat(t), *column) for column in columns[:4]), columns[4][0])


def product(w: sparse.csr_matrix, held: Tensor) -> Tensor:
    """W times what the peers hold, [n, ...]; one thread, rows in order: the same bits everywhere."""
    flat = held.reshape(len(held), -1).contiguous().numpy()
    return aligned(torch.from_numpy(np.asarray(w @ flat))).view(held.shape)
