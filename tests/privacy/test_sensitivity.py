"""The law: whatever one unit does, what is let out moves by no more than the noise in it is made for.

For every private method and every mechanism, behind every layer of channel and downlink that is accepted. Neighbours
are searched for: random draws, spikes, ties and turned signs, then hill climbing from the best. Searched are vectors
through the channel alone (``test_layers...``), clients through a mechanism and its server (``test_one_client...``), and
samples through the engine's own local work, channel, rule and server (``test_one_sample...``).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import cache
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from fedsim import Engine, Local, Mean
from fedsim.algorithms.diff2 import Diff2, Differences
from fedsim.algorithms.diff2_bvr import Diff2BVR
from fedsim.algorithms.dp_sgd import PrivateSGD
from fedsim.algorithms.dp_srm import DPSRM
from fedsim.algorithms.fedavg import FedAvg
from fedsim.algorithms.kit.recursive import RecursiveServer
from fedsim.algorithms.private_spiderboost import PrivateSpiderBoost
from fedsim.assembly.assemble import assemble
from fedsim.assembly.nodes import build_channel
from fedsim.assembly.parts import Parts
from fedsim.channel.channel import Channel, noises
from fedsim.channel.message import heard
from fedsim.channel.noise import Addressed
from fedsim.channel.onion import Layer
from fedsim.channel.randk import RandK
from fedsim.channel.sign import Sign
from fedsim.channel.topk import TopK
from fedsim.data import Dataset, Split
from fedsim.data.batches import Feed
from fedsim.data.losses import loss_of
from fedsim.errors import InputError
from fedsim.ground.tree import tree_map
from fedsim.kernels.oracle import ModelOracle
from fedsim.models import linear_zero
from fedsim.partition import Natural
from fedsim.pool.block import ClientSide
from fedsim.privacy.adaptive import AdaptiveNoise
from fedsim.privacy.banded import BandedNoise
from fedsim.privacy.central import CentralNoise
from fedsim.privacy.links import check_links
from fedsim.privacy.local import LocalNoise
from fedsim.privacy.matrix_mechanism import banded_factor
from fedsim.traits import Traits
from fedsim.traits.declared import traits_of
from fedsim.traits.releases import Drawn, Release
from fedsim.types import Owned, Round
from tests.laws.test_channel_catalogue import LAYERS, node

D = 8
LEEWAY = 1e-6  # of the claimed sensitivity: rounding of norms and products in float64 is far below
LONE = torch.zeros((), dtype=torch.int64)


def shipped(name: str) -> Layer:
    (layer,) = build_channel({**node(name), "encode": False}, "channel").layers
    return layer


def variants() -> dict[str, Layer]:
    """Every layer as shipped, and with the options on which its guarantees depend, strong enough for 8 entries."""
    found = {name: shipped(name) for name in LAYERS}
    more = {
        "topk": TopK(k=1),
        "topk_half": TopK(ratio=0.5),
        "randk": RandK(ratio=0.5),
        "randk_positions": RandK(ratio=0.3, shared_seed=False),
        "randk_unbiased": RandK(ratio=0.5, unbiased=True),
        "sign": Sign(),
        "sign_l2": Sign("l2"),
        "sign_bucket": Sign("l1", 3),
        "sign_l2_bucket": Sign("l2", 7),
    }
    return found | {name: Layer(name, middleware) for name, middleware in more.items()}


SINGLE = variants()


def stacks() -> Iterator[Channel]:
    """No layer, every layer alone, and every ordered pair that a channel takes."""
    yield Channel()
    for layers in [*((one,) for one in SINGLE.values()), *itertools.permutations(SINGLE.values(), 2)]:
        with suppress(InputError):  # an order that no channel takes
            yield Channel(layers)


def label(channel: Channel) -> str:
    return "+".join(layer.name for layer in channel.layers) or "none"


def accepted(algorithm: Any, channel: Channel, downlink: Channel = Channel(), unit: Any = "sample") -> bool:  # noqa: B008
    try:
        check_links(algorithm, channel, downlink, unit)
    except InputError as error:
        return "must not have" not in str(error) or "; use " not in str(error)  # else it lacks the reason or the remedy
    return True


def through(channel: Channel, v: Tensor, rounds: int = 1) -> Tensor:
    """What arrives of the last of so many equal messages v [d], of a model with parameters of 5 and 3 entries."""
    links = channel.init({"update": v})
    got = v
    for t in range(rounds):
        arrived, links, _ = channel.send({"update": v}, links, noises(0, "law", t, LONE), (5, 3))
        got = arrived["update"]
    return got


def climb(score: Callable[[np.ndarray], float], starts: list[np.ndarray], budget: int, seed: int) -> float:
    """The highest score found: all starts, then changes of the best one in few or many entries, small or large."""
    random = np.random.default_rng(seed)
    scores = [score(start) for start in starts]
    best, at = max(scores), starts[int(np.argmax(scores))]
    for _ in range(budget):
        step = random.normal(size=at.shape) * 10.0 ** random.uniform(-6, 0.5)
        step *= random.random(at.shape) < random.choice([0.2, 1.0])
        new = -at if random.random() < 0.05 else at + step
        if (got := score(new)) > best:
            best, at = got, new
    return best


def vectors(seed: int) -> list[np.ndarray]:
    """[d] spikes, ties, powers of two and nearly, single turned signs, random directions of many lengths."""
    random = np.random.default_rng(seed)
    spikes = [np.eye(D)[0], np.eye(D)[-1], np.ones(D), np.ones(D) + 1e-6 * np.arange(D), 3 * np.eye(D)[2] + np.ones(D)]
    spikes += [np.full(D, 0.75), np.full(D, 1 + 2.0**-11 + 2.0**-30), np.full(D, 1 + 2.0**-8 + 2.0**-30)]
    return [*spikes, *(random.normal(size=D) * 10.0 ** random.uniform(-6, 2) for _ in range(6))]


def stretch(channel: Channel, budget: int) -> float:
    """The largest ||C(v)|| / ||v|| found."""

    def score(v: np.ndarray) -> float:
        norm = float(np.linalg.norm(v))
        return float(through(channel, torch.from_numpy(v)).norm()) / norm if norm else 0.0

    return climb(score, vectors(0), budget, 1)


def spread(channel: Channel, budget: int) -> float:
    """The largest ||C(u) - C(v)|| / ||u - v|| found, the two within a millionth of each other or far apart."""

    def score(pair: np.ndarray) -> float:
        u, v = pair
        far = float(np.linalg.norm(u - v))
        return float((through(channel, torch.from_numpy(u)) - through(channel, torch.from_numpy(v))).norm()) / max(
            far, 1e-9
        )

    starts = [np.stack([v, w]) for v in vectors(2) for w in (v + 1e-6 * np.eye(D)[1], v * (1 + 1e-6), -v)]
    return climb(score, starts, budget, 3)


class Server:
    """A private algorithm with noise of the server, and nothing else that matters to links."""

    traits: ClassVar[Traits] = Traits(noise="server", hooks=("releases",))

    def releases(self, rnd: Round) -> tuple[Release, ...]:
        return ()


ALONE = [Channel((layer,)) for layer in SINGLE.values()]
FOR_CLIENTS = [channel for channel in stacks() if accepted(Server(), channel, unit="client")]
FOR_SAMPLES = [channel for channel in stacks() if accepted(Server(), channel, unit="sample")]


def test_layers_accepted_for_whole_messages_lengthen_none() -> None:
    """A client's message is there or not: the clip bound must hold behind the layers."""
    found = {label(channel): stretch(channel, 40) for channel in FOR_CLIENTS}
    assert {name: value for name, value in found.items() if value > 1 + LEEWAY} == {}
    assert {"none", "topk", "sign", "randk", "topk+randk", "topk+sign", "layerwise", "layerwise+topk"} <= set(found)


