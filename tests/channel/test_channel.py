"""The onion: how layers compose, what they count, what they draw and what they remember."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fedsim import Engine, Evaluate, Local, Mean, Result, simulate
from fedsim.aggregate import Stack
from fedsim.algorithms.fedavg import FedAvg
from fedsim.algorithms.fedcm import FedCM
from fedsim.algorithms.fedgh import FedGH
from fedsim.algorithms.scaffold import Scaffold
from fedsim.algorithms.sgd import SGD
from fedsim.channel import wire
from fedsim.channel.channel import Channel, noises
from fedsim.channel.diana import Diana
from fedsim.channel.econtrol import EControl
from fedsim.channel.ef14 import EF14
from fedsim.channel.ef21 import EF21, EF21SGDM, EF21Plus
from fedsim.channel.half import Half
from fedsim.channel.noise import Addressed
from fedsim.channel.onion import Layer, Layerwise
from fedsim.channel.qsgd import QSGD
from fedsim.channel.randk import RandK
from fedsim.channel.topk import TopK
from fedsim.channel.uniform import Uniform
from fedsim.data import Dataset
from fedsim.ground.tree import leaves
from fedsim.models import linear_zero
from fedsim.objective import Objective
from fedsim.partition import Dirichlet, Natural
from fedsim.schedule import All, Cohorts
from fedsim.schedule import Uniform as Draws
from fedsim.types import Message, Owned, Round
from tests.conftest import Quadratics, small_cnn

PARAMETERS = (5, 3, 12)
D = sum(PARAMETERS)
SEED, ROUND, CLIENT = 3, 7, torch.tensor(2)
TOPK, FP16 = Layer("topk", TopK(k=3)), Layer("fp16", Half("fp16"))
QUANTISED = Layer("qsgd", QSGD(levels=3, bucket=None))
INT8 = Layer("int8", Uniform(bits=8, bucket=None))


@pytest.fixture
def v() -> Tensor:
    return torch.randn(D, generator=torch.Generator().manual_seed(1)) * 3


def send(layers: Sequence[Layer], message: Message, links: Any = None, **options: Any) -> tuple[Message, Any, int]:
    """One message of one client, with the same as real bytes: they must agree to the bit and to the byte."""
    both = []
    for encode in (False, True):
        channel = Channel(tuple(layers), encode)
        links = channel.init(message) if links is None else links
        noise = noises(SEED, "uplink", options.get("index", ROUND), options.get("client", CLIENT))
        both.append(channel.send(message, links, noise, PARAMETERS))
    (got, new, size), (decoded, again, encoded) = both
    assert int(size) == int(encoded)
    for a, b in zip(leaves((got, new)), leaves((decoded, again)), strict=True):
        assert torch.equal(a, b)
        assert a.dtype == b.dtype
    return got, new, int(size)


def largest(v: Tensor, k: int) -> Tensor:
    return torch.tensor(sorted(sorted(range(len(v)), key=lambda j: (-abs(float(v[j])), j))[:k]))


def sparse(v: Tensor, k: int) -> Tensor:
    out = torch.zeros_like(v)
    at = largest(v, k)
    out[at] = v[at]
    return out


def levels_of(v: Tensor, scale: Tensor, top: int, layer: str) -> Tensor:
    """Random rounding of top * v / scale with the run's own numbers."""
    u = Addressed(SEED, f"uplink.{layer}.update", ROUND, CLIENT).uniform(v)
    low = (v / scale * top).floor()
    return (low + (u < v / scale * top - low)).to(torch.int8)


def length(**content: wire.Content) -> int:
    return len(wire.encode({name.replace("_", "."): value for name, value in content.items()}))


def test_topk_then_half(v: Tensor) -> None:
    got, _, size = send([TOPK, FP16], {"update": v})
    at = largest(v, 3)
    want = torch.zeros(D)
    want[at] = v[at].half().float()
    assert torch.equal(got["update"], want)
    assert size == length(update=(v[at].half(), (wire.Positions(at, D),)))


def test_qsgd_then_half_halves_the_norms(v: Tensor) -> None:
    got, _, size = send([QUANTISED, FP16], {"update": v})
    norm = v.double().norm().float().reshape(1)
    q = levels_of(v, norm, 3, "qsgd")
    torch.testing.assert_close(got["update"], q / 3 * norm.half().float())
    assert size == length(update=(norm.half(), (wire.Levels(q, -3, 3),)))


