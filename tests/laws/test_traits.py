"""What a class says of itself is checked: unknown words, wrong values, words that are not true."""

from __future__ import annotations

import sys
from dataclasses import dataclass, fields
from functools import partialmethod
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from fedsim import Engine, Local, Mean, simulate
from fedsim.aggregate import Stack
from fedsim.algorithms.diff2 import Diff2
from fedsim.algorithms.ec_sgd_diana import ECSGDDiana
from fedsim.algorithms.fedavg import FedAvg
from fedsim.assembly.configuration import build_run
from fedsim.assembly.nodes import build_channel
from fedsim.channel.channel import Channel, noises
from fedsim.channel.onion import Layer, Onion
from fedsim.channel.topk import TopK
from fedsim.errors import InputError
from fedsim.models import linear
from fedsim.partition import Iid
from fedsim.privacy.discrete import ModularSum
from fedsim.traits import HOOKS, METHODS, LayerTraits, RuleTraits, Traits
from fedsim.traits.declared import layer_traits, rule_traits, traits_of
from tests.laws.test_catalogue import ALGORITHMS, algorithm
from tests.laws.test_channel_catalogue import LAYERS, channel, node
from tests.laws.test_wrappers import data

HOMES = (Traits, RuleTraits, LayerTraits)


@pytest.mark.parametrize("home", HOMES)
def test_wrong_values_are_refused(home: type) -> None:
    for f in fields(home):
        for wrong in (1 if f.name != "compresses_from" else -1, None, "nonsense", 0.5, {"settel"}):
            with pytest.raises(InputError, match=f"{home.__name__}: {f.name} must be "):
                home(**{f.name: wrong})


@pytest.mark.parametrize("home", HOMES)
def test_unknown_words_are_refused_by_the_value(home: type) -> None:
    with pytest.raises(TypeError, match="unifrom"):
        home(unifrom=True)


def test_words_that_contradict_each_other_are_refused() -> None:
    for make in (
        lambda: Traits(stacked=True, integers=True),
        lambda: Traits(noise="server"),
        lambda: Traits(hooks=("releases",)),
        lambda: RuleTraits(linear=True, stacks=True),
        lambda: LayerTraits(lipschitz=True),
        lambda: LayerTraits(receives=True),
        lambda: LayerTraits(unbiased=True),
    ):
        with pytest.raises(InputError):
            make()


def test_misspelt_words_are_refused_when_the_class_is_defined() -> None:
    with pytest.raises(InputError, match=r"unifrom.*write traits = Traits\(uniform=True\)"):

        class Word(FedAvg):
            unifrom: ClassVar[bool] = True

    with pytest.raises(InputError, match=r"uniform.*write traits = Traits\(uniform=True\)"):

        class OldWord(FedAvg):
            uniform = True

    with pytest.raises(InputError, match="settel is a method that nothing calls; write settle"):

        class Method(FedAvg):
            def settel(self, client: Any, sent: Any, arrived: Any, rnd: Any) -> Any:
                return client

    with pytest.raises(InputError, match="must have an annotation to change the hyper-parameter's default"):

        class Default(FedAvg):
            server_lr = 0.5

    with pytest.raises(InputError, match="must have what it declares as a hook, got no settle"):

        class Missing(FedAvg):
            traits = Traits(hooks=("settle",))

    with pytest.raises(InputError, match="must declare its hook own"):

        class Silent(FedAvg):
            traits = Traits()

            def own(self, obj: Any, client: Any, got: Any, rnd: Any) -> Any:
                return got["x"]


def test_own_helpers_and_constants_are_left_alone() -> None:
    class Mine(FedAvg):
        SCALE: ClassVar[bool] = True
        _flag = True

        def tune(self) -> float:
            return self.lr

        def rate(self, rnd: Any) -> float:
            return self.tune()

    assert traits_of(Mine(lr=0.1)) == FedAvg.traits


