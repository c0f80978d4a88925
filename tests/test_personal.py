"""Several architectures in one run and what their clients exchange: FedGH's mechanism, evaluation, store, refusals."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fedsim import Engine, Evaluate, Local, Mean, Result, simulate
from fedsim.aggregate import Stack, fold, merge_all
from fedsim.algorithms.fd import FD
from fedsim.algorithms.fedavg import FedAvg
from fedsim.algorithms.fedavg_ft import FedAvgFT
from fedsim.algorithms.fedgh import FedGH
from fedsim.algorithms.fedper import FedPer
from fedsim.algorithms.fedproto import FedProto
from fedsim.algorithms.fedrep import FedRep
from fedsim.algorithms.fml import FML
from fedsim.algorithms.kit.shared_head import GlobalHead
from fedsim.algorithms.lg_fedavg import LGFedAvg
from fedsim.algorithms.mesa import Mesa
from fedsim.algorithms.scaffold import Scaffold
from fedsim.algorithms.standalone import Standalone
from fedsim.assembly.configuration import build_run
from fedsim.channel import message, wire
from fedsim.data import Dataset, Split
from fedsim.errors import InputError
from fedsim.ground.layout import Layout
from fedsim.ground.tree import leaves, tree_map
from fedsim.models import build, fedgh_cnn, mlp
from fedsim.objective import Objective
from fedsim.partition import Natural
from fedsim.schedule import Cohorts
from fedsim.traits.declared import traits_of
from fedsim.types import Batch, Message, Owned, Round
from tests.test_cli import composed
from tests.test_engine import Given

CLASSES, CLIENTS = 4, 6
OWNED = [(0, 1), (2, 3), (1, 2), (0, 3), (1,), (0, 1, 2, 3)]
SIZES = (8, 10, 6, 9, 5, 12)
ARCHITECTURES = [partial(mlp, hidden=(h, 6), activation="tanh") for h in (7, 3, 5, 9)]


def table(change: int | None = None) -> Dataset:
    """Six clients with classes of their own; ``change`` names one whose first example is another."""
    random = np.random.default_rng(0)
    y = np.concatenate([np.resize(owned, n) for owned, n in zip(OWNED, SIZES, strict=True)])
    group = np.repeat(np.arange(CLIENTS), SIZES)
    x = random.normal(size=(len(y), 5)) + y[:, None]
    if change is not None:
        x[np.flatnonzero(group == change)[0]] += 0.5
    return Dataset("table", Split(x, y, group), Split(x.copy(), y, group), "classification", CLASSES)


def run(rule: Any, rounds: int = 2, data: Dataset | None = None, **options: Any) -> Result:
    engine = {key: options.pop(key) for key in list(options) if key in Engine.__dataclass_fields__}
    defaults: dict[str, Any] = {
        "partition": Natural(),
        "model": ARCHITECTURES,
        "local": Local(steps=2, batch_size=4),
        "aggregate": Stack() if traits_of(rule).stacked else Mean(),
        "evaluate": Evaluate(clients=True),
    }
    result = simulate(
        rule,
        data=data or table(),
        rounds=rounds,
        engine=Engine(**{"backend": "serial", **engine}),
        **{**defaults, **options},
    )
    assert result.status == "finished", result.message
    return result


# --- FedGH: the header is trained on the server, by itself, and is what clients get


class Heard(NamedTuple):
    """What a client of ``Listens`` keeps."""

    x: Tensor
    head: Tensor  # [C, f + 1] of its last broadcast


class Archive(NamedTuple):
    """What the server of ``Listens`` keeps."""

    head: Tensor
    values: Tensor  # [c, C, f] of the last uploads
    mask: Tensor  # [c, C]


@dataclass(frozen=True)
class Listens(FedGH):
    """FedGH whose clients note the header that they received, and whose server notes what it received."""

    def init_client(self, x0: Tensor) -> Any:
        return Heard(x0, x0.new_zeros(CLASSES, 7))

    def local(self, obj: Objective, client: Any, got: Message, rnd: Round) -> tuple[Message, Any]:
        sent, after = super().local(obj, client, got, rnd)
        return sent, Heard(after.x, got["head"])

    def init_server(self, x0: Tensor) -> Any:
        return Archive(x0, x0.new_zeros(0), x0.new_zeros(0))

    def server(self, server: Any, received: Message, rnd: Round) -> Any:
        return Archive(super().server(GlobalHead(server.head), received, rnd).head, *received["representations"])


RULE = Listens(lr=0.1, header_lr=0.1)


def test_the_servers_header_is_trained_kept_and_broadcast_to_every_architecture() -> None:
    """In the released code the broadcast header stays at its random start for ever."""
    before = build(ARCHITECTURES[0], (5,), CLASSES, {}, 0)
    initial = Layout.of(before).split(Layout.of(before).flatten(before))[1]
    heads = [initial, *(run(RULE, rounds=rounds).server.head for rounds in (1, 2, 3))]
    for old, new in pairwise(heads):
        assert (new - old).abs().max() > 1e-3, "the header was not trained"
    for rounds in (1, 2, 3):
        result = run(RULE, rounds=rounds)
        for i in range(CLIENTS):  # four extractors, one header: the server's last one, bit for bit
            assert torch.equal(result.client(i).head, heads[rounds - 1])
        assert len({result.client(i).x.shape for i in range(CLIENTS)}) == len(ARCHITECTURES)


def test_no_gradient_of_the_server_reaches_a_client() -> None:
    """Whatever the server does after the first round, the clients' models after it are the same."""
    gentle, rough = (run(Listens(lr=0.1, header_lr=lr), rounds=1) for lr in (1e-3, 5.0))
    assert not torch.equal(gentle.server.head, rough.server.head)
    for i in range(CLIENTS):
        assert torch.equal(gentle.client(i).x, rough.client(i).x)


