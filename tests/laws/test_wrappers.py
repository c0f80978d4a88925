"""Over the whole catalogue: a wrapper whose own part does nothing is the method inside it, in numbers and in refusals.

Wrappers are MESA without weight (lam = 0), the relaxed start that goes nowhere (beta = 0), the privacy mechanisms
without noise and with a bound that nothing reaches, and a layer of the channel that changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedsim import Engine, Local, Mean, Result, simulate
from fedsim.aggregate import Stack
from fedsim.algorithms.mesa import Mesa
from fedsim.algorithms.relaxed import Relaxed
from fedsim.assembly.assemble import assemble
from fedsim.assembly.parts import Parts
from fedsim.channel.base import Bytes, Noise, Send
from fedsim.channel.channel import Channel
from fedsim.channel.onion import Layer
from fedsim.channel.randk import RandK
from fedsim.channel.topk import TopK
from fedsim.data import Dataset, Split
from fedsim.errors import InputError
from fedsim.ground.tree import leaves
from fedsim.models import mlp
from fedsim.partition import Iid
from fedsim.privacy.adaptive import AdaptiveNoise
from fedsim.privacy.banded import BandedNoise
from fedsim.privacy.central import CentralNoise
from fedsim.privacy.config import Own, factor_of
from fedsim.privacy.discrete import DiscreteNoise
from fedsim.privacy.local import LocalNoise
from fedsim.schedule import All, Uniform
from fedsim.traits import LayerTraits, Traits
from fedsim.traits.declared import traits_of
from tests.laws.test_catalogue import SERVERS, working

N, ROUNDS, VAST = 4, 2, 1e30


def data(task: str = "classification") -> Dataset:
    random = np.random.default_rng(1)
    x = random.normal(size=(48, 3)).astype(np.float32)
    y = random.integers(3, size=48) if task == "classification" else random.normal(size=48).astype(np.float32)
    return Dataset("rows", Split(x, y), None, task, 3 if task == "classification" else 1)  # type: ignore[arg-type]


def model(input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    return mlp(input_shape, outputs, hidden=(4,))


WRAPPERS: dict[str, Callable[[Any], Any]] = {
    "mesa": lambda base: Mesa(base, lam=0.0, start=0),
    "relaxed": lambda base: Relaxed(base, beta=0.0),
    "central": lambda base: CentralNoise(base, VAST, 0.0, N),
    "adaptive": lambda base: AdaptiveNoise(base, VAST, 0.0, N),
    "local": lambda base: LocalNoise(base, VAST, 0.0),
    "banded": lambda base: BandedNoise(base, VAST, 0.0, N, factor_of(ROUNDS, 1), 1),
}
DIFF2 = ("diff2", "diff2_bvr", "dp_sgd", "dp_srm", "private_spiderboost")
OWN = ("fedavg_ft", "fedbn", "fedgh", "fedper", "fedproto", "fedrep", "fd", "fml", "lg_fedavg", "standalone")
WAITING = ("fedasync", "fedbuff")
NOT_INSIDE = {  # what a wrapper is not made for, and says so when it is built
    "mesa": {*OWN, *WAITING, *DIFF2, "mesa", "powersgd"},
    "relaxed": {*OWN, *WAITING, "diff2", "diff2_bvr", "dp_srm", "private_spiderboost", "relaxed", "powersgd"}
    | {"adam", "ec_sgd_diana", "fednova", "onebit_adam", "sgd"},
} | {name: {*OWN, *WAITING, *DIFF2} for name in ("central", "adaptive", "local", "banded")}
SEVERAL_FIELDS = {"ec_sgd_diana", "fedgamma", "fedsmoo", "mime_lite", "scaffold"}
"""Methods whose messages are not one vector, which banded noise is for."""


@dataclass(frozen=True)
class Identity:
    """A layer that sends what it gets."""

    traits: ClassVar[LayerTraits] = LayerTraits(linear=True, lipschitz=True, nonexpansive=True)

    def init(self, v: Tensor) -> tuple[()]:
        return ()

    def __call__(self, v: Tensor, link: tuple[()], noise: Noise, send: Send) -> tuple[Tensor, tuple[()], Bytes]:
        got, _, size = send(v)
        return got, link, size


def parts_of(algorithm: Any, **other: Any) -> dict[str, Any]:
    """Of a run; a method that learns what arrived gets compressors, or there would be nothing to learn."""
    layers = (Layer("topk", TopK(ratio=0.2), ("step",)), Layer("randk", RandK(ratio=0.5), ("shift",)))
    chosen: dict[str, Any] = {
        "data": data(),
        "partition": Iid(clients=N),
        "model": model,
        "rounds": ROUNDS,
        "schedule": All(),
        "local": Local(steps=2, batch_size=4),
        "aggregate": Mean("uniform"),
        "channel": Channel(layers if "settle" in traits_of(algorithm).hooks else ()),
        "engine": Engine(backend="serial"),
        "seed": 3,
    }
    return chosen | other


def run(algorithm: Any, **other: Any) -> Result:
    return simulate(algorithm, **parts_of(algorithm, **other))


@cache
def plain(name: str) -> Result:
    return run(working(name))


def same(one: Result, other: Result) -> None:
    assert other.model is not None
    assert one.model is not None
    for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(a, b)
    for before, after in zip(one.metrics, other.metrics, strict=True):
        assert before.get("train/loss") == after.get("train/loss")


def grouped(name: str, *before: str) -> Any:
    """Tests of one method come to one worker, which keeps its plain run."""
    return pytest.param(*before, name, marks=pytest.mark.xdist_group(f"wrappers {name}"))


PAIRS = [grouped(name, wrapper) for wrapper in WRAPPERS for name in SERVERS]


@pytest.mark.parametrize(("wrapper", "name"), PAIRS)
def test_a_wrapper_that_does_nothing_is_the_method(wrapper: str, name: str) -> None:
    if name in NOT_INSIDE[wrapper]:
        with pytest.raises(InputError, match=r"^(base must|privacy must)"):
            WRAPPERS[wrapper](working(name))
        return
    wrapped = WRAPPERS[wrapper](working(name))
    if wrapper == "banded" and (name in SEVERAL_FIELDS or name == "powersgd"):
        with pytest.raises(InputError, match="whose messages are not one vector"):
            run(wrapped)
        return
    same(plain(name), found := run(wrapped))
    if wrapper != "adaptive":  # which sends its bound, and a bit of each client
        for tag in ("comm/uplink_bytes", "comm/downlink_bytes"):
            assert [m.get(tag) for m in plain(name).metrics] == [m.get(tag) for m in found.metrics]


@pytest.mark.parametrize("name", [grouped(name) for name in SERVERS if name not in (*WAITING, *OWN)])
def test_a_layer_that_does_nothing_is_no_layer(name: str) -> None:
    algorithm = working(name)
    if "settle" in traits_of(algorithm).hooks:
        bare, layered = run(algorithm, channel=Channel()), run(algorithm, channel=Channel((Layer("same", Identity()),)))
    else:
        bare, layered = plain(name), run(algorithm, channel=Channel((Layer("same", Identity()),)))
    same(bare, layered)
    assert len(leaves(bare.server)) == len(leaves(layered.server))


@pytest.mark.parametrize("wrapper", ["central", "adaptive", "local", "banded"])
def test_a_layer_that_does_nothing_is_no_layer_inside_a_mechanism(wrapper: str) -> None:
    algorithm = WRAPPERS[wrapper](working("fedavg"))
    same(run(algorithm), run(algorithm, channel=Channel((Layer("same", Identity()),))))


@pytest.mark.parametrize("name", ["diff2", "dp_srm", "private_spiderboost"])
def test_a_layer_that_does_nothing_is_accepted_in_a_private_run(name: str) -> None:
    layer = Channel((Layer("same", Identity()),))
    chosen = {"privacy": Own(delta=1e-5, noise_multiplier=1.0), "local": Local(steps=1, batch_size="full")}
    same(run(working(name), **chosen), run(working(name), channel=layer, downlink=layer, **chosen))


REFUSALS: dict[str, dict[str, Any]] = {
    "some of the clients": {"schedule": Uniform(2)},
    "weights by examples": {"aggregate": Mean("examples")},
    "a stack": {"aggregate": Stack()},
    "a regression": {"data": data("regression")},
}


def refusal(algorithm: Any, **other: Any) -> str | None:
    parts = parts_of(algorithm, **other)
    try:
        assemble(Parts(algorithm, **parts), parts["data"])
    except InputError as error:
        return str(error)
    return None


@pytest.mark.parametrize("what", REFUSALS)
@pytest.mark.parametrize("wrapper", ["mesa", "relaxed"])
def test_a_wrapper_that_does_nothing_refuses_what_the_method_refuses(wrapper: str, what: str) -> None:
    for name in SERVERS:
        if name not in NOT_INSIDE[wrapper]:
            algorithm = working(name)
            base, other = refusal(algorithm, **REFUSALS[what]), refusal(WRAPPERS[wrapper](algorithm), **REFUSALS[what])
            assert (base is None) == (other is None), (name, base, other)
            if base is not None and other is not None:
                assert base.split(" for ")[0] == other.split(" for ")[0], name


def test_every_word_reaches_through_every_wrapper() -> None:
    """But for those that a wrapper states itself; a wrapper of wrappers too."""
    mechanism = {"uniform", "noise", "own_sampling", "by_cohort", "integers", "hooks"}
    for name in SERVERS:
        inner = working(name)
        for wrapper, make in WRAPPERS.items():
            if name in NOT_INSIDE[wrapper]:
                continue
            said, around = traits_of(inner), traits_of(make(inner))
            for word in Traits.__dataclass_fields__:
                if word in mechanism and wrapper not in ("mesa", "relaxed"):
                    continue
                assert getattr(around, word) == getattr(said, word), (name, wrapper, word)
            assert set(said.hooks) <= set(around.hooks)


def test_integers_do_not_settle() -> None:
    with pytest.raises(InputError, match="reads what arrived of its numbers, not of integers"):
        DiscreteNoise(working("ec_sgd_diana"), 1.0, 1.0, N, 30)