class _Bare:
    """A duck-typed algorithm: no base class that could check it."""

    def init_server(self, x0: Tensor) -> Any:
        return (x0,)

    def init_client(self, x0: Tensor) -> Any:
        return ()

    def broadcast(self, server: Any, rnd: Any) -> Any:
        return {"x": server[0]}

    def local(self, obj: Any, client: Any, got: Any, rnd: Any) -> Any:
        return {"update": 0 * got["x"]}, client

    def server(self, server: Any, received: Any, rnd: Any) -> Any:
        return server


class _Typo(_Bare):
    def settel(self, client: Any, sent: Any, arrived: Any, rnd: Any) -> Any:
        return client


class _Word(_Bare):
    evryone = True


class _Hook(_Bare):
    def settle(self, client: Any, sent: Any, arrived: Any, rnd: Any) -> Any:
        return client


class _Peer(_Bare):
    def mix(self, peer: Any, mixed: Any, rnd: Any) -> Any:
        return peer


class _Wrong(_Bare):
    traits: ClassVar[dict[str, bool]] = {"uniform": True}


@pytest.mark.parametrize(
    ("cls", "says"),
    [
        (_Typo, "write settle"),
        (_Word, r"Traits\(everyone=True\)"),
        (_Hook, r'hooks=\("settle",\)'),
        (_Peer, r"Traits\(role='peers'\)"),
        (_Wrong, "traits must be a fedsim.traits.Traits"),
    ],
)
def test_classes_without_a_base_are_checked_before_the_run(cls: type, says: str) -> None:
    with pytest.raises(InputError, match=says):
        simulate(
            cls(), data=data(), partition=Iid(clients=4), model=linear, rounds=1, engine=Engine(backend="serial"),
            aggregate=Mean("uniform"), local=Local(steps=1),
        )  # fmt: skip
    with pytest.raises(InputError, match="(?m)^algorithm: .*" + says):
        build_run({"algorithm": {"_target_": f"{__name__}.{cls.__name__}"}})


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_catalogue_says_what_is_true(name: str) -> None:
    """``traits_of`` compares with what the class has; here it is compared with what the protocol wants."""
    built = algorithm(name)
    said = traits_of(built)
    assert all(callable(getattr(built, method)) for method in METHODS[said.role])
    assert set(said.hooks) <= set(HOOKS)
    if said.shares == "model" and said.role == "server":
        assert hasattr(built.init_server(torch.zeros(12)), "x")


def test_rules_say_what_they_are() -> None:
    assert rule_traits(Mean()).linear
    assert rule_traits(Stack()).stacks
    assert rule_traits(ModularSum()).integers


def _sent(layers: tuple[Layer, ...], v: Tensor, seed: int) -> Tensor:
    onion = Onion("update", layers)
    got, _, _ = onion.send(v, onion.init(torch.zeros_like(v), "init"), noises(seed, "uplink", 0, torch.tensor(0)))
    return got


CODECS = [name for name in LAYERS if channel(name).layers and layer_traits(channel(name).layers[0].middleware).loses]


def variants(name: str) -> list[tuple[Layer, ...]]:
    """The layer as shipped, and in its other forms that say other things."""
    more: dict[str, list[dict[str, Any]]] = {
        "randk": [{"unbiased": True}, {"shared_seed": False}, {"k": 3}],
        "sign": [{"scale": "l2"}, {"bucket": 5}],
        "topk": [{"k": 1}],
    }
    others = [build_channel({name: node(name)[name] | options}, "channel").layers for options in more.get(name, [])]
    return [channel(name).layers, *others]