def test_clients_send_one_representation_of_each_class_that_they_own() -> None:
    result = run(RULE, rounds=1, jobs=4, block=2)
    mask = torch.zeros(CLIENTS, CLASSES, dtype=torch.bool)
    for i, owned in enumerate(OWNED):
        mask[i, list(owned)] = True
    assert torch.equal(result.server.mask, mask), "rows in client order, only the classes that a client holds"
    assert result.server.values.shape == (CLIENTS, CLASSES, 6)
    assert not result.server.values[~mask].any()
    data = table()
    for i in range(CLIENTS):  # the plain mean of the trained extractor's features, by a torch module of its own
        net = build(ARCHITECTURES[i % 4], (5,), CLASSES, {}, 1)
        Layout.of(net).load(net, result.client(i).x)
        mine = torch.from_numpy(data.train.x[data.train.group == i]).float()
        y = torch.from_numpy(data.train.y[data.train.group == i])
        with torch.no_grad():
            features = net.body(mine)  # type: ignore[operator]
        for c in OWNED[i]:
            torch.testing.assert_close(result.server.values[i, c], features[y == c].mean(0), rtol=0, atol=1e-5)


@pytest.mark.parametrize("label", [0, 2])
def test_one_step_on_one_pair_is_the_hand_computation(label: int) -> None:
    """theta.W -= eta (softmax(theta(r)) - onehot) r^T, theta.b -= eta (softmax - onehot), eta decayed."""
    random = np.random.default_rng(1)
    w, b, r = random.normal(size=(3, 2)), random.normal(size=3), random.normal(size=2)
    theta = torch.from_numpy(np.concatenate([w, b[:, None]], 1))
    values, mask = torch.zeros(1, 3, 2, dtype=torch.float64), torch.zeros(1, 3, dtype=torch.bool)
    values[0, label], mask[0, label] = torch.from_numpy(r), True
    rule = FedGH(lr=0.1, lr_decay=0.5, header_lr=0.3)
    after = rule.server(GlobalHead(theta), {"representations": Owned(values, mask)}, Round(2, (0,), 1)).head.numpy()
    e = np.exp(w @ r + b)
    error = e / e.sum() - np.eye(3)[label]
    np.testing.assert_allclose(after[:, :2], w - 0.3 * 0.25 * np.outer(error, r), rtol=0, atol=1e-14)
    np.testing.assert_allclose(after[:, 2], b - 0.3 * 0.25 * error, rtol=0, atol=1e-14)
    assert torch.equal(theta, torch.from_numpy(np.concatenate([w, b[:, None]], 1))), "the old header was overwritten"


