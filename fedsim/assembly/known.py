"""Whether clients can know what a broadcast calls ``Known``: what they would compute it from must arrive unchanged."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from fedsim.algorithms.kit.around import name_of
from fedsim.channel.channel import noises
from fedsim.channel.noise import Addressed
from fedsim.errors import InputError
from fedsim.ground import addresses
from fedsim.ground.layout import Layout
from fedsim.ground.rng import stream
from fedsim.ground.tree import tree_map
from fedsim.pool.local_part import written
from fedsim.pool.rehearsal import Rehearsed, rounds_of_all_fields
from fedsim.pool.worker import Setup
from fedsim.types import Known, Message, Owned, Round, State


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
    told = [algorithm.broadcast(server, Round(t, (0,), n)) for t in rounds_of_all_fields(rounds)[1:]]
    known = " and ".join(dict.fromkeys(k for sent in told for k, value in sent.items() if isinstance(value, Known)))
    if not known:
        return
    sizes, who = tuple(Layout.of(setup.models[0]).sizes), torch.zeros((), dtype=torch.int64)
    tried = sorted(t for t in {*range(6), *range(rounds - 3, rounds)} if 0 <= t < rounds)
    for t, broadcast in _told(setup, state, server, tried):
        arrived, link, _ = downlink.send(broadcast, link, noises(setup.seed, addresses.REHEARSAL, t, who), sizes)
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
    client, everybody, smallest = Rehearsed(setup, 0), tuple(range(len(sizes))), int(sizes.min())
    for t in rounds:
        if t:
            noise = Addressed(setup.seed, addresses.REHEARSAL_SERVER, t, torch.zeros((), dtype=torch.int64))
            rnd = Round(t - 1, everybody, len(sizes), smallest, noise=noise)
            sent, state = client.local(state, server, rnd)
            one = tree_map(lambda v: v[None], _arbitrary(sent, stream(setup.seed, addresses.REHEARSAL, t)))
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