def test_topk_then_qsgd_quantises_what_is_kept(v: Tensor) -> None:
    got, _, size = send([TOPK, QUANTISED], {"update": v})
    at = largest(v, 3)
    norm = v[at].double().norm().float().reshape(1)
    q = levels_of(v[at], norm, 3, "qsgd")
    want = torch.zeros(D)
    want[at] = q / 3 * norm
    torch.testing.assert_close(got["update"], want)
    assert size == length(update=(norm, (wire.Levels(q, -3, 3), wire.Positions(at, D))))


def test_layerwise_keeps_the_largest_of_every_parameter(v: Tensor) -> None:
    got, _, size = send([Layer("layerwise", Layerwise()), TOPK], {"update": v})
    pieces = v.split(PARAMETERS)
    assert torch.equal(got["update"], torch.cat([sparse(piece, 3) for piece in pieces]))
    at = [largest(piece, 3) for piece in pieces]
    first, third = ((pieces[p][at[p]], (wire.Positions(at[p], PARAMETERS[p]),)) for p in (0, 2))
    assert size == length(update=first, update_0_1_0_0=pieces[1], update_0_2_0_0=third)
    other, _, _ = send([Layer("layerwise", Layerwise()), TOPK], {"update": v[:9]})
    assert torch.equal(other["update"], sparse(v[:9], 3)), "vectors of another length stay whole"


def test_econtrol_layerwise_topk_remembers_whole_vectors(v: Tensor) -> None:
    """eta is half of the worst delta of the pieces: 1 of 12."""
    layers = [Layer("econtrol", EControl()), Layer("layerwise", Layerwise()), Layer("topk", TopK(k=1))]
    h, e = torch.zeros(D), torch.zeros(D)
    links = None
    for scale in (1.0, -0.4, 2.0):
        payload = v * scale + 1
        got, links, _ = send(layers, {"update": payload}, links)
        sent = torch.cat([sparse(piece, 1) for piece in (1 / 24 * e + payload - h).split(PARAMETERS)])
        e, h = e + payload - h - sent, h + sent
        torch.testing.assert_close(got["update"], sent)
        torch.testing.assert_close(links["update"]["econtrol"].e, e)
        torch.testing.assert_close(links["update"]["econtrol"].h, h)


def test_econtrol_topk_int8(v: Tensor) -> None:
    got, links, size = send([Layer("econtrol", EControl(eta=0.1)), TOPK, INT8], {"update": v})
    at = largest(v, 3)
    peak = v.abs().max().reshape(1)
    q = levels_of(v[at], peak, 127, "int8")
    want = torch.zeros(D)
    want[at] = q / 127 * peak
    torch.testing.assert_close(got["update"], want)
    torch.testing.assert_close(links["update"]["econtrol"].e, v - want)
    assert size == length(update=(peak, (wire.Levels(q, -127, 127), wire.Positions(at, D))))


ETAS = {  # delta / 2 of the worst codec inside for vectors of PARAMETERS
    (TOPK,): 3 / 20 / 2,
    (FP16, TOPK): 3 / 20 / 2,
    (TOPK, FP16): 3 / 20 / 2,
    (Layer("layerwise", Layerwise()), TOPK): 3 / 12 / 2,
    (QUANTISED,): 1 / (1 + min(20 / 9, 20**0.5 / 3)) / 2,
    (): 0.5,
}


@pytest.mark.parametrize("inside", ETAS, ids=lambda layers: "_".join(layer.name for layer in layers) or "nothing")
def test_default_eta_is_half_the_contraction_of_what_lies_inside(inside: tuple[Layer, ...], v: Tensor) -> None:
    """The same messages as with that eta given."""
    links: list[Any] = [None, None]
    for scale in (1.0, -0.4, 2.0):
        both = []
        for i, eta in enumerate((None, ETAS[inside])):
            got, links[i], _ = send([Layer("econtrol", EControl(eta=eta)), *inside], {"update": v * scale}, links[i])
            both.append(got["update"])
        torch.testing.assert_close(*both, rtol=1e-6, atol=1e-6)