# --- what travels: the counts of the papers, with FedGH's five networks

CNNS = [partial(fedgh_cnn, variant=v) for v in (1, 2, 3, 4, 5)]


def pictures(classes: int, each: int, clients: int) -> Dataset:
    """One random 3x32x32 image for every class of every client, ``each`` classes a client, all classes owned."""
    random = np.random.default_rng(0)
    y = np.concatenate([(each * i + np.arange(each)) % classes for i in range(clients)])
    x = random.integers(0, 256, size=(len(y), 3, 32, 32)).astype(np.uint8)
    split = Split(x, y, np.repeat(np.arange(clients), each))
    return Dataset("pictures", split, None, "classification", classes, mean=(0.5,) * 3, std=(0.25,) * 3)


def plain(name: str) -> int:
    """Bytes of the wire around one dense matrix: number of fields, name, dtype, dimensions."""
    return 1 + (1 + len(name)) + 1 + (1 + 2 * 4)


@pytest.mark.parametrize(("classes", "each", "clients"), [(10, 2, 5), (100, 10, 10)])
@pytest.mark.parametrize("method", ["fedgh", "lg_fedavg", "fedproto"])
def test_bytes_are_the_papers_floats(method: str, classes: int, each: int, clients: int) -> None:
    rule: Any = {"fedgh": FedGH, "lg_fedavg": LGFedAvg, "fedproto": FedProto}[method](lr=0.01)
    local = Local(steps=1, batch_size="full")
    never = Evaluate(every=10**6)
    result = run(rule, data=pictures(classes, each, clients), model=CNNS, local=local, evaluate=never)
    last = result.metrics[-1]
    up, down = (last[f"comm/{way}link_bytes"] / clients for way in ("up", "down"))
    if method == "fedgh":
        floats = {10: 6_010, 100: 55_100}[classes]
        assert down == plain("head") + 4 * 501 * classes
        positions = up - plain("representations") - 4 * 500 * each
        sent = [500 * each, 501 * classes]
    elif method == "lg_fedavg":
        floats = {10: 10_020, 100: 100_200}[classes]
        assert up == down == plain("head") + 4 * 501 * classes
        positions, sent = 4, [501 * classes, 501 * classes]
    else:
        floats = {10: 6_000, 100: 55_000}[classes]
        positions = up - plain("prototypes") - 4 * 500 * each
        assert 0 < down - plain("prototypes") - 4 * 500 * classes <= 24
        sent = [500 * each, 500 * classes]
        first = result.metrics[1]["comm/downlink_bytes"] / clients
        assert 0 < first - plain("prototypes") <= 24, "there are no prototypes yet"
    assert sum(sent) == floats
    assert 0 < positions <= 24  # which classes: at most a bit for each and some counts
    assert last["comm/uplink_total_bytes"] == sum(record.get("comm/uplink_bytes", 0) for record in result.metrics)


rows = st.integers(1, 70).flatmap(
    lambda r: st.tuples(st.lists(st.lists(st.booleans(), min_size=r, max_size=r), min_size=1, max_size=4), st.just(r))
)


