"""What cannot be run together, said before anything is spawned."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.aggregate import Aggregate
from fedsim.algorithms.kit.around import name_of
from fedsim.channel.channel import Channel
from fedsim.data.batches import Feed, Samples
from fedsim.data.dataset import Dataset, Task
from fedsim.errors import InputError, require
from fedsim.ground.own_code import FAILURES, built_in, said
from fedsim.models import twin, zero_sample
from fedsim.partition import Partition, Population
from fedsim.schedule import Events, Schedule
from fedsim.schedule.cohorts import require_cohort
from fedsim.schedule.delays import Asynchronous
from fedsim.topology import Mixing, Topology
from fedsim.traits.declared import layer_traits, rule_traits, traits_of

ROUNDS_AHEAD = 1000
"""Rounds whose cohorts are looked at before the start."""


def require_weights(aggregate: Aggregate) -> None:
    """Raise InputError unless a server rule says what clients weigh."""
    weights = getattr(aggregate, "weights", None)
    must = "be uniform or examples, which every server rule says"
    require(weights in ("uniform", "examples"), "aggregate.weights", must, weights)


def require_rule(algorithm: Any, aggregate: Aggregate) -> None:
    """Raise InputError unless the server rule gives the algorithm what it wants: equal weights, a mean or a stack."""
    require_weights(aggregate)
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
    rule = "fedsim.privacy.discrete.ModularSum, which privacy=discrete_gaussian chooses on the command line"
    do = f"use {rule}" if said.integers else "add aggregate=mean"
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
        fewest = min(int(model(zero_sample(model, data.input_shape)).shape[-1]) for model in map(twin, models))
    must = f"have an output for each of the {data.outputs} classes for {name}"
    require(fewest == data.outputs, "model", must, fewest, "the logit of class 1 alone does not do: use model=mlp")


def require_samples(data: Dataset, population: Population) -> None:
    """Raise InputError unless there is something to train every client on, and something to evaluate on."""
    if empty := [i for i, rows in enumerate(population.train) if not len(rows)]:
        raise InputError(f"partition must give every client a training sample, got none for client {empty[0]}")
    require(data.test is None or len(data.test) > 0, "data.test", "hold samples, or be None", 0)


def require_population(population: Population, data: Dataset, partition: Partition) -> None:
    """Raise InputError unless a partition gave its clients samples that exist, in training and in testing.

    A user's own gives none twice to one client; two clients may hold the same sample, as some rules mean it.
    """
    where, own = f"partition: {type(partition).__name__}.split", not built_in(partition)
    require(isinstance(population, Population), where, "return a Population", type(population).__name__)
    require(len(population) > 0, where, "return one or more clients", 0)
    counts = {len(population)} if data.test is not None else set()
    must = f"give each of the {len(population)} clients a test split, or none a single one (test=())"
    require(len(population.test) in counts | {0}, where, must, len(population.test))
    for name, split, owned in (("train", data.train, population.train), ("test", data.test, population.test)):
        most = 0 if split is None else len(split) - 1
        for client, rows in enumerate(owned):
            if len(rows) and (rows.min() < 0 or rows.max() > most):
                got = f"{rows.min()}..{rows.max()} for client {client}"
                raise InputError(f"{where} must give samples 0..{most} of data.{name}, got {got}")
            if own and len(np.unique(rows)) < len(rows):
                twice = int(min(row for row, times in Counter(rows.tolist()).items() if times > 1))
                must = f"give a client each sample of data.{name} once"
                raise InputError(f"{where} must {must}, got sample {twice} more than once for client {client}")


def require_cohorts(schedule: Schedule, n: int, rounds: int, seed: int) -> None:
    """Raise InputError unless a user's own schedule names clients in every round, and brings somebody in one of them.

    Before the start this looks at the first ``ROUNDS_AHEAD`` rounds; later ones are looked at as they come.
    """
    if built_in(schedule):
        return
    rule, somebody = type(schedule).__name__, False
    for index in range(min(rounds, ROUNDS_AHEAD)):
        clients = schedule.clients(index, n, seed)
        require_cohort(clients, n, rule, index)
        somebody = somebody or len(clients) > 0
    must = f"bring a client in one of the first {min(rounds, ROUNDS_AHEAD)} rounds"
    require(somebody, f"schedule: {rule}.clients", must, "no client in any of them")


def require_fit(models: Sequence[nn.Module], task: Task, which: str, samples: Samples, dtype: torch.dtype) -> None:
    """Raise InputError unless every model takes real samples as workers feed them, and has an output for each target.

    Of tokens those with the smallest and the largest number are tried too: an embedding may have no row for them.
    """
    rows = {0}
    if samples.x.dtype == np.int64:
        each = samples.x[0].size
        rows |= {int(samples.x.argmin()) // each, int(samples.x.argmax()) // each}
    some = sorted(rows)
    for model in models:
        device = next(model.parameters()).device
        feed = Feed(replace(samples, x=samples.x[some], y=samples.y[some]), device, dtype)
        x, y = feed.take(torch.arange(len(some), device=device), None)
        name = f"model {type(model).__name__}"
        try:
            with torch.no_grad():
                out: Any = twin(model)(x)  # a copy: what forward keeps is no part of the run
        except FAILURES as error:  # user code: any type
            what = f"{samples.x.dtype} samples {some} of data.{which} of shape {list(x.shape[1:])}"
            do = "; whole numbers are tokens: for features pass x.astype('float32')" if x.dtype == torch.int64 else ""
            raise InputError(f"{name} fails on {what}: {said(error)}{do}") from error
        got = list(out.shape) if isinstance(out, Tensor) else type(out).__name__
        shape = ", ".join(map(str, (*y.shape, "k")))
        must = f"have outputs [{shape}] for {len(some)} sample{'s'[: len(some) > 1]} of the {task} task"
        require(isinstance(out, Tensor) and out.shape[:-1] == y.shape, name, must, got)


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


def require_matrix(mixing: Mixing, n: int, rule: str) -> None:
    """Raise InputError unless a topology returned a W of the n peers."""
    where = f"topology: {rule}.mixing"
    require(isinstance(mixing, Mixing), where, "return a fedsim.topology.Mixing", type(mixing).__name__)
    require(mixing.w.shape == (n, n), where, f"return a W of the {n} peers, [{n}, {n}]", list(mixing.w.shape))
