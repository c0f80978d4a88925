"""From the parts of a run to what its workers need: model, samples in client order, execution choices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.aggregate import Aggregate
from fedsim.algorithms.kit.around import name_of
from fedsim.algorithms.kit.protocols import PeerAlgorithm, ServerAlgorithm
from fedsim.assembly.checks import is_peers, require_classes, require_fit, require_mean, require_rule, require_samples
from fedsim.assembly.choose import choose
from fedsim.assembly.known import require_known
from fedsim.assembly.prepared import Prepared
from fedsim.assembly.uses import uses
from fedsim.channel.channel import Channel, noises
from fedsim.channel.order import check_fields
from fedsim.data.batches import Samples, as_tensor
from fedsim.data.dataset import Dataset, Split
from fedsim.errors import InputError, require
from fedsim.ground import addresses
from fedsim.ground.layout import Layout
from fedsim.ground.tree import tensors
from fedsim.kernels.kernel import Kernel
from fedsim.local import Local
from fedsim.models import Factory, build
from fedsim.partition import Population
from fedsim.pool.begun import Begun
from fedsim.pool.engine import Engine
from fedsim.pool.local_part import LocalPart
from fedsim.pool.rehearsal import broadcasts, messages, offers
from fedsim.pool.worker import Setup
from fedsim.runs.events import Graphs
from fedsim.runs.start import Memory
from fedsim.topology import Topology
from fedsim.traits.declared import traits_of
from fedsim.types import State


def prepare(
    algorithm: ServerAlgorithm[Any, Any] | PeerAlgorithm[Any],
    data: Dataset,
    population: Population,
    factories: Sequence[Factory | nn.Module],
    local: Local,
    aggregate: Aggregate,
    engine: Engine,
    seed: int,
    channel: Channel = Channel(),  # noqa: B008 - a frozen dataclass
    downlink: Channel = Channel(),  # noqa: B008
    rounds: int = 1,
    topology: Topology | None = None,
    graphs: Graphs | None = None,
) -> Prepared:
    """Everything a run needs before any worker exists; raises InputError for what cannot be run.

    Client i has the architecture of ``factories[i mod len(factories)]``.
    """
    require_rule(algorithm, aggregate)
    require_mean(channel, aggregate)
    require_samples(data, population)
    said, peers = traits_of(algorithm), is_peers(algorithm)
    if peers:
        one = f"be one architecture for {type(algorithm).__name__}, whose peers mix whole models"
        require(len(factories) == 1, "model", one, len(factories))
    worked: Any = algorithm
    if peers or said.asynchronous:
        worked = LocalPart(algorithm) if peers else Begun(algorithm)
    require(len(factories) > 0, "model", "be one or more architectures", "none")
    models = _built(data, factories, seed)
    layouts = [Layout.of(model) for model in models]
    if said.classes:
        require_classes(type(algorithm).__name__, data, models)
    if "own" in said.hooks and not any(len(rows) for rows in population.test or population.train):
        raise InputError("partition must give some client a test sample, for clients are tested on their own, got none")
    dtype = getattr(torch, engine.dtype)
    x0s = tuple(layout.flatten(model, dtype) for layout, model in zip(layouts, models, strict=True))
    if data.x0 is not None:
        d = len(x0s[0])
        require(len(x0s) == 1 and data.x0.shape == (d,), "data.x0", f"have the model's {d} parameters", data.x0.shape)
        x0s = (_cast(torch.from_numpy(data.x0), dtype, "data.x0"),)
    x0 = _shared(worked, layouts, x0s)
    tensors(worked.init_server(x0), "init_server")
    kept = tuple(_kept(worked, layout, x) for layout, x in zip(layouts, x0s, strict=True))
    states = tuple(worked.init_client(own) for own in kept)
    for state in states:
        tensors(state, "init_client")
    train = _samples(data, data.train, population.train, dtype, augmented=True)
    test = train if data.test is None else _samples(data, data.test, population.test, dtype, augmented=False)
    rough: list[Kernel] = ["loop"] * len(models)  # what they really are needs the rest to be known
    setup = Setup(
        worked,
        tuple(model.to(dtype) for model in models),
        data.task,
        train,
        test,
        local,
        aggregate,
        Channel() if peers else channel,
        downlink,
        tuple(rough),
        (True,) * len(models),
        tuple(rough),
        dtype,
        engine.device,
        engine.threads,
        seed,
    )
    for name, samples in (("train", setup.train), ("test", setup.test)):
        require_fit(setup.models, data.task, name, samples, dtype)
    asked = uses(setup, states, x0, rounds)
    chosen = [choose(setup, k, x0s[k], data.input_shape, engine, asked[k]) for k in range(len(models))]
    setup = replace(
        setup,
        kernels=tuple(one.kernel for one in chosen),
        by_layer=tuple(one.by_layer for one in chosen),
        predictions=tuple(one.prediction for one in chosen),
    )
    parameters = tuple(layout.d for layout in layouts)
    links: list[State] = [{}] * len(states)
    memory = Memory({}, {}, {})
    if peers:
        memory = _ends(setup, channel, states[0], layouts[0], rounds)
    elif channel or downlink:
        links, memory = _memories(setup, states, x0, layouts, rounds, len(population))
    rows = tuple(zip(states, links, strict=True))
    blocks, why = tuple(one.block for one in chosen), tuple(one.why for one in chosen)
    notes = tuple(one.note for one in chosen if one.note)
    return Prepared(setup, rows, memory, x0, parameters, blocks, why, notes, channel, topology, graphs)


def _built(data: Dataset, factories: Sequence[Factory | nn.Module], seed: int) -> tuple[nn.Module, ...]:
    """The models, as they start."""
    tokens = data.train.x.dtype == np.int64
    return tuple(build(factory, data.input_shape, data.outputs, {}, seed, tokens=tokens) for factory in factories)


def length_of(data: Dataset, factories: Sequence[Factory | nn.Module], seed: int) -> int | None:
    """d of the one model that all clients have, or None where they have several."""
    return Layout.of(_built(data, factories, seed)[0]).d if len(factories) == 1 else None


def _ends(setup: Setup, channel: Channel, state: State, layout: Layout, rounds: int) -> Memory:
    """What the two ends of a peer's link remember before its first message, which is rehearsed."""
    sample = offers(setup, state, rounds)
    check_fields("channel", channel.layers, set(sample))
    mine, theirs = channel.init(sample), channel.init_server(sample)
    if channel:
        noise = noises(setup.seed, addresses.REHEARSAL, 0, torch.zeros((), dtype=torch.int64))
        arrived, *_ = channel.send(sample, mine, noise, tuple(layout.sizes))
        channel.receive(arrived, theirs, 1.0, tuple(layout.sizes))
    return Memory(mine, {}, theirs)