@pytest.mark.parametrize("name", CODECS)
def test_what_layers_say_of_vectors_is_so(name: str) -> None:
    """On vectors made to find a counterexample: spikes, near ties, tiny steps, flipped signs.

    The last bits are given away: 1e-9 of the norms in float64, where the layers' own arithmetic rounds at 1e-16.
    """
    random = np.random.default_rng(5)
    for layers in variants(name):
        said = layer_traits(layers[0].middleware)
        for trial in range(60):
            d = int(random.integers(1, 40))
            v = torch.from_numpy(random.normal(size=d) * 10.0 ** random.integers(-3, 4, size=d))
            w = v.clone()
            at = int(random.integers(d))
            w[at] = [v[at] + 1e-6, -v[at], v.abs().max() + 1e-6, 100.0][trial % 4]
            c_v, c_w = _sent(layers, v, trial), _sent(layers, w, trial)
            slack = 1e-9 * float(v.norm() + w.norm())
            if said.nonexpansive:
                assert c_v.norm() <= v.norm() + slack
            if said.lipschitz:
                assert (c_v - c_w).norm() <= (v - w).norm() + slack
            if said.entrywise:
                assert (c_v.abs() <= v.abs()).all()
            if said.linear:
                assert (_sent(layers, 2 * v - 3 * w, trial) - (2 * c_v - 3 * c_w)).norm() <= 10 * slack


@pytest.mark.parametrize("name", CODECS)
def test_layers_that_do_not_say_lipschitz_are_not(name: str) -> None:
    """A word withheld without a reason would refuse what is right: each has its counterexample."""
    for layers in variants(name):
        if layer_traits(layers[0].middleware).lipschitz:
            continue
        random = np.random.default_rng(6)
        worst = 0.0
        for trial in range(400):
            v = torch.from_numpy(random.normal(size=24))
            w = v.clone()
            w[int(random.integers(24))] += float(10.0 ** random.uniform(-6, 1)) * random.choice([-1, 1])
            moved = (_sent(layers, v, trial) - _sent(layers, w, trial)).norm() / (v - w).norm()
            worst = max(worst, float(moved))
        assert worst > 1.01, worst


def test_layers_must_say_what_they_are() -> None:
    @dataclass(frozen=True)
    class Quiet:
        def init(self, v: Tensor) -> tuple[()]:
            return ()

        def delta(self, d: int) -> float | None:
            return 0.5

        def omega(self, d: int) -> float | None:
            return None

    with pytest.raises(InputError, match=r"LayerTraits\(loses=True\), because it has methods delta and omega"):
        Channel((Layer("quiet", type("Quiet", (Quiet,), {"__call__": lambda *a: None})()),))
    with pytest.raises(InputError, match="ECSGDDiana is a class; give an object of it"):
        Channel((Layer("quiet", ECSGDDiana),))  # type: ignore[arg-type]