def test_fields_say_what_a_layer_acts_on(v: Tensor) -> None:
    layers = [Layer("ef14", EF14(), fields=("c",)), Layer("topk", TopK(k=3), fields=("c", "m"))]
    got, links, size = send(layers, {"update": v, "c": v + 1, "m": v - 1})
    assert torch.equal(got["update"], v)
    assert torch.equal(got["c"], sparse(v + 1, 3))
    assert torch.equal(got["m"], sparse(v - 1, 3))
    assert links["update"] == {} == links["m"]
    assert torch.equal(links["c"]["ef14"].e, v + 1 - got["c"])
    parts = {name: (w[largest(w, 3)], (wire.Positions(largest(w, 3), D),)) for name, w in (("c", v + 1), ("m", v - 1))}
    assert size == length(update=v, **parts)


def test_what_is_no_vector_of_numbers_travels_as_it_is(v: Tensor) -> None:
    rows = Owned(torch.randn(4, 2), torch.tensor([True, False, True, False]))
    more = {"steps": torch.tensor(3.5), "count": torch.tensor([1, 2, 900]), "flag": torch.tensor([True, False])}
    layers = [Layer("econtrol", EControl(eta=0.1)), TOPK, FP16]
    got, links, size = send(layers, {"update": v, "rows": rows, **more})
    assert got["rows"] is rows
    assert all(torch.equal(got[name], value) for name, value in more.items())
    assert set(links) == {"update"}
    at = largest(v, 3)
    assert size == length(update=(v[at].half(), (wire.Positions(at, D),)), **more)  # rows are counted by their masks


def test_matrices_keep_their_shape(v: Tensor) -> None:
    got, _, size = send([TOPK], {"update": v.view(4, 5)})
    assert torch.equal(got["update"], sparse(v, 3).view(4, 5))
    at = largest(v, 3)
    assert size == length(update=(v[at], (wire.Positions(at, D),)))


@dataclass(frozen=True)
class Tell:
    """What arrives is what was drawn."""

    def init(self, v: Tensor) -> tuple[()]:
        return ()

    def __call__(self, v: Tensor, link: Any, noise: Any, send: Any) -> Any:
        got, _, size = send(noise.uniform(v))
        return got, link, size


@dataclass(frozen=True)
class Twice(Tell):
    """Sends two messages; the far end takes the second one."""

    def __call__(self, v: Tensor, link: Any, noise: Any, send: Any) -> Any:
        _, _, first = send(v)
        got, _, second = send(v)
        return got, link, first + second


def test_every_use_of_a_layer_has_random_numbers_of_its_own() -> None:
    """By seed, link, round, client, layer, field, call of an outer layer and piece; and nothing else matters."""
    zero = torch.zeros(D)

    def drawn(
        seed: int = SEED, link: str = "uplink", index: int = 0, client: int = 0, field: str = "x", *layers: Layer
    ) -> list[float]:
        channel = Channel(layers or (Layer("a", Tell()),))
        message = {"before": zero, field: zero} if field == "x" else {field: zero}
        noise = noises(seed, link, index, torch.tensor(client))
        return channel.send(message, channel.init(message), noise, PARAMETERS)[0][field].tolist()

    base = (SEED, "uplink", 0, 0, "x")
    tell = Layer("a", Tell())
    cut = drawn(*base, Layer("cut", Layerwise()), tell)
    seen = [
        drawn(),
        drawn(seed=4),
        drawn(link="downlink"),
        drawn(index=1),
        drawn(client=1),
        drawn(field="y"),
        drawn(*base, Layer("b", Tell())),
        drawn(*base, Layer("twice", Twice()), tell),
        drawn(*base, Layer("again", Twice()), Layer("twice", Twice()), tell),
        cut[PARAMETERS[0] :],
    ]
    firsts = [numbers[0] for numbers in seen] + [cut[sum(PARAMETERS[:2])]]
    assert len(set(firsts)) == len(firsts)
    assert drawn() == drawn(*base, tell) == drawn(*base, Layer("b", Tell()), tell)


def test_two_layers_of_one_class_draw_their_own_numbers() -> None:
    channel = Channel((Layer("one", TopK(k=D)), Layer("two", Tell()), Layer("three", Tell())))
    message = {"x": torch.zeros(D)}
    noise = noises(SEED, "uplink", 0, CLIENT)
    got = channel.send(message, channel.init(message), noise, PARAMETERS)[0]["x"]
    assert torch.equal(got, Addressed(SEED, "uplink.three.x", 0, CLIENT).uniform(got))
    assert not torch.equal(got, Addressed(SEED, "uplink.two.x", 0, CLIENT).uniform(got))