def _memories(
    setup: Setup, states: tuple[State, ...], x0: Any, layouts: list[Layout], rounds: int, population: int
) -> tuple[list[State], Memory]:
    """What links remember before their first message, for clients of each architecture and for the far ends.

    The messages are rehearsed, so that an impossible layer says so now.
    """
    channel, downlink = setup.uplink, setup.downlink
    noise = noises(setup.seed, addresses.REHEARSAL, 0, torch.zeros((), dtype=torch.int64))
    samples = [messages(setup, number, state, x0, rounds) for number, state in enumerate(states)] if channel else []
    links = [channel.init(sample) for sample in samples] or [{}] * len(states)
    later = traits_of(setup.algorithm).compresses  # after a warm-up, perhaps beyond the last round
    check_fields("channel", channel.layers, {name for sample in samples for name in sample}, later)
    for sample, link, layout in zip(samples, links, layouts, strict=False):  # an impossible layer says so now
        channel.send(sample, link, noise, tuple(layout.sizes))
    far = channel.init_server(samples[0]) if samples else {}
    down: State = {}
    heard: State = {}
    if downlink:
        sample = broadcasts(setup.algorithm, x0, population, rounds)
        check_fields("downlink", downlink.layers, sample, later)
        down, heard = downlink.init(sample), downlink.init_server(sample)
        downlink.send(sample, down, noise, tuple(layouts[0].sizes))
        require_known(setup, states[0], x0, rounds, down, heard)
    return links, Memory(far, down, heard)