@settings(max_examples=60, deadline=None)
@given(rows, st.sampled_from([torch.float32, torch.float64]))
def test_owned_rows_on_the_wire_weigh_what_their_bytes_weigh(masks: tuple[Any, int], dtype: torch.dtype) -> None:
    mask = torch.tensor(masks[0])
    values = torch.randn(*mask.shape, 3, dtype=dtype) * mask[..., None]
    dense = torch.randn(len(mask), 5)
    many: Message = {"rows": Owned(values, mask), "x": dense}
    total = 0
    for one_values, one_mask, one_x in zip(values, mask, dense, strict=True):
        one: Message = {"rows": Owned(one_values, one_mask), "x": one_x}
        data = wire.encode(message.on_the_wire(one))
        assert message.message_size(one) == len(data)
        total += len(data)
        back = message.from_the_wire(wire.decode(data))
        for a, b in zip(leaves(back), leaves(one), strict=True):
            assert torch.equal(a, b)
    assert message.sizes(many, len(mask)) == total


# --- server rules: several jobs, rows that some have


def parts_of(rule: Any, messages: list[Message], weights: list[float], jobs: list[list[int]]) -> list[Any]:
    """What a worker has summed for every job, blocks of two clients."""
    out = []
    for job in jobs:
        sums: Any = {}
        for at in range(0, len(job), 2):
            block = job[at : at + 2]
            stacked = tree_map(lambda *t: torch.stack(t), *(messages[i] for i in block))
            sums = rule.add(sums, tuple(block), stacked, torch.tensor([weights[i] for i in block], dtype=torch.float64))
        out.append(tree_map(lambda t: t.numpy(), sums))
    return out


@st.composite
def cohorts(draw: Any) -> tuple[list[Message], list[float], list[list[int]], list[int]]:
    """Messages, weights, a cut of the shuffled clients into jobs, and the runs of jobs that go to one worker."""
    n = draw(st.integers(1, 9))
    random = np.random.default_rng(draw(st.integers(0, 10**6)))
    messages: list[Message] = []
    for _ in range(n):
        mask = torch.from_numpy(random.random(5) < 0.5)
        scale = 10.0 ** random.integers(-8, 8)  # sums in another order are other bits
        values = torch.from_numpy(scale * random.normal(size=(5, 3))) * mask[:, None]
        messages.append({"rows": Owned(values, mask), "x": torch.from_numpy(scale * random.normal(size=4))})
    clients = random.permutation(n).tolist()
    cuts = sorted(draw(st.sets(st.integers(1, n - 1), max_size=6))) if n > 1 else []
    jobs = [clients[a:b] for a, b in zip([0, *cuts], [*cuts, n], strict=True)]
    ends = sorted(draw(st.sets(st.integers(1, len(jobs)), max_size=3)) | {len(jobs)})
    return messages, [float(w) for w in random.integers(1, 50, size=n)], jobs, ends


def distributed(rule: Any, parts: list[Any], ends: list[int]) -> Any:
    """Every worker folds its run of jobs, the driver folds the rest."""
    held: Any = {}
    for first, last in zip([0, *ends], ends, strict=False):
        mine: Any = {}
        for j in range(first, last):
            mine = fold({**mine, (j, 1): tree_map(np.copy, parts[j])}, rule.merge)
        held |= mine
    return merge_all(held, rule.merge)


@settings(max_examples=150, deadline=None)
@given(cohorts())
def test_mean_of_rows_is_over_their_owners_whoever_summed_what(drawn: Any) -> None:
    messages, weights, jobs, ends = drawn
    rule = Mean()
    parts = parts_of(rule, messages, weights, jobs)
    one, other = (rule.finish(distributed(rule, parts, e), sum(weights), torch.float64) for e in (ends, [len(jobs)]))
    for a, b in zip(leaves(one), leaves(other), strict=True):
        assert torch.equal(a, b), "the distribution of jobs over workers changed a bit"
    w = np.array(weights)
    x = np.stack([m["x"].numpy() for m in messages])
    np.testing.assert_allclose(one["x"], (w[:, None] * x).sum(0) / w.sum(), rtol=1e-11, atol=1e-14 * np.abs(x).max())
    for row in range(5):
        owners = [i for i, m in enumerate(messages) if m["rows"].mask[row]]
        assert bool(one["rows"].mask[row]) == bool(owners)
        values = np.stack([messages[i]["rows"].values[row].numpy() for i in owners]) if owners else np.zeros((1, 3))
        want = (w[owners, None] * values).sum(0) / w[owners].sum() if owners else np.zeros(3)
        np.testing.assert_allclose(one["rows"].values[row], want, rtol=1e-11, atol=1e-14 * np.abs(values).max())


