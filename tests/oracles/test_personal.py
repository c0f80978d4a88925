"""Every personalised method against its numpy loop, with one and with several architectures, and the identities."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fedsim import Engine, Evaluate, Local, Mean, Result, simulate
from fedsim.aggregate import Stack
from fedsim.algorithms.fd import FD
from fedsim.algorithms.fedavg import FedAvg
from fedsim.algorithms.fedavg_ft import FedAvgFT
from fedsim.algorithms.fedgh import FedGH
from fedsim.algorithms.fedper import FedPer
from fedsim.algorithms.fedproto import FedProto
from fedsim.algorithms.fedrep import FedRep
from fedsim.algorithms.fml import FML
from fedsim.algorithms.lg_fedavg import LGFedAvg
from fedsim.algorithms.mesa import Mesa
from fedsim.algorithms.scaffold import Scaffold
from fedsim.algorithms.standalone import Standalone
from fedsim.data import Dataset, Split
from fedsim.ground.tree import leaves
from fedsim.models import BodyHead
from fedsim.schedule import All, Cohorts
from fedsim.traits.declared import traits_of
from tests.oracles import personal_loops as loops
from tests.oracles.personal_loops import Net, Problem, Trace
from tests.test_engine import Given

TIGHT = 1e-10  # float64 through about twenty local steps of a network of three layers
INPUTS, FEATURES, CLASSES, STEPS = 4, 3, 4, 3
WIDTHS = (5, 2, 4)
COHORTS = [[0, 1, 2], [1, 4], [3], [0, 2, 3, 4], [0, 1, 2, 3, 4], [2], [0, 4], [1, 2, 3]]
EVERYBODY = [list(range(5))]
OWNED = [(0, 1), (1, 2, 3), (2,), (0, 3), (0, 1, 2)]  # classes of every client
TRAIN, TEST, NOBODYS = (6, 9, 4, 11, 7), (5, 0, 3, 8, 4), 6


def network(width: int, seed: int) -> BodyHead:
    """The network of the numpy loops, its parameters drawn here."""
    body = nn.Sequential(nn.Linear(INPUTS, width), nn.Tanh(), nn.Linear(width, FEATURES), nn.Tanh())
    model = BodyHead(body, nn.Linear(FEATURES, CLASSES))
    random = np.random.default_rng(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.from_numpy(random.normal(size=p.shape)))
    return model


def world(widths: tuple[int, ...]) -> tuple[Dataset, Given, list[BodyHead], Problem]:
    """What fedsim gets and what the loops get. Examples of different clients lie mixed in the data set."""
    random = np.random.default_rng(0)
    centers = 2 * random.normal(size=(CLASSES, INPUTS))

    def split(sizes: tuple[int, ...], spare: int) -> tuple[Split, tuple[Any, ...]]:
        y = np.concatenate([random.choice(OWNED[i], size=n) for i, n in enumerate(sizes)])
        y = np.concatenate([y, random.integers(CLASSES, size=spare)])
        for i, n in enumerate(sizes):  # everybody has all of its classes, where there is room
            first = sum(sizes[:i])
            y[first : first + min(n, len(OWNED[i]))] = OWNED[i][:n]
        x = centers[y] + random.normal(size=(len(y), INPUTS))
        order = random.permutation(len(y))
        place = np.argsort(order)  # example j lies at place[j]
        ends = np.cumsum(sizes)
        return Split(x[order], y[order]), tuple(np.sort(place[e - n : e]) for e, n in zip(ends, sizes, strict=True))

    (train, own), (test, tested) = split(TRAIN, 0), split(TEST, NOBODYS)
    models = [network(width, seed) for seed, width in enumerate(widths)]
    nets = [Net(INPUTS, width, FEATURES, CLASSES) for width in widths]
    starts = [np.concatenate([p.detach().double().numpy().ravel() for p in m.parameters()]) for m in models]
    problem = Problem(
        [nets[i % len(nets)] for i in range(5)],
        [starts[i % len(nets)] for i in range(5)],
        [(train.x[rows], train.y[rows]) for rows in own],
        [test.x[rows] for rows in tested],
    )
    return Dataset("mixed", train, test, "classification", CLASSES), Given(*own, test=tested), models, problem


def run(
    algorithm: Any, widths: tuple[int, ...], cohorts: Any = None, folder: Path | None = None, **options: Any
) -> Result:
    data, partition, models, _ = world(widths)
    schedule: Any = All()
    if cohorts is not None and folder is not None:
        file = folder / "cohorts.json"
        file.write_text(json.dumps(cohorts))
        schedule = Cohorts(path=str(file))
    weights = options.pop("weights", "examples")
    rule = Stack() if traits_of(algorithm).stacked else Mean(weights=weights)
    result = simulate(
        algorithm,
        data=data,
        partition=partition,
        model=models,
        rounds=options.pop("rounds", len(cohorts or EVERYBODY)),
        schedule=schedule,
        local=options.pop("local", Local(steps=STEPS, batch_size="full")),
        aggregate=rule,
        engine=Engine(**{"backend": "serial", "dtype": "float64", **options}),
        evaluate=Evaluate(clients=True),
    )
    assert result.status == "finished", result.message
    return result


ONE, SEVERAL = WIDTHS[:1], WIDTHS
SGD = {"lr": 0.3, "lr_decay": 0.9}
MORE = SGD | {"momentum": 0.6, "weight_decay": 0.05, "clip": 0.4}
NP = {"lr": 0.3, "decay": 0.9}
NP_MORE = NP | {"momentum": 0.6, "wd": 0.05, "clip": 0.4}
HALF = {"lr": 0.3, "lr_decay": 0.9, "weight_decay": 0.05, "clip": 0.4}

METHODS: dict[str, tuple[Any, Any, dict[str, Any], tuple[int, ...]]] = {
    "standalone": (Standalone(**SGD), loops.standalone, NP, SEVERAL),
    "standalone_more": (Standalone(**MORE), loops.standalone, NP_MORE, SEVERAL),
    "lg_local": (LGFedAvg(**MORE), loops.lg_fedavg, NP_MORE | {"predict": "local"}, SEVERAL),
    "lg_global": (LGFedAvg(**SGD, predict="global"), loops.lg_fedavg, NP | {"predict": "global"}, SEVERAL),
    "fedper": (FedPer(**SGD), loops.fedper, NP, ONE),
    "fedper_more": (FedPer(**MORE), loops.fedper, NP_MORE, ONE),
    "fedrep": (FedRep(**SGD, head_passes=2), loops.fedper, NP | {"head_passes": 2}, ONE),
    "fedrep_more": (FedRep(**MORE, head_passes=2), loops.fedper, NP_MORE | {"head_passes": 2}, ONE),
    "fedavg_ft": (FedAvgFT(**SGD), loops.fedavg_ft, NP, ONE),
    "fedavg_ft_more": (FedAvgFT(**MORE), loops.fedavg_ft, NP_MORE, ONE),
    "fedgh": (FedGH(**SGD, header_lr=0.2), loops.fedgh, NP | {"header_lr": 0.2, "predict": "local"}, SEVERAL),
    "fedgh_global": (
        FedGH(**MORE, header_lr=0.2, predict="global"),
        loops.fedgh,
        NP_MORE | {"header_lr": 0.2, "predict": "global"},
        SEVERAL,
    ),
    "fedproto": (FedProto(**SGD, ld=0.8), loops.fedproto, NP | {"ld": 0.8, "predict": "head"}, SEVERAL),
    "fedproto_nearest": (
        FedProto(**MORE, ld=0.8, predict="prototype"),
        loops.fedproto,
        NP_MORE | {"ld": 0.8, "predict": "prototype"},
        SEVERAL,
    ),
    "fd": (FD(**SGD, gamma=0.7), loops.fd, NP | {"gamma": 0.7}, SEVERAL),
    "fd_more": (FD(**MORE, gamma=0.7), loops.fd, NP_MORE | {"gamma": 0.7}, SEVERAL),
    "fml": (FML(**SGD, alpha=0.7, beta=0.4), loops.fml, NP | {"alpha": 0.7, "beta": 0.4, "common": 0}, SEVERAL),
    "fml_more": (
        FML(**HALF, alpha=0.2, beta=0.6, common=1),
        loops.fml,
        NP | {"alpha": 0.2, "beta": 0.6, "common": 1, "wd": 0.05, "clip": 0.4},
        SEVERAL,
    ),
    "mesa_fedavg": (
        Mesa(FedAvg(**MORE), lam=0.8, tau=2.0, decay=0.6, start=1),
        loops.mesa,
        NP_MORE | {"lam": 0.8, "tau": 2.0, "average": 0.6, "begin": 1, "base": "fedavg"},
        ONE,
    ),
    "mesa_scaffold": (
        Mesa(Scaffold(**SGD), lam=0.8, tau=2.0, decay=0.6, start=0),
        loops.mesa,
        NP | {"lam": 0.8, "tau": 2.0, "average": 0.6, "begin": 0, "base": "scaffold"},
        ONE,
    ),
}


def scores(outputs: list[np.ndarray], tests: list[np.ndarray]) -> dict[str, float]:
    """What evaluation must report: all owned samples together, and every client that has some alone."""
    right = [z.argmax(1) == y for z, y in zip(outputs, tests, strict=True)]
    each = np.sort([hits.mean() for hits in right if len(hits)])
    flat, y = np.concatenate(outputs), np.concatenate(tests)
    worst = each[: int(np.ceil(len(each) / 10))]
    found = {
        "eval/accuracy": np.concatenate(right).mean(),
        "eval/client_accuracy_mean": each.mean(),
        "eval/client_accuracy_std": np.sqrt(((each - each.mean()) ** 2).mean()),
        "eval/client_accuracy_worst10": worst.mean(),
    }
    if np.isfinite(flat).all():
        found["eval/loss"] = -np.log(loops.softmax(flat)[np.arange(len(y)), y]).mean()
    return found


def same(states: Any, want: list[np.ndarray]) -> None:
    got = leaves(states)
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a.numpy(), b, rtol=TIGHT, atol=TIGHT)


@pytest.mark.parametrize("batching", ["auto", "loop"])
@pytest.mark.parametrize("name", METHODS)
def test_states_and_metrics_equal_numpy_loop(name: str, batching: str, tmp_path: Path) -> None:
    """A round of everybody, and then rounds of some."""
    algorithm, loop, keys, widths = METHODS[name]
    cohorts = EVERYBODY + COHORTS
    weights = "uniform" if "scaffold" in name or "fedproto" in name else "examples"
    result = run(algorithm, widths, cohorts, tmp_path, batching=batching, weights=weights)
    data, partition, _, problem = world(widths)
    want: Trace = loop(problem, cohorts, STEPS, **keys)
    same(result.server, want.server)
    for i in range(problem.n):
        same(result.client(i), want.clients[i])
    tests = [data.test.y[rows] for rows in partition.test]  # type: ignore[union-attr]
    hidden = ("eval/loss", "eval/accuracy") if isinstance(algorithm, Mesa) else ()  # a global model: all samples count
    for record, outputs in zip(result.metrics, want.outputs, strict=True):
        for key, value in scores(outputs, tests).items():
            if key not in hidden:
                assert record[key] == pytest.approx(value, abs=TIGHT), key
    starts, ends = want.outputs[0], want.outputs[-1]
    moved = min(np.abs(a - b)[np.isfinite(b)].max() for a, b in zip(starts, ends, strict=True) if len(a))
    assert moved > 1e-2, "somebody did not move: the test proves nothing"


def test_fedproto_weights_by_examples_where_asked(tmp_path: Path) -> None:
    """The paper's rule: owners weigh by their examples."""
    _, loop, keys, widths = METHODS["fedproto"]
    result = run(METHODS["fedproto"][0], widths, COHORTS, tmp_path, weights="examples")
    same(result.server, loop(world(widths)[3], COHORTS, STEPS, **keys, weights=list(TRAIN)).server)