def test_layers_accepted_for_samples_bring_no_messages_further_apart() -> None:
    """A sample changes its client's message: by no more behind the layers."""
    found = {label(channel): spread(channel, 150) for channel in FOR_SAMPLES}
    assert {name: value for name, value in found.items() if value > 1 + LEEWAY} == {}
    assert {"none", "randk", "randk_positions", "layerwise+randk", "randk+randk_positions"} <= set(found)


HARMLESS = {"lowrank", "layerwise"}  # eight entries travel as they are; nothing lies inside


@pytest.mark.parametrize("name", sorted(set(SINGLE) - HARMLESS))
def test_the_search_finds_what_a_refused_layer_does(name: str) -> None:
    """For every layer that is refused for samples: two messages that come out further apart, or memory."""
    channel = Channel((SINGLE[name],))
    if accepted(Server(), channel):
        return
    if channel.init({"update": torch.zeros(D)})["update"]:  # what it remembers of one message changes the next ones
        inside = Channel((SINGLE[name], SINGLE["randk_unbiased" if name == "diana" else "topk"]))
        v = torch.arange(1.0, D + 1)
        assert not torch.equal(through(inside, v), through(inside, v, 2))
        assert not accepted(Server(), inside)
    else:
        assert spread(channel, 100) > 1.01