@settings(max_examples=100, deadline=None)
@given(cohorts())
def test_stack_is_in_client_order_whoever_held_what(drawn: Any) -> None:
    messages, weights, jobs, ends = drawn
    rule = Stack()
    parts = parts_of(rule, messages, weights, jobs)
    got = rule.finish(distributed(rule, parts, ends), sum(weights), torch.float64)
    assert set(got) == {"rows", "x", "weights"}
    assert torch.equal(got["x"], torch.stack([m["x"] for m in messages]))
    assert torch.equal(got["rows"].values, torch.stack([m["rows"].values for m in messages]))
    assert torch.equal(got["rows"].mask, torch.stack([m["rows"].mask for m in messages]))
    np.testing.assert_allclose(got["weights"], np.array(weights) / sum(weights), rtol=1e-14)


@pytest.mark.parametrize("options", [{"jobs": 1}, {"jobs": 2, "block": 2}, {"jobs": 4, "block": 3}], ids=str)
def test_the_server_gets_clients_in_order_whatever_the_cut(options: dict[str, Any]) -> None:
    """Clients of four architectures come from different jobs."""
    one = run(Listens(lr=0.1), rounds=1, dtype="float64", batching="loop")
    cut = run(Listens(lr=0.1), rounds=1, dtype="float64", **options)
    assert torch.equal(one.server.mask, cut.server.mask)
    torch.testing.assert_close(cut.server.values, one.server.values, rtol=0, atol=1e-10)  # float64, two local steps


# --- evaluation: every client at its own model, on its own test samples

RULES: list[Any] = [
    Standalone(lr=0.1),
    LGFedAvg(lr=0.1),
    LGFedAvg(lr=0.1, predict="global"),
    FedGH(lr=0.1, header_lr=0.1),
    FedProto(lr=0.1),
    FD(lr=0.1),
    FML(lr=0.1, common=1),
]


def test_own_models_are_evaluated_as_a_plain_loop_does() -> None:
    data = table()
    own: tuple[Any, ...] = tuple(np.flatnonzero(data.train.group == i) for i in range(CLIENTS))
    random = np.random.default_rng(5)
    test = Split(random.normal(size=(30, 5)) + 1.5, random.integers(CLASSES, size=30))
    order = random.permutation(26)  # samples 26 to 29 are nobody's
    tested = tuple(np.sort(order[a:b]) for a, b in ((0, 7), (7, 7), (7, 8), (8, 20), (20, 20), (20, 26)))
    given = Given(*own, test=tested)
    result = run(Standalone(lr=0.1), data=dataclasses.replace(data, test=test), partition=given)
    hits, losses, each = [], [], []
    for i, mine in enumerate(tested):
        net = build(ARCHITECTURES[i % 4], (5,), CLASSES, {}, 1)
        Layout.of(net).load(net, result.client(i).x)
        with torch.no_grad():
            z = net(torch.from_numpy(test.x[mine]).float())
        y = torch.from_numpy(test.y[mine])
        hits.append((z.argmax(1) == y).numpy())
        losses.append(nn.functional.cross_entropy(z, y, reduction="none").numpy())
        if len(mine):
            each.append(hits[-1].mean())
    last = result.metrics[-1]
    assert last["eval/accuracy"] == pytest.approx(np.concatenate(hits).mean(), abs=1e-12)
    assert last["eval/loss"] == pytest.approx(np.concatenate(losses).mean(), abs=1e-6)
    assert last["eval/client_accuracy_mean"] == pytest.approx(np.mean(each), abs=1e-12)
    assert last["eval/client_accuracy_std"] == pytest.approx(np.std(each), abs=1e-12)
    assert last["eval/client_accuracy_worst10"] == pytest.approx(min(each), abs=1e-12)
    fewer = tuple(rows if i != 3 else rows[:0] for i, rows in enumerate(tested))
    less = run(Standalone(lr=0.1), data=dataclasses.replace(data, test=test), partition=Given(*own, test=fewer))
    kept = np.concatenate([h for i, h in enumerate(hits) if i != 3])
    assert less.metrics[-1]["eval/accuracy"] == pytest.approx(kept.mean(), abs=1e-12)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_only_a_shared_model_is_the_runs_model(rule: Any) -> None:
    result = run(rule, rounds=1)
    if not isinstance(rule, FML):
        assert result.model is None
        return
    assert result.model is not None
    assert torch.equal(Layout.of(result.model).flatten(result.model), result.server.x)
    assert len(result.server.x) == Layout.of(build(ARCHITECTURES[1], (5,), CLASSES, {}, 0)).d