def _shared(algorithm: Any, layouts: list[Layout], x0s: tuple[Tensor, ...]) -> Tensor | dict[str, Tensor]:
    """What the server starts from, as the algorithm's ``shares`` says."""
    name, shares = name_of(algorithm), traits_of(algorithm).shares
    if shares == "nothing":
        return x0s[0].new_empty(0)
    if shares == "common":
        number: int = algorithm.common
        must = f"be the number of one of the run's {len(x0s)} models, 0..{len(x0s) - 1}"
        require(0 <= number < len(x0s), "algorithm.common", must, number)
        return x0s[number]
    if shares in ("model", "parameters", "body"):
        must = (
            f"be one architecture for {name}, whose server averages {'bodies' if shares == 'body' else 'whole models'}"
        )
        require(len(x0s) == 1, "model", must, len(x0s), "choose another model, or algorithm=fedgh, lg_fedavg, fedproto")
    if shares == "model":
        return x0s[0]
    if shares == "parameters":
        return layouts[0].views(x0s[0])
    if not all(layout.head for layout in layouts):
        raise InputError(f"model must end with a linear layer named head for {name}; use one of fedsim's own models")
    heads = sorted({layout.head for layout in layouts if layout.head})
    must = f"have heads of one shape (outputs, features) for {name}, whose clients share it"
    require(shares == "body" or len(heads) == 1, "model", must, heads)
    body, head = layouts[0].split(x0s[0])
    return body if shares == "body" else head


def _kept(algorithm: Any, layout: Layout, x0: Tensor) -> Tensor | dict[str, Tensor]:
    """What a client starts from, as the algorithm's ``keeps`` says."""
    keeps = traits_of(algorithm).keeps
    if keeps == "model":
        return x0
    if keeps == "parameters":
        return layout.views(x0)
    body, head = layout.split(x0)
    return body if keeps == "body" else head


def _samples(
    data: Dataset, split: Split, owned: tuple[np.ndarray, ...], dtype: torch.dtype, *, augmented: bool
) -> Samples:
    """A split in client order, in the run's dtype; samples that nobody owns (test only) come last."""
    order = np.concatenate(owned) if owned else np.empty(0, dtype=np.int64)
    start = np.concatenate([[0], np.cumsum([len(rows) for rows in owned])]).astype(np.int64)
    if not augmented:
        order = np.concatenate([order, np.setdiff1d(np.arange(len(split)), order)])
    x = as_tensor(split.x).index_select(0, torch.from_numpy(order))  # memory of torch's is aligned as workers want it
    which = "train" if augmented else "test"
    x = _cast(x, dtype, f"data.{which}.x")  # here once, not in every worker
    _cast(as_tensor(split.y), dtype, f"data.{which}.y")
    return Samples(x.numpy(), split.y[order], start, data.mean, data.std, data.augment if augmented else None)


def _cast(values: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    """Floating-point numbers in the run's dtype, whole ones as they are; raises InputError where one is too large."""
    if not values.is_floating_point() or values.dtype == dtype:
        return values
    done = values.to(dtype)
    fits = dtype.itemsize >= values.dtype.itemsize or bool(torch.isfinite(done).all())
    most = torch.finfo(dtype).max
    require(fits, name, f"lie within {most:.3g} for engine.dtype={str(dtype).removeprefix('torch.')}", "larger numbers")
    return done