def test_the_seed_on_the_wire_gives_the_positions() -> None:
    noise = Addressed(SEED, "uplink.randk.update", ROUND, CLIENT)
    like = torch.zeros(D)
    drawn = torch.randperm(D, generator=torch.Generator().manual_seed(int(noise.seed(like))))[:4]
    assert torch.equal(noise.subset(4, like), drawn.sort().values)


ALONE = {
    "topk": [TOPK],
    "randk": [Layer("randk", RandK(k=3))],
    "qsgd_half": [QUANTISED, FP16],
    "econtrol_full": [Layer("econtrol", EControl(start="full")), TOPK],
    "econtrol_compressed": [Layer("econtrol", EControl(start="compressed")), Layer("layerwise", Layerwise()), TOPK],
    "ef21_plus": [Layer("ef21_plus", EF21Plus()), TOPK, INT8],
    "ef21_sgdm": [Layer("ef21_sgdm", EF21SGDM()), TOPK],
    "diana": [Layer("diana", Diana()), QUANTISED],
}


@pytest.mark.parametrize("encode", [False, True])
@pytest.mark.parametrize("name", ALONE)
def test_many_clients_at_once_are_each_alone(name: str, encode: bool) -> None:
    channel = Channel(tuple(ALONE[name]), encode)
    vectors = torch.randn(3, D, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    clients = torch.tensor([4, 0, 9])
    links = torch.func.vmap(lambda v: channel.init({"update": v}))(vectors)

    def one(v: Tensor, client: Tensor, link: Any, index: int) -> Any:
        got, new, size = channel.send({"update": v}, link, noises(SEED, "uplink", index, client), PARAMETERS)
        return got, new, torch.zeros_like(client) + size

    for index in range(3):
        alone = [one(vectors[i], clients[i], _row(links, i), index) for i in range(3)]
        got, links, sizes = torch.func.vmap(lambda v, c, link, index=index: one(v, c, link, index))(
            vectors, clients, links
        )
        for i in range(3):
            for a, b in zip(leaves((_row(got, i), _row(links, i))), leaves(alone[i][:2]), strict=True):
                torch.testing.assert_close(a, b, rtol=1e-14, atol=1e-14)  # a norm may sum in another order
            assert int(sizes[i]) == int(alone[i][2])
        vectors = vectors * -0.7 + 0.1


def _row(tree: Any, i: int) -> Any:
    from fedsim.ground.tree import tree_map

    return tree_map(lambda t: t[i], tree)


CALLS: list[int] = []


class Counting(FedAvg):
    """FedAvg that notes every local call."""

    def local(self, obj: Objective, client: tuple[()], got: Message, rnd: Round) -> tuple[Message, tuple[()]]:
        CALLS.append(rnd.index)
        return super().local(obj, client, got, rnd)


def quadratic(
    problem: Quadratics,
    algorithm: Any = SGD(lr=0.1),  # noqa: B008 - a frozen dataclass
    rounds: int = 3,
    schedule: Any = All(),  # noqa: B008
    **options: Any,
) -> Result:
    return simulate(
        algorithm,
        data=problem.dataset(),
        partition=Natural(),
        model=linear_zero,
        rounds=rounds,
        schedule=schedule,
        local=Local(steps=1, batch_size="full"),
        aggregate=Mean(weights="uniform"),
        engine=Engine(backend="serial", dtype="float64", batching=options.pop("batching", "auto")),
        evaluate=Evaluate(every=10**6),
        seed=SEED,
        **options,
    )


def cohorts(folder: Path, *listed: list[int]) -> Cohorts:
    file = folder / "cohorts.json"
    file.write_text(json.dumps(listed))
    return Cohorts(path=str(file))


def test_an_empty_channel_costs_nothing(quadratics: Quadratics) -> None:
    """The same bits, the bytes of a dense message; what is rehearsed is no more than a few calls."""
    CALLS.clear()
    plain = quadratic(quadratics, Counting(lr=0.1), batching="loop")
    assert [t for t in range(3) for _ in range(quadratics.n)] == CALLS[-3 * quadratics.n :]
    rehearsed = len(CALLS) - 3 * quadratics.n
    dense = 1 + (1 + len("update") + 2 + 4) + 8 * quadratics.d
    assert [r["comm/uplink_bytes"] for r in plain.metrics[1:]] == [quadratics.n * dense] * 3
    assert not any("ratio" in tag for record in plain.metrics for tag in record)
    CALLS.clear()
    encoded = quadratic(quadratics, Counting(lr=0.1), batching="loop", channel=Channel((), encode=True))
    more = "three rounds and the last are rehearsed where there is a channel"
    assert len(CALLS) == 3 * quadratics.n + rehearsed + 3, more
    assert encoded.summary["digest"] == plain.summary["digest"]
    assert [r["comm/uplink_bytes"] for r in encoded.metrics[1:]] == [quadratics.n * dense] * 3


def gradient_bytes(d: int, k: int | None = None, path: str = "") -> int:
    """Of one message of SGD in float64: dense, or Top-K."""
    if k is None:
        return len(wire.encode({"gradient" + path: torch.zeros(d, dtype=torch.float64)}))
    values = torch.zeros(k, dtype=torch.float64)
    return len(wire.encode({"gradient" + path: (values, (wire.Positions(torch.arange(k), d),))}))


FIRST = {
    "zero": gradient_bytes(8, 2),
    "full": gradient_bytes(8),
    "compressed": 2 * gradient_bytes(8, 2, ".0.1.0") - len(wire.encode({})),  # two messages, one count of fields
}


@pytest.mark.parametrize("batching", ["auto", "loop"])
@pytest.mark.parametrize("init", FIRST)
def test_the_first_message_of_every_client_is_charged_as_sent(init: Any, batching: str, tmp_path: Path) -> None:
    problem = Quadratics(d=8)
    layers = (Layer("econtrol", EControl(start=init)), Layer("topk", TopK(k=2)))
    schedule = cohorts(tmp_path, [0, 1], [1, 2], [0, 1, 2, 3], [4])
    result = quadratic(problem, rounds=4, schedule=schedule, channel=Channel(layers), batching=batching)
    first, later, dense = FIRST[init], gradient_bytes(8, 2), gradient_bytes(8)
    want = [2 * first, first + later, first + 3 * later, first]
    assert [r["comm/uplink_bytes"] for r in result.metrics[1:]] == want
    totals = np.cumsum(want)
    assert [r["comm/uplink_total_bytes"] for r in result.metrics[1:]] == totals.tolist()
    plain = np.cumsum([2 * dense, 2 * dense, 4 * dense, dense])
    assert [r["comm/uplink_ratio"] for r in result.metrics[1:]] == pytest.approx(plain / totals, rel=1e-12)
    assert "comm/downlink_ratio" not in result.metrics[-1]


@pytest.mark.parametrize("rule", [EF21(), EF21SGDM()], ids=["ef21", "ef21_sgdm"])
def test_ef21_sends_the_first_message_in_full(rule: Any) -> None:
    problem = Quadratics(d=8)
    channel = Channel((Layer("ef21", rule), Layer("topk", TopK(k=2))))
    result = quadratic(problem, rounds=2, channel=channel)
    want = [problem.n * gradient_bytes(8), problem.n * gradient_bytes(8, 2)]
    assert [r["comm/uplink_bytes"] for r in result.metrics[1:]] == want


def test_ef21_plus_pays_a_byte_for_its_choice() -> None:
    problem = Quadratics(d=8)
    channel = Channel((Layer("ef21_plus", EF21Plus()), Layer("topk", TopK(k=2))))
    sent = [r["comm/uplink_bytes"] / problem.n for r in quadratic(problem, rounds=3, channel=channel).metrics[1:]]
    assert sent[0] == gradient_bytes(8)
    names = [gradient_bytes(8, 2) + 1, gradient_bytes(8, 2, ".0.1.0") + 1]
    assert all(names[0] <= size <= names[1] for size in sent[1:])


def memory(result: Result, i: int) -> list[np.ndarray]:
    return leaves(result.stores[0].read([i])[1])


@pytest.mark.parametrize("batching", ["auto", "loop"])
def test_absent_clients_links_stay_as_they_were(batching: str, quadratics: Quadratics, tmp_path: Path) -> None:
    channel = Channel((Layer("econtrol", EControl()), Layer("topk", TopK(k=1))))
    listed = ([0, 1], [1, 2], [2, 3])
    runs = [
        quadratic(quadratics, rounds=t, schedule=cohorts(tmp_path, *listed[:t]), channel=channel, batching=batching)
        for t in (1, 2, 3)
    ]
    for then, now, absent in ((0, 2, 0), (1, 2, 1)):
        for a, b in zip(memory(runs[then], absent), memory(runs[now], absent), strict=True):
            assert np.array_equal(a, b)
    assert not any(array.any() for array in memory(runs[2], 4)), "never took part"
    assert any(not np.array_equal(a, b) for a, b in zip(memory(runs[1], 2), memory(runs[2], 2), strict=True))


def test_downlink_bytes_go_to_every_client_of_the_cohort(quadratics: Quadratics, tmp_path: Path) -> None:
    d = quadratics.d
    downlink = Channel((Layer("ef14", EF14()), Layer("topk", TopK(k=1))))
    result = quadratic(quadratics, rounds=2, schedule=cohorts(tmp_path, [0, 1, 2], [4]), downlink=downlink)
    value = torch.zeros(1, dtype=torch.float64)
    each = len(wire.encode({"x": (value, (wire.Positions(torch.tensor([0]), d),))}))
    dense = len(wire.encode({"x": torch.zeros(d, dtype=torch.float64)}))
    assert [r["comm/downlink_bytes"] for r in result.metrics[1:]] == [3 * each, each]
    assert [r["comm/uplink_bytes"] for r in result.metrics[1:]] == [3 * gradient_bytes(d), gradient_bytes(d)]
    assert result.metrics[-1]["comm/downlink_ratio"] == pytest.approx(dense / each)
    assert "comm/uplink_ratio" not in result.metrics[-1]


def test_an_encoded_downlink_gives_the_same_bits(quadratics: Quadratics) -> None:
    layers = (Layer("ef14", EF14()), Layer("topk", TopK(k=2)), FP16)
    counted, encoded = (quadratic(quadratics, downlink=Channel(layers, encode)) for encode in (False, True))
    assert counted.summary["digest"] == encoded.summary["digest"]
    assert counted.metrics[-1]["comm/downlink_total_bytes"] == encoded.metrics[-1]["comm/downlink_total_bytes"]


def test_the_data_set_is_not_written_to(quadratics: Quadratics) -> None:
    """Neither by the rehearsal nor by loading the final model."""
    data = quadratics.dataset()
    before = data.x0.copy()
    for batching in ("auto", "loop"):
        result = simulate(
            SGD(lr=0.1),
            data=data,
            partition=Natural(),
            model=linear_zero,
            rounds=2,
            channel=Channel((TOPK,)),
            engine=Engine(backend="serial", dtype="float64", batching=batching),
            trajectory=True,
        )
        assert np.array_equal(data.x0, before)
        assert np.array_equal(result.trajectory[0], before)


SEVERAL = {
    "scaffold": (Scaffold(lr=0.05), Mean(weights="uniform"), ("update", "c")),
    "fedcm": (FedCM(lr=0.05), Mean(), ("update",)),
    "fedgh": (FedGH(lr=0.05), Stack(), ()),
}


@pytest.mark.parametrize("name", SEVERAL)
@pytest.mark.parametrize("layers", [(TOPK, FP16), (Layer("qsgd", QSGD()),)], ids=["topk_fp16", "qsgd"])
def test_messages_of_several_fields_as_real_bytes(name: str, layers: tuple[Layer, ...], squares: Dataset) -> None:
    algorithm, rule, compressed = SEVERAL[name]
    results = [
        simulate(
            algorithm,
            data=squares,
            partition=Dirichlet(clients=5, alpha=0.5, min_samples=2),
            model=small_cnn,
            rounds=2,
            schedule=Draws(cohort=3),
            local=Local(epochs=1, batch_size=16),
            aggregate=rule,
            channel=Channel(layers, encode),
            downlink=Channel((FP16,), encode),
            engine=Engine(backend="serial"),
        )
        for encode in (False, True)
    ]
    counted, encoded = results
    assert counted.summary["digest"] == encoded.summary["digest"]
    for a, b in zip(counted.metrics, encoded.metrics, strict=True):
        assert {t: x for t, x in a.items() if "comm" in t} == {t: x for t, x in b.items() if "comm" in t}
    last = counted.metrics[-1]
    assert (last["comm/uplink_ratio"] > 1.5) == bool(compressed)
    assert last["comm/downlink_ratio"] > 1.5