def test_a_sign_around_a_sign_is_refused_for_it_lengthens() -> None:
    """The scales of an outer sign stand for buckets of different sizes; an inner one makes them equal."""
    outer, inner = Layer("outer", Sign("l2", 7)), Layer("inner", Sign("l2"))
    assert stretch(Channel((outer, inner)), 0) > 1.5
    assert not accepted(Server(), Channel((outer, inner)), unit="client")


SIZES = (2, 3)
BOUNDED: dict[str, Any] = {"lr": 0.1, "noise_multiplier": 1.5}
METHODS: dict[str, Any] = {
    "diff2": Diff2(period=2, c1=1.0, c2=2.0, **BOUNDED),
    "diff2 noise=clients": Diff2(period=2, c1=1.0, c2=2.0, noise="clients", **BOUNDED),
    "dp_gd": Diff2(period=1, c1=1.0, c2=2.0, **BOUNDED),
    "diff2_bvr": Diff2BVR(period=2, c1=1.0, c2=2.0, c3=3.0, **BOUNDED),
    "diff2_bvr noise=clients": Diff2BVR(period=2, c1=1.0, c2=2.0, c3=3.0, noise="clients", **BOUNDED),
    "dp_sgd": PrivateSGD(clip=1.0, **BOUNDED),
    "dp_srm": DPSRM(alpha=0.3, c1=1.0, c2=2.0, **BOUNDED),
    "private_spiderboost": PrivateSpiderBoost(period=2, l0=1.0, l1=2.0, **BOUNDED),
}
"""Every private method of the catalogue."""


