"""The peers' engine: what is mixed, what is counted, what is refused; the algorithms are tested in oracles/."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import networkx as nx
import numpy as np
import pytest
import torch
from torch import Tensor

from fedsim import Engine, Evaluate, Local, Result, simulate
from fedsim.algorithms.dfedavg import DFedAvg
from fedsim.algorithms.fedavg import FedAvg
from fedsim.channel.channel import Channel
from fedsim.channel.ef21 import EF21
from fedsim.channel.onion import Layer
from fedsim.channel.randk import RandK
from fedsim.channel.topk import TopK
from fedsim.data import Dataset
from fedsim.errors import InputError
from fedsim.partition import Iid
from fedsim.runs.gossip import Gossip, product
from fedsim.runs.measured import consensus
from fedsim.schedule import All, Uniform
from fedsim.topology import (
    BaseKPlus1,
    ExponentialDirected,
    Grid,
    Mixing,
    OnePeerExponential,
    RandomRegular,
    Ring,
    SmallWorld,
    Star,
    Topology,
    spectral_gap,
    weigh,
)
from fedsim.traits import Traits
from fedsim.types import Message, Round
from tests.conftest import small_cnn

N = 8


class Number(NamedTuple):
    """A peer that holds a vector."""

    x: Tensor


@dataclass(frozen=True)
class Average:
    """Gossip and nothing else: peers start from the gradient of their own data at x0, so from different vectors."""

    gossip_steps: int = 1
    traits: ClassVar[Traits] = Traits(role="peers", hooks=("gossip_steps",))

    def init_client(self, x0: Tensor) -> Number:
        return Number(x0)

    def model(self, peer: Number) -> Tensor:
        return peer.x

    def local(self, obj: Any, peer: Number, rnd: Round) -> Number:
        if rnd.index:
            return peer
        return Number(obj.run(lambda total, batch: total + obj.grad(peer.x, batch), torch.zeros_like(peer.x)))

    def offer(self, peer: Number, rnd: Round) -> Message:
        return {"x": peer.x}

    def mix(self, peer: Number, mixed: Message, rnd: Round) -> Number:
        return Number(mixed["x"])


def run(squares: Dataset, algorithm: Any = Average(), topology: Topology | None = Ring(), **more: Any) -> Result:  # noqa: B008
    defaults: dict[str, Any] = {
        "rounds": 3,
        "schedule": All(),
        "engine": Engine(backend="serial", dtype="float64"),
        "trajectory": True,
        "local": Local(steps=1, batch_size="full"),
    }
    more = {"partition": Iid(clients=N), "model": small_cnn, **defaults, **more}
    return simulate(algorithm, data=squares, topology=topology, **more)


@pytest.mark.parametrize("topology", [Ring(), Star(), OnePeerExponential(), RandomRegular(degree=3), BaseKPlus1(k=2)])
def test_a_round_is_one_product_with_the_w_of_that_round(topology: Topology, squares: Dataset) -> None:
    plain = run(squares, topology=topology, rounds=4).trajectory
    assert plain is not None
    for t in (1, 2, 3):
        w = topology.mixing(N, t, 0).w.toarray()
        np.testing.assert_allclose(plain[t + 1], w @ plain[t], rtol=0, atol=1e-14)
        np.testing.assert_allclose(plain[t + 1].mean(0), plain[t].mean(0), rtol=0, atol=1e-12)  # mean preserved
    assert consensus(torch.from_numpy(plain[4])) < consensus(torch.from_numpy(plain[1]))


def test_gossip_steps_are_powers_of_w_and_cost_an_exchange_each(squares: Dataset) -> None:
    once, four = run(squares), run(squares, Average(gossip_steps=4))
    assert once.trajectory is not None
    assert four.trajectory is not None
    w = np.linalg.matrix_power(Ring().mixing(N, 0, 0).w.toarray(), 4)
    np.testing.assert_allclose(four.trajectory[2], w @ four.trajectory[1], rtol=0, atol=1e-14)
    for name in ("comm/edge_bytes", "comm/edges"):
        assert four.metrics[1][name] == 4 * once.metrics[1][name]
    assert once.metrics[1]["comm/edges"] == N
    d = once.trajectory.shape[2]
    assert once.metrics[1]["comm/edge_bytes"] == pytest.approx(
        2 * N * 8 * d, rel=0.01
    )  # 2 neighbours, 8 bytes a number


def test_bytes_follow_the_degrees(squares: Dataset) -> None:
    """The hub of a star sends n - 1 messages, every other peer one; one-way graphs count receivers only."""
    bytes_of = {t: run(squares, topology=t, rounds=1).metrics[1]["comm/edge_bytes"] for t in (Star(), Ring())}
    assert bytes_of[Star()] / bytes_of[Ring()] == pytest.approx(2 * (N - 1) / (2 * N))
    one_way = run(squares, topology=ExponentialDirected(), rounds=1).metrics[1]["comm/edge_bytes"]
    assert one_way / bytes_of[Ring()] == pytest.approx(3 * N / (2 * N))


def test_metrics_are_what_they_say(squares: Dataset) -> None:
    result = run(squares, topology=Grid(), evaluate=Evaluate(clients=True, gradient=True))
    x, last = result.trajectory, result.metrics[-1]
    assert x is not None
    distance = np.sqrt(np.square(x[-1] - x[-1].mean(0)).sum(1).mean())
    assert last["gossip/consensus_distance"] == pytest.approx(distance, rel=1e-12)
    before = np.sqrt(np.square(x[-2] - x[-2].mean(0)).sum(1).mean())  # the last rounds only mix
    assert last["gossip/consensus_before"] == pytest.approx(before, rel=1e-12)
    assert last["gossip/spectral_gap"] == pytest.approx(spectral_gap(Grid().mixing(N, 0, 0).w))
    for i, worst in ((-1, last["eval/peer_loss_worst"]), (-2, last["eval/unmixed_peer_loss_worst"])):
        losses = [_loss(x[i, p], squares) for p in range(N)]
        assert worst == pytest.approx(max(losses), rel=1e-9)
    assert last["eval/loss"] == pytest.approx(_loss(x[-1].mean(0), squares), rel=1e-9)
    assert last["eval/peer_accuracy_worst"] <= last["eval/peer_accuracy_mean"] <= 1
    assert result.model is not None
    flat = torch.cat([p.detach().reshape(-1) for p in result.model.parameters()]).double()
    np.testing.assert_allclose(np.sort(flat.numpy()), np.sort(x[-1].mean(0)), rtol=1e-6, atol=1e-7)
    period = run(squares, topology=OnePeerExponential()).metrics[-1]
    assert period["gossip/spectral_gap"] == pytest.approx(0, abs=1e-12)
    assert period["gossip/period_gap"] == pytest.approx(1)


def _loss(x: np.ndarray, data: Dataset) -> float:
    from fedsim.ground.layout import Layout
    from fedsim.models import build

    model = build(small_cnn, data.input_shape, data.outputs, {}, 0).double()
    split = data.test or data.train
    with torch.no_grad():
        images = (split.x.astype(np.float64) / 255 - np.array(data.mean)) / np.array(data.std)
        out = Layout.of(model).load(model, torch.from_numpy(x))(torch.from_numpy(images))
        return float(torch.nn.functional.cross_entropy(out, torch.from_numpy(split.y)))


def test_complete_graph_is_fedavg_with_everybody(squares: Dataset) -> None:
    from fedsim.topology import Complete

    local = Local(epochs=2, batch_size=8)
    peers = run(squares, DFedAvg(lr=0.1), Complete(), local=local)
    server = run(squares, FedAvg(lr=0.1), None, local=local, aggregate=_uniform())
    assert peers.trajectory is not None
    assert server.trajectory is not None
    for i in range(N):
        np.testing.assert_allclose(peers.trajectory[:, i], server.trajectory, rtol=0, atol=1e-12)


def _uniform() -> Any:
    from fedsim import Mean

    return Mean(weights="uniform")


def test_only_those_who_are_drawn_compute_but_all_gossip(squares: Dataset) -> None:
    schedule = Uniform(cohort=3)
    result = run(squares, DFedAvg(lr=0.5), schedule=schedule, rounds=1)
    x = result.trajectory
    assert x is not None
    w = Ring().mixing(N, 0, 0).w.toarray()
    trained = np.linalg.solve(w, x[1])
    moved = np.flatnonzero(np.abs(trained - x[0]).max(1) > 1e-9)
    assert tuple(moved) == schedule.clients(0, N, 0)


def test_every_peer_has_a_link_of_its_own_through_the_channel(squares: Dataset) -> None:
    """EF21 with Top-K between peers: an independent loop with one estimate for each peer."""
    layers = (Layer("ef21", EF21(start="zero")), Layer("topk", TopK(k=5)))
    result = run(squares, channel=Channel(layers))
    x = result.trajectory
    assert x is not None
    w = Ring().mixing(N, 0, 0).w.toarray()
    start = run(squares, topology=Lonely(), rounds=1).trajectory
    assert start is not None
    now, h = start[1], np.zeros_like(x[0])
    for t in range(3):
        for i in range(N):
            r = now[i] - h[i]
            top = np.argsort(-np.abs(r), kind="stable")[:5]
            h[i, top] += r[top]
        now = w @ h
        np.testing.assert_allclose(x[t + 1], now, rtol=0, atol=1e-12)
    assert result.metrics[-1]["comm/edge_ratio"] > 10


@dataclass(frozen=True)
class Lonely:
    """W = I."""

    def mixing(self, n: int, index: int, seed: int) -> Mixing:
        return weigh(nx.empty_graph(n), "metropolis", period=1)


def test_random_layers_draw_anew_for_each_peer_round_and_step(squares: Dataset) -> None:
    channel = Channel((Layer("randk", RandK(k=3)),))
    one = run(squares, channel=channel, topology=Lonely(), rounds=1).trajectory
    two = run(squares, Average(gossip_steps=2), channel=channel, topology=Lonely(), rounds=1).trajectory
    assert one is not None
    assert two is not None
    kept = {tuple(np.flatnonzero(row)) for row in one[1]}
    assert len(kept) > 1, "all peers drew the same positions"
    assert (np.count_nonzero(two[1], axis=1) < 3).any(), "both steps drew the same positions"


@pytest.mark.parametrize("channel", [Channel(), Channel((Layer("topk", TopK(ratio=0.1)),), encode=True)])
def test_real_encoding_and_blocks_change_no_number(channel: Channel, squares: Dataset) -> None:
    counted = run(squares, DFedAvg(lr=0.1), channel=replace(channel, encode=False))
    real = run(squares, DFedAvg(lr=0.1), channel=channel, engine=Engine(backend="serial", dtype="float64", jobs=2))
    assert counted.trajectory is not None
    assert real.trajectory is not None
    np.testing.assert_allclose(counted.trajectory, real.trajectory, rtol=0, atol=1e-12)
    sent = [[r[k] for k in r if k.endswith("bytes")] for r in counted.metrics]
    assert sent == [[r[k] for k in r if k.endswith("bytes")] for r in real.metrics]


def test_many_peers_go_through_the_channel_in_pieces() -> None:
    """150 peers are more than are taken at once: the same as one by one."""
    n, d = 150, 40
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mixing = SmallWorld(neighbours=4).mixing(n, 0, 0)
    channel = Channel((Layer("topk", TopK(k=4)),))
    rnd = Round(0, tuple(range(n)), n)
    links: Any = ({"x": {}}, {})
    got = Gossip(Average(), channel, (d,), 0).exchange(Number(x), links, mixing.w, rnd, 0)
    held = torch.stack([channel.send({"x": row}, {"x": {}}, lambda _: None, (d,))[0]["x"] for row in x])  # type: ignore[arg-type, return-value]
    torch.testing.assert_close(got.peers.x, product(mixing.w, held), rtol=0, atol=0)


def test_what_cannot_gossip_is_refused_before_anything_starts(squares: Dataset) -> None:
    cases: list[tuple[str, dict[str, Any]]] = [
        (r"topology must be a graph for Average, .* add topology=ring", {"topology": None}),
        (r"topology must be none for FedAvg", {"algorithm": FedAvg(lr=0.1)}),
        (r"downlink must be \[\] for Average", {"downlink": Channel((Layer("topk", TopK(k=1)),))}),
        (
            r"topology must not change with the round for Copies",
            {"algorithm": Copies(), "topology": OnePeerExponential()},
        ),
        (r"nothing", {"channel": Channel((Layer("topk", TopK(k=1), ("nothing",)),))}),
        (r"model must be one architecture for Average", {"model": [small_cnn, small_cnn]}),
    ]
    for must, change in cases:
        with pytest.raises(InputError, match=must):
            run(squares, **change)


@dataclass(frozen=True)
class Copies(Average):
    """Says that it keeps copies of its neighbours."""

    traits: ClassVar[Traits] = Average.traits.but(static=True)


def test_a_diverging_peer_ends_the_run_and_keeps_the_last_good_states(squares: Dataset) -> None:
    result = run(squares, DFedAvg(lr=1e200), local=Local(steps=3, batch_size="full"))
    assert result.status == "diverged"
    assert np.isfinite(result.client(0).x.numpy()).all()