def models(result: Result) -> list[np.ndarray]:
    """Every client's own whole model, where that is what it keeps."""
    return [result.client(i)[0].numpy() for i in range(5)]


IDENTITIES = {
    "fedproto_ld0_is_standalone": (FedProto(**MORE, ld=0.0), Standalone(**MORE), SEVERAL),
    "fd_gamma0_is_standalone": (FD(**MORE, gamma=0.0), Standalone(**MORE), SEVERAL),
    "fml_alpha1_is_standalone": (FML(**HALF, alpha=1.0, beta=0.3), Standalone(**HALF), SEVERAL),
    "lg_predicts_otherwise_only": (LGFedAvg(**MORE), LGFedAvg(**MORE, predict="global"), SEVERAL),
    "fedgh_predicts_otherwise_only": (FedGH(**MORE), FedGH(**MORE, predict="global"), SEVERAL),
    "fedproto_predicts_otherwise_only": (FedProto(**MORE), FedProto(**MORE, predict="prototype"), SEVERAL),
}


@pytest.mark.parametrize("name", IDENTITIES)
def test_identities_of_the_clients_models(name: str, tmp_path: Path) -> None:
    first, second, widths = IDENTITIES[name]
    a, b = (run(rule, widths, COHORTS, tmp_path) for rule in (first, second))
    for x, y in zip(models(a), models(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=TIGHT, atol=TIGHT)
    if "otherwise" in name:
        assert a.metrics[-1]["eval/loss"] != pytest.approx(b.metrics[-1]["eval/loss"], abs=1e-6)


@pytest.mark.parametrize("common", [0, 2])
def test_fml_with_weights_of_one_is_standalone_and_fedavg(common: int, tmp_path: Path) -> None:
    """Nothing is taught: the shared model is FedAvg's of its architecture."""
    both = run(FML(**HALF, alpha=1.0, beta=1.0, common=common), SEVERAL, COHORTS, tmp_path)
    alone = run(Standalone(**HALF), SEVERAL, COHORTS, tmp_path)
    for x, y in zip(models(both), models(alone), strict=True):
        np.testing.assert_allclose(x, y, rtol=TIGHT, atol=TIGHT)
    data, partition, nets, _ = world(SEVERAL)
    file = tmp_path / "cohorts.json"
    average = simulate(
        FedAvg(**HALF),
        data=data,
        partition=partition,
        model=nets[common],
        rounds=len(COHORTS),
        schedule=Cohorts(path=str(file)),
        local=Local(steps=STEPS, batch_size="full"),
        engine=Engine(backend="serial", dtype="float64"),
    )
    np.testing.assert_allclose(both.server.x, average.server.x, rtol=TIGHT, atol=TIGHT)


@pytest.mark.parametrize("base", [FedAvg(**MORE), Scaffold(**SGD)], ids=lambda base: type(base).__name__)
def test_mesa_without_weight_or_before_its_start_is_the_method(base: Any, tmp_path: Path) -> None:
    plain = run(base, ONE, COHORTS, tmp_path, weights="uniform").server.x
    for rule in (Mesa(base, lam=0.0, start=0), Mesa(base, start=len(COHORTS))):
        np.testing.assert_allclose(
            run(rule, ONE, COHORTS, tmp_path, weights="uniform").server.x, plain, rtol=TIGHT, atol=TIGHT
        )
    pulled = run(Mesa(base, start=len(COHORTS) - 1), ONE, COHORTS, tmp_path, weights="uniform").server.x
    assert np.abs((pulled - plain).numpy()).max() > 1e-6


class Alone:
    """A world of one client, which holds everything."""

    def __init__(self) -> None:
        self.data, _, self.models, _ = world(ONE)
        self.partition = Given(range(len(self.data.train)), test=(range(len(self.data.test or ())),))

    def run(self, rule: Any) -> Result:
        return simulate(
            rule,
            data=self.data,
            partition=self.partition,
            model=self.models,
            rounds=4,
            local=Local(steps=STEPS, batch_size="full"),
            aggregate=Stack() if traits_of(rule).stacked else Mean(),
            engine=Engine(backend="serial", dtype="float64"),
        )


@pytest.mark.parametrize(
    "rule",
    [FedPer(**MORE), LGFedAvg(**MORE), LGFedAvg(**MORE, predict="global"), FedAvg(**MORE), FD(**MORE)],
    ids=lambda rule: type(rule).__name__,
)
def test_with_a_single_client_sharing_is_training_alone(rule: Any) -> None:
    """FD too: a client is not its own teacher."""
    world = Alone()
    a, b = world.run(rule), world.run(Standalone(**MORE))
    for got, want in zip(a.metrics, b.metrics, strict=True):
        assert got["eval/loss"] == pytest.approx(want["eval/loss"], abs=TIGHT)
        assert got["eval/accuracy"] == want["eval/accuracy"]
    assert a.metrics[-1]["eval/loss"] < a.metrics[0]["eval/loss"] - 0.1


def test_fedavg_ft_trains_the_model_of_fedavg(tmp_path: Path) -> None:
    tuned, plain = (run(rule(**MORE), ONE, COHORTS, tmp_path) for rule in (FedAvgFT, FedAvg))
    assert torch.equal(tuned.server.x, plain.server.x)
    assert tuned.metrics[-1]["eval/client_accuracy_mean"] != plain.metrics[-1]["eval/client_accuracy_mean"]


LEARNERS = {name: METHODS[name] for name in METHODS if not name.endswith("_more")}


@pytest.mark.parametrize("name", LEARNERS)
def test_batches_and_jobs_change_rounding_only(name: str) -> None:
    """Ragged minibatches and epochs: other steps for every client."""
    algorithm, _, _, widths = LEARNERS[name]
    weights = "uniform" if "scaffold" in name else "examples"
    ways: list[dict[str, Any]] = [
        {"batching": "loop"},
        {"kernel": "stacked", "block": 2, "jobs": 2},
        {"kernel": "vmap", "block": 3, "jobs": 1},
    ]
    local = Local(epochs=1.5, batch_size=3)
    loop, *others = (run(algorithm, widths, rounds=2, local=local, weights=weights, **way) for way in ways)
    for other in others:
        pairs = [(loop.server, other.server), *((loop.client(i), other.client(i)) for i in range(5))]
        for a, b in ((a, b) for pair in pairs for a, b in zip(leaves(pair[0]), leaves(pair[1]), strict=True)):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)  # float64 through some dozen steps
        for a, b in zip(loop.metrics, other.metrics, strict=True):
            kept = {key for key in a if not key.startswith("time/")}
            assert {k: a[k] for k in kept} == pytest.approx({k: b[k] for k in kept}, abs=1e-9)