class Trial:
    """One round of a private method on two tiny clients, by the engine's own parts.

    Args:
        algorithm: with noise.
        index: of the round.
        state: of its server.
        channel: of the clients' messages.
        downlink: of the broadcast.
    """

    def __init__(self, algorithm: Any, index: int, state: Any, channel: Channel, downlink: Channel):
        self.algorithm, self.quiet = algorithm, replace(algorithm, noise_multiplier=0.0)
        self.state, self.channel, self.downlink = state, channel, downlink
        self.rnd = Round(index, (0, 1), len(SIZES), min(SIZES))
        self.walking = isinstance(algorithm, Diff2BVR) and algorithm.walking(self.rnd)
        # a difference of gradients is let out by the second local step of a walk
        self.local = Local(steps=2 if self.walking else 1, batch_size="full")
        setup = prepared()
        self.feed = Feed(setup.train, torch.device("cpu"), torch.float64)
        oracle = ModelOracle(setup.models[0], loss_of(setup.task), "loop")
        self.blocks = {
            rule: ClientSide(rule, (oracle,), 0, self.feed, self.local, channel, 0)
            for rule in (self.algorithm, self.quiet)
        }
        sent = algorithm.broadcast(state, self.rnd)
        noise = noises(0, "downlink", index, LONE)
        arrived, *_ = downlink.send(sent, downlink.init(sent), noise, (D,))
        arrived, _ = downlink.receive(arrived, downlink.init_server(sent), 1.0, (D,))
        self.got = heard(arrived)
        links = channel.init({"d": torch.zeros(D, dtype=torch.float64)})
        self.row = tree_map(lambda t: t[None], (algorithm.init_client(torch.zeros(D)), links))

    @property
    def name(self) -> tuple[int, str, str, float]:
        """Round, layers, and how far the models are apart."""
        far = float((self.state.x - self.state.before).norm())
        return self.rnd.index, label(self.channel), label(self.downlink), far

    def arrives(self, rule: Any, data: np.ndarray, client: int) -> Any:
        """What arrives of a client's message, {field: [1, ...]}, when the samples are these."""
        self.feed.x.copy_(torch.from_numpy(data[:, :-1]))
        self.feed.y.copy_(torch.from_numpy(data[:, -1]))
        return self.blocks[rule].run((client,), self.row, self.got, self.rnd).messages

    def message(self, rule: Any, data: np.ndarray, client: int) -> Tensor:
        """[d] the one vector of what arrives."""
        (value,) = self.arrives(rule, data, client).values()
        found: Tensor = (value.values if isinstance(value, Owned) else value).reshape(-1)
        return found

    def released(self, rule: Any, data: np.ndarray, noise: Any = None) -> Tensor:
        """[d] what the server's step makes known: v, or the model where there is no v."""
        mean, sums = Mean(weights="uniform"), {}
        for client in range(len(SIZES)):
            sums = mean.add(sums, (client,), self.arrives(rule, data, client), torch.ones(1, dtype=torch.float64))
        received = mean.finish(tree_map(lambda t: t.numpy(), sums), float(len(SIZES)), torch.float64)
        after = rule.server(self.state, received, replace(self.rnd, noise=noise))
        out: Tensor = after.x if self.walking else getattr(after, "v", after.x)
        return out

    @property
    def share(self) -> float:
        """What a client's message weighs in what is let out."""
        return 1.0 if self.walking else 1 / len(SIZES)

    def std(self, data: np.ndarray, client: int) -> float:
        """Standard deviation of the noise that is really in what is let out, as far as it hides this client's samples.

        Noise whole in every message hides by that message's alone; shares add up in the mean.
        """
        name = traits_of(self.algorithm).noise
        if name == "server" and not self.walking:
            ones = self.released(self.algorithm, data, Ones())
            return float((ones - self.released(self.quiet, data)).abs().min())
        each = []
        for i in (client,) if self.walking or name == "clients" else range(len(SIZES)):
            noisy, plain = (self.message(rule, data, i) for rule in (self.algorithm, self.quiet))
            drawn = Addressed(0, "local", self.rnd.index, torch.tensor(i))
            drawn = drawn.at(0) if self.stepwise else drawn
            each.append(float(((noisy - plain) / drawn.normal(plain)).abs().median()))
        return math.hypot(*each) * self.share

    @property
    def stepwise(self) -> bool:
        """Whether noise is drawn for each local step, not once."""
        anchor = isinstance(self.algorithm, PrivateSpiderBoost) and self.algorithm.kind(self.rnd)
        minibatches = isinstance(self.algorithm, (PrivateSGD, DPSRM, PrivateSpiderBoost))
        return (minibatches and not anchor) or self.walking

    def multiplier(self, client: int) -> float:
        """What the method says that noise over sensitivity is, for a sample of this client."""
        drawn = Drawn(SIZES[client], SIZES[client], self.local.steps or 1)
        said = self.algorithm.releases(self.rnd)
        if "client_releases" in traits_of(self.algorithm).hooks:
            said = said or self.algorithm.client_releases(self.rnd, drawn)
        (release,) = said
        return float(release.multiplier)

    def replaces(self) -> bool:
        """Whether neighbours replace a sample rather than leave it out."""
        return isinstance(self.algorithm, Differences)


