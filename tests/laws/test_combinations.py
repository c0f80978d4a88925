"""Any two layers, and any algorithm with any layer, run three rounds or are refused in one line before anything starts.

Three rounds, because what clients are to know of earlier broadcasts begins in the third one of some methods.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from fedsim import Engine, Evaluate, Local
from fedsim.assembly.assemble import assemble
from fedsim.assembly.nodes import build_channel
from fedsim.assembly.parts import Parts
from fedsim.channel.channel import Channel, noises
from fedsim.channel.onion import Layer
from fedsim.data import Dataset, Split
from fedsim.errors import InputError
from fedsim.ground.tree import leaves
from fedsim.models import linear_zero, mlp
from fedsim.partition import Iid
from fedsim.schedule import Uniform
from fedsim.traits.declared import traits_of
from tests.laws import test_catalogue as algorithms
from tests.laws.test_catalogue import ALGORITHMS, DUAL, PEERS
from tests.laws.test_channel_catalogue import INSIDE, LAYERS, node

ROUNDS = 3
NONE = Channel()
RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(24, 6)).astype(np.float32)
CLASSES = Dataset("rows", Split(X, np.arange(24) % 4), Split(X[:8], np.arange(8) % 4), "classification", 4)
SQUARES = Dataset("rows", Split(X, X @ np.ones(6, np.float32) + 1), None, "least_squares", 1)


def small(input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    """59 parameters, of which two matrices are thin enough for factors of rank 1."""
    return mlp(input_shape, outputs, (5,))


@cache
def layer(name: str) -> Layer:
    """As shipped; sparsifiers keep more than one entry."""
    loaded = node(name)
    if "ratio" in loaded[name]:
        loaded[name]["ratio"] = 0.3
    made: Layer = build_channel(loaded, "channel").layers[0]
    return made


def channel(*names: str, encode: bool = False) -> Channel:
    return Channel(tuple(layer(name) for name in names), encode)


class Came(NamedTuple):
    """What three rounds came to."""

    digest: str
    bytes: dict[str, float]


def one_line(refused: InputError) -> str:
    text = str(refused)
    assert text
    assert "\n" not in text
    return text


@cache
def parts(name: str) -> tuple[Any, ...]:
    """Algorithm, schedule, server rule and graph."""
    rule, schedule = algorithms.working(name), algorithms.cohorts(name)
    rule = replace(rule, rank=1) if name == "powersgd" else rule
    schedule = Uniform(cohort=2) if isinstance(schedule, Uniform) else schedule
    return rule, schedule, algorithms.aggregate(name), algorithms.graph(name)


def came(name: str, up: Channel, down: Channel = NONE) -> Came | str:
    """The outcome of a run, or the one line that refuses it; any other error is the test's."""
    rule, schedule, aggregate, graph = parts(name)
    data = SQUARES if name in DUAL else CLASSES
    try:
        given = Parts(
            rule,
            data,
            partition=Iid(clients=3),
            model=linear_zero if name in DUAL else small,
            rounds=ROUNDS,
            schedule=schedule,
            local=Local(steps=1, batch_size=4),
            aggregate=aggregate,
            topology=graph,
            channel=up,
            downlink=down,
            engine=Engine(backend="serial", jobs=1),
            seed=1,
        )
        assembled = assemble(given, data)
    except InputError as refused:
        return one_line(refused)
    run = assembled.begin(assembled.start(), Evaluate(every=ROUNDS))
    records = [run.step() for _ in range(ROUNDS)]
    for record in records:
        assert all(np.isfinite(value) for value in record.values())
        for tag in {"comm/uplink_bytes", "comm/downlink_bytes", "comm/edge_bytes"} & record.keys():
            assert record[tag] > 0 or name == "standalone"  # whose clients send and hear nothing
    assert all(torch.isfinite(leaf).all() for leaf in leaves(run.server))
    return Came(run.digest(), {tag: value for tag, value in records[-1].items() if tag.startswith("comm/")})


def on_both_links(name: str, names: tuple[str, ...]) -> list[Came | str]:
    """Uplink and downlink at once where that runs; else each alone."""
    both = channel(*names)
    if name not in PEERS and isinstance(found := came(name, both, both), Came):
        return [found]
    return [came(name, both), came(name, NONE, both)]


@pytest.mark.parametrize("outer", LAYERS)
def test_any_two_layers_run_or_are_refused(outer: str) -> None:
    """And as real bytes they give the same bits and sizes."""
    for inner in LAYERS:
        try:
            both, encoded = (channel(outer, inner, encode=encode) for encode in (False, True))
        except InputError as refused:  # the order of the two, or the same one twice
            one_line(refused)
            continue
        found = came("fedavg", both, both)
        assert found == came("fedavg", encoded, encoded)
        if isinstance(found, str):
            assert isinstance(came("fedavg", both), str) or isinstance(came("fedavg", NONE, both), str)


@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_any_algorithm_with_any_layer_runs_or_is_refused(name: str, whole: bool) -> None:
    """With every second layer, the others with the next algorithm; with every one in the slow suite: 1,500 runs."""
    layers = LAYERS if whole else LAYERS[ALGORITHMS.index(name) % 2 :: 2]
    outcomes = [
        found for one in layers for found in on_both_links(name, (one, *([INSIDE[one]] if one in INSIDE else [])))
    ]
    events = traits_of(parts(name)[0]).role == "events"  # events have no channel
    assert any(isinstance(found, Came) for found in outcomes) != events


VECTORS = {
    "normal": torch.randn(59, generator=torch.Generator().manual_seed(1), dtype=torch.float64),
    "zeros": torch.zeros(59, dtype=torch.float64),
    "one": torch.tensor([-0.7], dtype=torch.float64),
    "large": 6e4 * torch.randn(59, generator=torch.Generator().manual_seed(2), dtype=torch.float64),
    "tiny": 1e-9 * torch.randn(59, generator=torch.Generator().manual_seed(3), dtype=torch.float64),
}


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("outer", LAYERS)
def test_any_two_layers_send_numbers_of_any_size_and_precision(outer: str, dtype: torch.dtype) -> None:
    """Of the dtype that came in, finite, zero for zero, with the same bits as real bytes, two messages on a link."""
    for inner in LAYERS:
        try:
            channels = [channel(outer, inner, encode=encode) for encode in (False, True)]
        except InputError:
            continue
        for kind, vector in VECTORS.items():
            v = vector.clamp(-6e4, 6e4).to(dtype)
            links = [one.init({"v": v}) for one in channels]
            for index in range(2):
                sent = []
                for i, one in enumerate(channels):
                    try:
                        got, links[i], size = one.send(
                            {"v": v}, links[i], noises(0, "uplink", index, torch.tensor(3)), (50, 9)
                        )
                    except InputError:  # DIANA's need of an unbiased compressor
                        assert outer == "diana"
                        break
                    sent.append((got["v"], int(size)))
                if not sent:
                    break
                (counted, size), (decoded, length) = sent
                assert counted.dtype == dtype
                assert counted.isfinite().all(), (inner, kind)
                assert torch.equal(counted, decoded), (inner, kind)
                assert 0 < size == length
                assert kind != "zeros" or not counted.any()