def test_the_digest_covers_every_clients_state() -> None:
    digests = {run(Standalone(lr=0.1), rounds=1, data=table(i)).summary["digest"] for i in (None, *range(CLIENTS))}
    assert len(digests) == CLIENTS + 1


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{type(rule).__name__}")
def test_who_does_not_take_part_keeps_its_state_bit_for_bit(rule: Any, tmp_path: Path) -> None:
    file = tmp_path / "cohorts.json"
    file.write_text(json.dumps([[0, 1, 4], [1, 2], [1, 5]]))
    after = [run(rule, rounds=rounds, schedule=Cohorts(path=str(file))) for rounds in (1, 2, 3)]

    def moved(a: Result, b: Result) -> set[int]:
        pairs = ((i, zip(leaves(a.client(i)), leaves(b.client(i)), strict=True)) for i in range(CLIENTS))
        return {i for i, both in pairs if any(not torch.equal(x, y) for x, y in both)}

    assert moved(after[0], after[1]) == {1, 2}
    assert moved(after[1], after[2]) == {1, 5}
    start = Layout.of(build(ARCHITECTURES[3], (5,), CLASSES, {}, 0))
    untouched = start.flatten(build(ARCHITECTURES[3], (5,), CLASSES, {}, 0))
    assert torch.equal(after[2].client(3)[0], untouched)


def test_fedproto_never_guesses_a_class_without_prototype(tmp_path: Path) -> None:
    """Long features: the distances to the prototypes are large numbers themselves."""
    file = tmp_path / "cohorts.json"
    file.write_text(json.dumps([[4], [4]]))  # owns class 1 only
    data = table()
    far = [dataclasses.replace(split, x=30_000 * split.x) for split in (data.train, data.test) if split is not None]
    rule = FedProto(lr=1e-9, predict="prototype")
    wide = [partial(mlp, hidden=(h, 6), activation="relu") for h in (200, 300, 400, 500)]
    result = run(
        rule,
        data=dataclasses.replace(data, train=far[0], test=far[1]),
        model=wide,
        schedule=Cohorts(path=str(file)),
    )
    assert result.server.prototypes[1].square().sum() > 1e7, "the features are short: the test proves nothing"
    assert result.metrics[-1]["eval/accuracy"] == pytest.approx(np.mean(data.train.y == 1), abs=1e-12)


@dataclass(frozen=True)
class Pulled(FedAvg):
    """FedAvg with a term of its own in the loss."""

    def local(self, obj: Objective, client: Any, got: Message, rnd: Round) -> tuple[Message, Any]:
        return super().local(obj.plus(lambda z, r, y: z.square().sum(-1), lambda batch: ()), client, got, rnd)