class Ones:
    """Noise that is 1 everywhere."""

    def at(self, part: int) -> Ones:
        return self

    def normal(self, like: Tensor) -> Tensor:
        return torch.ones_like(like)


@cache
def prepared() -> Any:
    n = sum(SIZES)
    group = np.repeat(np.arange(len(SIZES)), SIZES)
    data = Dataset("rows", Split(np.zeros((n, D)), np.zeros(n), group), None, "regression", 1)
    parts = Parts(
        PrivateSGD(lr=0.1),
        data,
        partition=Natural(),
        model=linear_zero,
        rounds=1,
        local=Local(steps=1, batch_size="full"),
        aggregate=Mean(weights="uniform"),
        engine=Engine(backend="serial", dtype="float64", batching="loop"),
    )
    return assemble(parts, data).prepared.setup


def moved(trial: Trial, client: int, budget: int) -> float:
    """The largest move found of what is let out, over what its noise is made for, by one sample of a client."""
    random = np.random.default_rng(client)
    base = random.normal(size=(sum(SIZES), D + 1))
    base[:, 0] *= 30  # what all gradients share: a spike that one sample can tip
    made_for = trial.std(base, client) / trial.multiplier(client)
    row = (0, SIZES[0])[client]

    def message(sample: np.ndarray) -> Tensor:
        data = base.copy()
        data[row] = sample
        return trial.message(trial.quiet, data, client)

    without = message(np.zeros(D + 1))  # no gradient: as if it were left out of a sum of expected size

    def score(rows: np.ndarray) -> float:
        other = message(rows[1]) if trial.replaces() else without
        gap = float((message(rows[0]) - other).norm()) * trial.share
        return gap / made_for if made_for else math.inf if gap else 0.0

    spike = np.append(np.eye(D)[1] * 30, 50.0)
    starts = [np.stack([spike, -spike * np.append(np.ones(D), -1.0)]), np.stack([spike, 0 * spike])]
    starts += [random.normal(size=(2, D + 1)) * 10.0 ** random.uniform(-1, 3) for _ in range(2)]
    return climb(score, starts, budget, client)


def trials(name: str) -> Iterator[tuple[Trial, int]]:
    """Every kind of round of a method behind every link that is accepted, for steps from 1 to 1e-6; and a client."""
    algorithm = METHODS[name]
    uplinks = [channel for channel in (Channel(), *ALONE) if accepted(algorithm, channel)]
    if traits_of(algorithm).noise == "clients":  # noise is whole before any layer
        uplinks = uplinks[:1]
    downlinks = [channel for channel in ALONE if accepted(algorithm, Channel(), channel)]
    x, away = (torch.linspace(a, b, D, dtype=torch.float64) for a, b in ((-1, 1), (1, -2)))

    def trial(index: int, step: float, channel: Channel, downlink: Channel) -> Trial:
        state = RecursiveServer(x, x - step * away / away.norm(), 0.1 * away)
        return Trial(algorithm, index, state, channel, downlink)

    rounds = {"diff2_bvr": (0, 1, 2)}.get(name.split()[0], (0, 1))  # an anchor, a walk, a difference
    for index, step in itertools.product(rounds, (1.0, 1e-6)):
        for channel in uplinks:
            made = trial(index, step, channel, Channel())
            for client in algorithm.exposed(made.rnd) if made.walking else range(len(SIZES)):
                yield made, client
    for index, downlink in itertools.product(rounds[1:], downlinks):
        yield trial(index, 1e-3, Channel(), downlink), 0


@pytest.mark.parametrize("name", METHODS)
def test_one_sample_moves_what_is_let_out_by_no_more_than_the_noise_is_made_for(name: str) -> None:
    """With the noise that is really there, found by taking it out, and the multiplier that the account has."""
    found = {(trial.name, client): moved(trial, client, 6) for trial, client in trials(name)}
    assert {trial: ratio for trial, ratio in found.items() if ratio > 1 + LEEWAY} == {}
    assert max(found.values()) > 0.4, "the search comes near the bound"


