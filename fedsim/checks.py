"""What cannot be run together, said before anything is spawned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from fedsim.aggregate import Aggregate
from fedsim.algorithms.around import name_of
from fedsim.channel.channel import Channel
from fedsim.data.base import Dataset
from fedsim.declared import layer_traits, rule_traits, traits_of
from fedsim.delays import Asynchronous
from fedsim.errors import InputError, require
from fedsim.models import zero_sample
from fedsim.partition import Population
from fedsim.schedule import Events, Schedule
from fedsim.topology import Mixing, Topology


def require_rule(algorithm: Any, aggregate: Aggregate) -> None:
    """Raise InputError unless the server rule gives the algorithm what it wants: equal weights, a mean or a stack."""
    require(
        aggregate.weights == "uniform" or not traits_of(algorithm).uniform,
        "aggregate.weights",
        f"be uniform for {name_of(algorithm)}, whose clients must weigh the same",
        aggregate.weights,
        "add aggregate.weights=uniform",
    )
    said, gives = traits_of(algorithm), rule_traits(aggregate)
    name = name_of(algorithm)
    must = f"be {'the sum of integers' if said.integers else 'a rule for numbers'} for {name}"
    do = f"add {'privacy=discrete_gaussian, which chooses it' if said.integers else 'aggregate=mean'}"
    require(gives.integers == said.integers, "aggregate", must, type(aggregate).__name__, do)
    must = f"be {'stack' if said.stacked else 'a mean'} for {name}"
    do = f"add aggregate={'stack' if said.stacked else 'mean'}"
    require(gives.stacks == said.stacked, "aggregate", must, type(aggregate).__name__, do)


def require_mean(channel: Channel, aggregate: Aggregate) -> None:
    """Raise InputError when a layer's memory at the server is a mean of what clients sent, and the rule is no mean."""
    for layer in channel.layers:
        if layer_traits(layer.middleware).receives and not rule_traits(aggregate).linear:
            raise InputError(
                f"aggregate must be a mean beside channel={layer.name}, which makes the server remember a mean of all "
                f"clients' messages, got {type(aggregate).__name__}, which does not declare "
                "traits = RuleTraits(linear=True); use aggregate=mean, or a feedback without memory at the server: ef14"
            )


def require_classes(name: str, data: Dataset, models: Sequence[nn.Module]) -> None:
    """Raise InputError unless every model has an output for each class of a classification task."""
    require(data.task == "classification", "data", f"have classes for {name}", f"a {data.task} task")
    with torch.no_grad():
        fewest = min(int(model(zero_sample(model, data.input_shape)).shape[-1]) for model in models)
    must = f"have an output for each of the {data.outputs} classes for {name}"
    require(fewest == data.outputs, "model", must, fewest, "the logit of class 1 alone does not do: use model=mlp")


def require_samples(data: Dataset, population: Population) -> None:
    """Raise InputError unless there is something to train every client on, and something to evaluate on."""
    if empty := [i for i, rows in enumerate(population.train) if not len(rows)]:
        raise InputError(f"partition must give every client a training sample, got none for client {empty[0]}")
    require(data.test is None or len(data.test) > 0, "data.test", "hold samples, or be None", 0)


def require_everyone(algorithm: Any, schedule: Schedule, n: int, rounds: int, seed: int) -> None:
    """Raise InputError when the algorithm needs all clients in every round and the schedule does not bring them."""
    if traits_of(algorithm).everyone:
        everyone = all(len(schedule.clients(t, n, seed)) == n for t in range(rounds))
        must = f"let all {n} clients take part in every round for {name_of(algorithm)}"
        require(everyone, "schedule", must, schedule, "add schedule=all")


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


def is_peers(algorithm: Any) -> bool:
    """Whether clients of this algorithm are peers, who talk to each other and to no server."""
    return traits_of(algorithm).role != "server"


def require_network(
    algorithm: Any,
    topology: Topology | None,
    schedule: Schedule,
    channel: Channel,
    downlink: Channel,
    privacy: object,
) -> None:
    """Raise InputError unless there is a graph for peers, and none for clients of a server."""
    name = name_of(algorithm)
    virtual = isinstance(schedule, Events)
    behind = traits_of(algorithm).asynchronous
    must = f"be async for {name}, whose server does not wait" if behind else f"be one of rounds for {name}, such as all"
    require(isinstance(schedule, Asynchronous) == behind, "schedule", must, schedule)
    if not is_peers(algorithm):
        must = f"be none for {name}, whose clients talk to a server"
        require(topology is None, "topology", must, topology, "leave it out, or choose a decentralized algorithm")
        must = f"be one of rounds for {name}, such as all"
        require(not virtual, "schedule", must, schedule)
        require(not behind or not downlink, "downlink", f"be [] for {name}: each client hears another model", downlink)
        return
    require(topology is not None, "topology", f"be a graph for {name}, whose peers gossip", None, "add topology=ring")
    events = traits_of(algorithm).role == "events"
    must = f"be events for {name}, whose peers act at times of their own" if events else must
    require(virtual == events, "schedule", must, schedule)
    require(not (events and channel), "channel", f"be [] for {name}: events have no channel", channel)
    require(
        not downlink, "downlink", f"be [] for {name}, which has no server; channel=[...] is between peers", downlink
    )
    require(privacy is None, "privacy", f"be none for {name}: the mechanisms need clients of a server", privacy)


def require_mixing(algorithm: Any, mixing: Mixing) -> None:
    """Raise InputError unless the algorithm can gossip with this W."""
    name = name_of(algorithm)
    rows = traits_of(algorithm).mixes == "rows"
    if not (mixing.row_stochastic if rows else mixing.column_stochastic):
        other = "topology.weights=metropolis" if rows else "topology.weights=push_sum"
        more = ", or algorithm=sgp, which needs no such rows" if rows else ""
        must = f"give {'rows' if rows else 'columns'} that sum to 1 for {name}"
        raise InputError(f"topology.weights must {must}, got others; use {other}{more}")
    if traits_of(algorithm).static and not mixing.static:
        raise InputError(
            f"topology must not change with the round for {name}, which is made for one graph; "
            "choose another topology, or topology.fresh=false"
        )