@dataclass(frozen=True)
class ByExample(FedAvg):
    """Asks for gradients by example of a loss with a term, which these do not have."""

    clipped: bool = True

    def local(self, obj: Objective, client: Any, got: Message, rnd: Round) -> tuple[Message, Any]:
        pulled, x = obj.plus(lambda z, r, y: z.square().sum(-1), lambda batch: ()), got["x"]

        def step(y: Tensor, batch: Batch) -> Tensor:
            return y - pulled.clipped_sum(y, batch, 1.0) if self.clipped else y - pulled.example_grads(y, batch).sum(0)

        return {"update": obj.run(step, x) - x}, client


@pytest.mark.parametrize("clipped", [True, False])
def test_a_term_is_never_lost_in_silence(clipped: bool) -> None:
    with pytest.raises(InputError, match=r"has a term beside the loss, which .* does not know"):
        run(ByExample(lr=0.1, clipped=clipped), model=mlp)


def test_a_term_never_replaces_another_in_silence() -> None:
    run(Pulled(lr=0.1), model=mlp)
    with pytest.raises(InputError, match="has a term already"):
        run(Mesa(Pulled(lr=0.1), start=0), model=mlp)


# --- refusals, before anything is started: at this address nobody listens

NOWHERE = {"backend": "ray", "address": "127.0.0.1:1"}


def headless(input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, outputs))