class Sends(FedAvg):
    """A method whose client sends what its objective holds, and a public number."""

    traits = FedAvg.traits.but(public=("steps",))

    def local(self, obj: Any, client: Any, got: Any, rnd: Round) -> Any:
        return {"update": obj.v, "steps": torch.tensor(100.0, dtype=torch.float64)}, client


CLIP = 0.7
MECHANISMS: dict[str, Callable[[float], Any]] = {
    "central": lambda z: CentralNoise(Sends(lr=0.1), CLIP, z, 2),
    "central of a larger cohort": lambda z: CentralNoise(Sends(lr=0.1), CLIP, z, 2, 2, 100),
    "adaptive": lambda z: AdaptiveNoise(Sends(lr=0.1), CLIP, z, 2, bits_std=2.0),
    "banded": lambda z: BandedNoise(Sends(lr=0.1), CLIP, z, 2, banded_factor(3, 2), 2),
    "local": lambda z: LocalNoise(Sends(lr=0.1), CLIP, z),
}
"""Around what is sent. The discrete sum takes no layer; the norm of its integers is checked where they are drawn."""


@pytest.mark.parametrize("name", MECHANISMS)
def test_one_client_moves_what_is_let_out_by_no_more_than_the_noise_is_made_for(name: str) -> None:
    """A client that comes or does not (with noise of its own: that has other data), behind every accepted layer."""
    z = 1.5
    rule, quiet = MECHANISMS[name](z), MECHANISMS[name](0.0)
    x0 = torch.linspace(-1, 1, D, dtype=torch.float64)
    server = rule.init_server(x0)
    got = rule.broadcast(server, Round(0, (0, 1), 2))

    def message(mechanism: Any, v: np.ndarray, channel: Channel) -> dict[str, Tensor]:
        obj = SimpleNamespace(v=torch.from_numpy(v), noise=Ones())
        sent, _ = mechanism.local(obj, (), got, Round(0, (0, 1), 2))
        return channel.send(sent, channel.init(sent), noises(0, "law", 0, LONE), (5, 3))[0]

    def let_out(mechanism: Any, arrived: list[dict[str, Tensor]]) -> list[Tensor]:
        mean = {field: torch.stack([m[field] for m in arrived]).mean(0) for field in arrived[0]}
        after = mechanism.server(server, mean, Round(0, tuple(range(len(arrived))), 2, noise=Ones()))
        return [after.x, *([after.clip.log()] if hasattr(after, "clip") else [])]

    def ratio(v: np.ndarray, w: np.ndarray, channel: Channel) -> float:
        """Distance in units of the noise, over the same of the release in the account."""
        if name == "local":  # noise is whole in the message
            plain = message(quiet, v, Channel())["update"]
            std = float((message(rule, v, Channel())["update"] - plain).min())
            return float((plain - message(quiet, w, Channel())["update"]).norm()) / std * z
        there, alone = [message(quiet, u, channel) for u in (w, v)], [message(quiet, w, channel)]
        kinds = zip(let_out(quiet, there), let_out(quiet, alone), let_out(rule, there), strict=True)
        far = [float((a - b).norm() / (noisy - a).abs().min()) for a, b, noisy in kinds]
        (release,) = rule.releases(Round(0, (0, 1), 2))
        return math.hypot(*far) * float(release.multiplier)

    channels = [Channel(), *(channel for channel in ALONE if accepted(rule, channel, unit="client"))]
    channels = channels[:1] if name == "local" else channels
    w = np.linspace(2, -1, D)
    found = {
        label(channel): climb(lambda v, at=channel: ratio(v, -v if name == "local" else w, at), vectors(5), 5, 6)
        for channel in channels
    }
    assert {layers: value for layers, value in found.items() if value > 1 + LEEWAY} == {}
    near = banded_factor(3, 2).noise_coefficients[0, 0] if name == "banded" else 1.0  # one round of three
    assert found["none"] > near - LEEWAY, "the bound is reached"