def test_documented(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every word stands in the tables of docs/traits.md, whose example runs."""
    text = (Path(__file__).parent.parent.parent / "docs/traits.md").read_text(encoding="utf-8")
    monkeypatch.setitem(sys.modules, "equal", ModuleType("equal"))
    example = vars(sys.modules["equal"])
    exec(text.split("```python\n")[1].split("```")[0], example)
    assert traits_of(example["Equal"](lr=0.1)).uniform
    for home in HOMES:
        for f in fields(home):
            assert f"`{f.name}`" in text, f.name
    for hook in HOOKS:
        assert f"`{hook}`" in text, hook


SLIPS: list[tuple[type, dict[str, Any], str]] = [
    (_Bare, {"trait": Traits(everyone=True)}, "its name must be traits"),
    (_Bare, {"TRAITS": Traits()}, "its name must be traits"),
    (_Bare, {"traits": None}, "must be a fedsim.traits.Traits, got None"),
    (_Bare, {"publics": ("steps",)}, r"Traits\(public="),
    (_Bare, {"compresses_form": 3}, r"Traits\(compresses_from=3\)"),
    (_Bare, {"unifrom": 1}, r"Traits\(uniform=1\)"),
    (_Bare, {"hooks": ("settle",)}, r"Traits\(hooks="),
    (_Bare, {"UNIFORM": True}, r"Traits\(uniform=True\)"),
    (_Bare, {"gossip_step": 3}, "must be declared where it is read"),
    (_Bare, {"settel": partialmethod(_Bare.local)}, "write settle"),
    (_Bare, {"onw": lambda self, *a: None}, "write own"),
    (FedAvg, {"servr_lr": 0.5}, "write server_lr: float = 0.5"),
    (FedAvg, {"Lr": 0.5}, "write lr: float = 0.5"),
    (FedAvg, {"__annotations__": {"everyone": "bool"}, "everyone": True}, r"Traits\(everyone=True\)"),
    (ECSGDDiana, {"settle": None}, "got no settle"),
]


@pytest.mark.parametrize(("base", "body", "says"), SLIPS, ids=[str(list(body)) for _, body, _ in SLIPS])
def test_slips_of_every_form_are_refused(base: type, body: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        traits_of(type("Slip", (base,), body)(**({} if base is _Bare else {"lr": 0.1})))


def test_what_is_set_on_the_object_is_refused() -> None:
    for name, value in (("everyone", True), ("settle", lambda *a: None)):
        mine = _Bare()
        setattr(mine, name, value)
        with pytest.raises(InputError, match="must be declared by the class"):
            traits_of(mine)


def test_a_subclass_that_changes_what_the_words_are_about_says_its_own() -> None:
    class Fivefold(Mean):
        def finish(self, sums: Any, total: float, dtype: torch.dtype) -> Any:
            return {name: 5 * value for name, value in super().finish(sums, total, dtype).items()}

    class Loud(TopK):
        def __call__(self, v: Tensor, link: Any, noise: Any, send: Any) -> Any:
            got, link, size = super().__call__(v, link, noise, send)
            return 100 * got, link, size

    class AlsoMean(Mean):
        pass

    with pytest.raises(InputError, match="must say its own traits, because it has its own finish"):
        rule_traits(Fivefold())
    with pytest.raises(InputError, match="must say its own traits, because it has its own __call__"):
        layer_traits(Loud(ratio=0.5))
    assert rule_traits(AlsoMean()).linear


def test_layerwise_is_said_by_one_class_alone() -> None:
    loud = type("Loud", (TopK,), {"traits": LayerTraits(layerwise=True)})
    with pytest.raises(InputError, match="must not say layerwise"):
        layer_traits(loud(ratio=0.5))


def test_words_that_need_a_hook_ask_for_it() -> None:
    for make in (
        lambda: Traits(asynchronous=True),
        lambda: Traits(shares="common"),
        lambda: Traits(compresses_from=-1),
        lambda: Traits(hooks=("settle", "settle")),
        lambda: Traits(in_full=("",)),
    ):
        with pytest.raises(InputError, match=r"^Traits: "):
            make()


@pytest.mark.parametrize("kept", ["receive", "init_server", "delta", "omega"])
def test_halves_of_a_pair_are_refused(kept: str) -> None:
    """The engine calls both or neither."""

    class Half:
        def init(self, v: Tensor) -> tuple[()]:
            return ()

        def __call__(self, v: Tensor, link: Any, noise: Any, send: Any) -> Any:
            return v, link, 0

    setattr(Half, kept, lambda self, *a: None)
    with pytest.raises(InputError, match=f"must have both of .*, or neither, got {kept} alone"):
        layer_traits(Half())


def test_a_private_method_that_is_changed_says_its_own_words() -> None:
    class Louder(Diff2):
        def local(self, obj: Any, client: Any, got: Any, rnd: Any) -> Any:
            return super().local(obj, client, got, rnd)

    class Renamed(Diff2):
        pass

    with pytest.raises(InputError, match="must say its own traits, because it has its own local"):
        traits_of(Louder(lr=0.1))
    assert traits_of(Renamed(lr=0.1)) == traits_of(Diff2(lr=0.1))
