"""Ninth stage of assembly: what the ends of every link remember before the first message, which is rehearsed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from fedsim.algorithms.kit.around import name_of
from fedsim.assembly.initial import Initial
from fedsim.assembly.known import require_known
from fedsim.assembly.parts import Parts
from fedsim.channel.channel import Channel, noises
from fedsim.channel.onion import Noises
from fedsim.channel.order import check_layer_fields
from fedsim.ground import addresses
from fedsim.pool.local_part import LocalPart
from fedsim.pool.rehearsal import broadcasts, messages, offers
from fedsim.pool.worker import Setup
from fedsim.runs.start import Memory
from fedsim.traits.declared import traits_of
from fedsim.types import State


def linked(parts: Parts, setup: Setup, initial: Initial) -> tuple[list[State], Memory]:
    """What the near end of a link remembers, of clients of each architecture, and what all far ends do.

    Raises:
        InputError: a layer cannot carry the messages.
    """
    if isinstance(initial.algorithm, LocalPart):
        return [{}], _between_peers(parts, setup, initial)
    if parts.channel or parts.downlink:
        return _with_server(parts, setup, initial)
    return [{}] * len(initial.states), Memory({}, {}, {})


def _between_peers(parts: Parts, setup: Setup, initial: Initial) -> Memory:
    """The two ends of a peer's link, which all peers have alike."""
    channel, sizes = parts.channel, tuple(initial.layouts[0].sizes)
    sample = offers(setup, initial.states[0], parts.planned_rounds)
    check_layer_fields("channel", channel.layers, set(sample))
    mine, theirs = channel.init(sample), channel.init_server(sample)
    if channel:  # an impossible layer says so now
        arrived, *_ = channel.send(sample, mine, _noise(setup), sizes)
        channel.receive(arrived, theirs, 1.0, sizes)
    return Memory(mine, {}, theirs)


def _with_server(parts: Parts, setup: Setup, initial: Initial) -> tuple[list[State], Memory]:
    """The links of clients of each architecture to the server, and the one link on which all hear it."""
    later = traits_of(initial.algorithm).compresses  # after a warm-up, perhaps beyond the last round
    links, far = _up(parts, setup, initial, later) if parts.channel else ([{}] * len(initial.states), {})
    down, heard = _down(parts, setup, initial, later) if parts.downlink else ({}, {})
    return links, Memory(far, down, heard)


def _up(parts: Parts, setup: Setup, initial: Initial, later: Sequence[str]) -> tuple[list[State], State]:
    channel, rounds = parts.channel, parts.planned_rounds
    samples = [messages(setup, number, state, initial.x0, rounds) for number, state in enumerate(initial.states)]
    links = [channel.init(sample) for sample in samples]
    check_layer_fields("channel", channel.layers, {name for sample in samples for name in sample}, later)
    for sample, link, layout in zip(samples, links, initial.layouts, strict=True):  # an impossible layer says so now
        channel.send(sample, link, _noise(setup), tuple(layout.sizes))
    return links, channel.init_server(samples[0])


def _down(parts: Parts, setup: Setup, initial: Initial, later: Sequence[str]) -> tuple[State, State]:
    downlink, rounds = parts.downlink, parts.planned_rounds
    sample = broadcasts(setup.algorithm, initial.x0, len(setup.train.sizes()), rounds)
    check_layer_fields("downlink", downlink.layers, sample, later)
    down, heard = downlink.init(sample), downlink.init_server(sample)
    downlink.send(sample, down, _noise(setup), tuple(initial.layouts[0].sizes))
    require_known(setup, initial.states[0], initial.x0, rounds, down, heard)
    return down, heard


def _noise(setup: Setup) -> Noises:
    return noises(setup.seed, addresses.REHEARSAL, 0, torch.zeros((), dtype=torch.int64))


def compression_notes(algorithm: Any, channel: Channel, downlink: Channel, rounds: int) -> tuple[str, ...]:
    """What the user should know where the layers are not those that the method is made for, one sentence each.

    Which these are, its traits say: ``compresses``, ``in_full`` and ``compresses_from``.
    """
    said, name = traits_of(algorithm), name_of(algorithm)
    wanted = said.compresses
    notes = [
        f"{name} compresses what it sends as `{field}`, but no layer of channel acts on it; "
        "leave channel out to have the method's own"
        for field in wanted
        if not any(layer.fields is None or field in layer.fields for layer in channel.layers)
    ]
    if wanted and said.compresses_from >= rounds:
        do = "lower algorithm.warmup, or raise rounds"
        notes.append(f"{name} compresses nothing in {rounds} rounds, for its warm-up is {said.compresses_from}; {do}")
    for link, layers in (("channel", channel.layers), ("downlink", downlink.layers)):
        for layer in layers:
            spoiled = [field for field in said.in_full if field in (layer.fields or (field,))]
            if wanted and spoiled:
                notes.append(
                    f"{link}.{layer.name} must act on {' and '.join(wanted)} alone to give {name}; "
                    f"add {link}.{layer.name}.fields=[{','.join(wanted)}], or leave {link} out to have the method's own"
                )
    return tuple(notes)