@pytest.mark.parametrize(
    ("rule", "options", "says"),
    [
        (FedAvg(lr=0.1), {}, r"model must be one architecture for FedAvg, .* got 4; .*fedgh"),
        (FedAvgFT(lr=0.1), {}, r"model must be one architecture for FedAvgFT"),
        (Scaffold(lr=0.1), {"aggregate": Mean(weights="uniform")}, r"model must be one architecture for Scaffold"),
        (Mesa(FedAvg(lr=0.1)), {}, r"model must be one architecture for Mesa"),
        (FedPer(lr=0.1), {}, r"model must be one architecture for FedPer, whose server averages bodies"),
        (FedRep(lr=0.1), {}, r"model must be one architecture for FedRep"),
        (FedGH(lr=0.1), {"aggregate": Mean()}, r"aggregate must be stack for FedGH, got 'Mean'; add aggregate=stack"),
        (FD(lr=0.1), {"aggregate": Mean()}, r"aggregate must be stack for FD"),
        (FedAvg(lr=0.1), {"aggregate": Stack(), "model": mlp}, r"aggregate must be a mean for FedAvg, got 'Stack'"),
        (
            FedGH(lr=0.1),
            {"model": [mlp, partial(mlp, hidden=(9,))]},
            r"model must have heads of one shape .* for FedGH, .*\(4, 9\).*\(4, 200\)",
        ),
        (FedProto(lr=0.1), {"model": [mlp, partial(mlp, hidden=(9,))]}, r"heads of one shape .* for FedProto"),
        (LGFedAvg(lr=0.1), {"model": [mlp, headless]}, r"linear layer named head for LGFedAvg"),
        (FedPer(lr=0.1), {"model": headless}, r"linear layer named head for FedPer"),
        (FML(lr=0.1, common=4), {}, r"algorithm.common must be the number of one of the run's 4 models, 0..3, got 4"),
        (Standalone(lr=0.1), {"trajectory": True}, r"logger.trajectory must be false for Standalone"),
        (FedGH(lr=0.1), {"trajectory": True}, r"logger.trajectory must be false for FedGH"),
        (FedPer(lr=0.1), {"trajectory": True, "model": mlp}, r"logger.trajectory must be false for FedPer"),
        (FedGH(lr=0.1), {"model": []}, r"model must be one or more architectures, got 'none'"),
    ],
    ids=lambda value: type(value).__name__ if dataclasses.is_dataclass(value) else None,
)
def test_what_does_not_go_together_is_refused_at_once(rule: Any, options: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        run(rule, **{**NOWHERE, **options})


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: FedGH(lr=0.1, header_lr=0.0), "header_lr must be > 0, got 0.0"),
        (lambda: FedProto(lr=0.1, ld=-0.1), "ld must be >= 0, got -0.1"),
        (lambda: FD(lr=0.1, gamma=-1.0), "gamma must be >= 0, got -1.0"),
        (lambda: FML(lr=0.1, alpha=1.1), r"alpha must be in \[0, 1\], got 1.1"),
        (lambda: FML(lr=0.1, beta=-0.1), r"beta must be in \[0, 1\], got -0.1"),
        (lambda: FML(lr=0.1, momentum=0.9), "momentum must be 0"),
        (lambda: FedRep(lr=0.1, head_passes=0), "head_passes must be >= 1, got 0"),
        (lambda: Mesa(FedAvg(lr=0.1), lam=-1.0), "lam must be >= 0, got -1.0"),
        (lambda: Mesa(FedAvg(lr=0.1), tau=0.0), "tau must be > 0, got 0.0"),
        (lambda: Mesa(FedAvg(lr=0.1), decay=1.0), r"decay must be in \[0, 1\), got 1.0"),
        (lambda: Mesa(FedAvg(lr=0.1), start=-1), "start must be >= 0, got -1"),
        (lambda: Mesa(FedGH(lr=0.1)), "base must be a method whose server averages whole models, .*got 'FedGH'"),
        (lambda: Mesa(FedAvgFT(lr=0.1)), "base must .* which clients predict with, .*got 'FedAvgFT'"),
        (lambda: Mesa(Mesa(FedAvg(lr=0.1))), "base must .* and not MESA, got 'Mesa around FedAvg'"),
        (lambda: Mesa(FML(lr=0.1)), "base must be a method whose server averages whole models, .*got 'FML'"),
        *((lambda rule=rule: rule(lr=0.0), "lr must be > 0") for rule in (Standalone, LGFedAvg, FedPer, FedRep, FedGH)),
        *((lambda rule=rule: rule(lr=0.1, momentum=1.0), r"momentum must be in \[0, 1\)") for rule in (FedProto, FD)),
        (lambda: FedAvgFT(lr=0.1, server_lr=0.0), "server_lr must be > 0"),
    ],
)
def test_bad_values_are_refused(make: Callable[[], Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        make()


NODE = {"_target_": "fedsim.models.mlp"}


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ({"architectures": []}, r"model.architectures must be a list of models, got \[\]"),
        ({"architectures": NODE}, r"model.architectures must be a list of models, got \{"),
        ({"architectures": "mlp"}, r"model.architectures must be a list of models, got 'mlp'"),
        ({"architectures": [NODE], "hidden": [3]}, r"unknown key model.hidden .*keys of model: architectures"),
        ({"architectures": [NODE, {**NODE, "hiden": [3]}]}, r"unknown key model.architectures\[1\].hiden"),
        ({"architectures": [NODE, "mlp"]}, r"model.architectures\[1\] must be a mapping with _target_, got 'mlp'"),
        ({"architectures": [{**NODE, "hidden": 3}]}, r"model.architectures\[0\].hidden must be a list of an int"),
    ],
)
def test_architectures_of_a_configuration_are_checked(model: Any, says: str) -> None:
    cfg = composed("algorithm=fedgh")
    with pytest.raises(InputError, match=says):
        build_run({**cfg, "model": model})


def test_the_options_of_a_method_are_checked_in_a_configuration() -> None:
    with pytest.raises(InputError) as error:
        build_run(composed("algorithm=fedgh", "algorithm.header_lr=-1", "algorithm.predict=nearest"))
    assert "algorithm.predict must be one of local, global, got 'nearest'" in str(error.value)
    with pytest.raises(InputError, match=r"algorithm.header_lr must be > 0, got -1"):
        build_run(composed("algorithm=fedgh", "algorithm.header_lr=-1"))
    chosen = build_run(composed("algorithm=fedgh", "model=fedgh_heterogeneous"))
    assert len(chosen["model"]) == 5
    assert [factory.options["variant"] for factory in chosen["model"]] == [1, 2, 3, 4, 5]
