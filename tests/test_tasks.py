"""Tasks and metrics in runs: of one's own, of clients and of peers, refused in one line, the same on every backend."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import f1_score
from torch import Tensor

from fedsim import Engine, Evaluate, Local, Result, simulate
from fedsim.algorithms.dpsgd import DPSGD
from fedsim.algorithms.fedavg import FedAvg
from fedsim.data import Dataset, Metric, Split, Task
from fedsim.data.losses import TASKS, logistic, loss_of, next_token, squared_error
from fedsim.data.metrics import from_sklearn
from fedsim.errors import ClientError, InputError
from fedsim.models import linear
from fedsim.partition import Iid
from fedsim.record.strangers import strangers
from fedsim.sweep.board import last_score
from fedsim.topology import Ring

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(48, 4)).astype(np.float32)
Y = (X @ RANDOM.normal(size=(4, 3))).argmax(1)
SPLIT, TEST = Split(X[:32], Y[:32]), Split(X[32:], Y[32:])
DATA = Dataset("own", SPLIT, TEST, "classification", outputs=3)


def focal(outputs: Tensor, y: Tensor) -> Tensor:
    p = outputs.log_softmax(-1).gather(-1, y[..., None])[..., 0]
    return -((1 - p.exp()) ** 2) * p


F1 = from_sklearn(f1_score, "f1_macro", average="macro")


def run(data: Dataset = DATA, algorithm: Any = None, **changes: Any) -> Result:
    given: dict[str, Any] = {"partition": Iid(clients=3), "model": linear, "rounds": 2, "local": Local(steps=2)}
    return simulate(algorithm or FedAvg(lr=0.1), data=data, **(given | changes))


def last(result: Result, prefix: str = "eval/") -> dict[str, float]:
    return {tag: value for tag, value in result.metrics[-1].items() if tag.startswith(prefix)}


@pytest.mark.parametrize("name", TASKS)
def test_the_losses_are_plain_formulas_for_any_leading_dimensions(name: str) -> None:
    """Of each example alone, in float64: [m, ...] and [b, m, ...] are stacks of it."""
    outputs, y = torch.randn(2, 5, 4, dtype=torch.float64), torch.randint(4, (2, 5))
    if name == "multilabel":
        y = torch.randint(2, (2, 5, 4))
    if name in ("regression", "least_squares"):
        outputs, y = outputs[..., :1], y.double()
    if name == "next_token":
        outputs, y = torch.randn(2, 5, 3, 4, dtype=torch.float64), torch.randint(4, (2, 5, 3))
    loss = loss_of(name)
    found = loss(outputs, y)
    assert found.shape == (2, 5)
    for b in range(2):
        assert torch.allclose(loss(outputs[b], y[b]), found[b], rtol=1e-12)
        for i in range(5):
            assert torch.allclose(loss(outputs[b, i : i + 1], y[b, i : i + 1]), found[b, i : i + 1], rtol=1e-12)


def test_new_losses_against_torch() -> None:
    outputs, y, numbers = torch.randn(6, 4), torch.randint(2, (6, 4)), torch.randn(6, 4)
    binary = torch.nn.functional.binary_cross_entropy_with_logits(outputs, y.float(), reduction="none").mean(1)
    assert torch.allclose(logistic(outputs, y), binary)
    assert torch.allclose(squared_error(outputs, numbers), torch.nn.MSELoss(reduction="none")(outputs, numbers).mean(1))
    assert loss_of("least_squares", 6)(outputs[:, :1], numbers[:, 0])[0] == 3 * (outputs[0, 0] - numbers[0, 0]) ** 2


def test_several_targets_and_labels_train() -> None:
    wide = (X @ RANDOM.normal(size=(4, 3))).astype(np.float32)
    data = Dataset("wide", Split(X[:32], wide[:32]), Split(X[32:], wide[32:]), "regression", outputs=3)
    result = run(data, rounds=30, evaluate=Evaluate(metrics=("mse", "mae", "r2")), local=Local(steps=10))
    assert result.metrics[-1]["eval/r2"] > 0.95
    assert result.metrics[-1]["eval/mse"] == result.metrics[-1]["eval/loss"]
    labels = wide > 0
    data = Dataset("labels", Split(X[:32], labels[:32]), Split(X[32:], labels[32:]), "multilabel", outputs=3)
    result = run(data, rounds=30, evaluate=Evaluate(metrics=("accuracy", "macro_f1", "auc")), local=Local(steps=10))
    assert min(last(result)[f"eval/{name}"] for name in ("accuracy", "macro_f1", "auc")) > 0.8


def test_an_own_loss_and_an_own_metric_reach_everything(tmp_path: Path) -> None:
    evaluate = Evaluate(clients=True, metrics=("accuracy", "macro_f1", "per_class_accuracy", F1), best="eval/f1_macro")
    result = run(task=Task(focal), evaluate=evaluate, run_dir=tmp_path / "run")
    record = result.metrics[-1]
    assert record["eval/f1_macro"] == pytest.approx(record["eval/macro_f1"], rel=1e-12)
    outputs = result.model(torch.from_numpy(TEST.x)).detach()
    assert record["eval/f1_macro"] == f1_score(TEST.y, outputs.argmax(1).numpy(), average="macro")
    assert record["eval/loss"] == pytest.approx(float(focal(outputs, torch.from_numpy(TEST.y)).mean()), rel=1e-6)
    for name in ("accuracy", "macro_f1", "f1_macro"):
        assert {f"eval/client_{name}_{what}" for what in ("mean", "std", "worst10")} <= set(record)
    assert {f"eval/per_class_accuracy_{k}" for k in np.unique(TEST.y)} <= set(record)
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    values = [line["eval/f1_macro"] for line in lines]
    assert summary["best"] == {"metric": "eval/f1_macro", "value": max(values), "round": values.index(max(values))}
    assert last_score(summary, "eval/f1_macro") == ("eval/f1_macro", values[-1])
    assert last_score(summary, "comm/uplink_bytes") == ("comm/uplink_bytes", summary["comm/uplink_bytes"])


def test_the_metric_of_a_client_is_that_of_its_own_samples() -> None:
    result = run(evaluate=Evaluate(clients=True, metrics=("macro_f1",)), rounds=1)
    population = Iid(clients=3).split(DATA, 0)
    guesses = result.model(torch.from_numpy(TEST.x)).argmax(1).numpy()
    mine = [f1_score(TEST.y[rows], guesses[rows], average="macro") for rows in population.test if len(rows)]
    assert last(result)["eval/client_macro_f1_mean"] == pytest.approx(np.mean(mine), rel=1e-12)
    assert last(result)["eval/client_macro_f1_worst10"] == pytest.approx(min(mine), rel=1e-12)


def test_the_metrics_of_peers_are_those_of_their_models() -> None:
    evaluate = Evaluate(clients=True, metrics=("accuracy", "macro_f1", "log_loss"))
    found = last(run(algorithm=DPSGD(lr=0.1), topology=Ring(), evaluate=evaluate))
    for who in ("peer", "unmixed_peer"):
        assert found[f"eval/{who}_log_loss_mean"] == pytest.approx(found[f"eval/{who}_loss_mean"], rel=1e-12)
        assert found[f"eval/{who}_log_loss_worst"] == pytest.approx(found[f"eval/{who}_loss_worst"], rel=1e-12)
        assert found[f"eval/{who}_macro_f1_worst"] <= found[f"eval/{who}_macro_f1_mean"]


def test_what_is_measured_changes_no_model() -> None:
    plain = run().summary["digest"]
    assert run(evaluate=Evaluate(clients=True, metrics=("auc", "macro_f1", "top5", F1))).summary["digest"] == plain
    assert run(task=TASKS["classification"]).summary["digest"] == plain
    assert run(task=Task(focal)).summary["digest"] != plain


def test_tags_are_as_they_were_where_nothing_is_asked_for() -> None:
    clients = Evaluate(clients=True)
    assert set(last(run(evaluate=clients))) == {
        *("eval/loss", "eval/accuracy", "eval/client_accuracy_mean", "eval/client_accuracy_std"),
        "eval/client_accuracy_worst10",
    }
    numbers = replace(DATA, train=Split(X, X[:, 0]), test=None, task="regression", outputs=1)
    assert set(last(run(numbers, evaluate=clients))) == {
        *("eval/loss", "eval/mse", "eval/client_loss_mean", "eval/client_loss_std", "eval/client_loss_worst10"),
    }
    assert set(last(run(replace(numbers, task="least_squares")))) == {"eval/loss"}


def ignores(outputs: Tensor, y: Tensor) -> Tensor:
    return torch.zeros(y.shape, dtype=outputs.dtype)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a mean": ({"task": Task(lambda o, y: focal(o, y).mean(), name="m")}, r"task m: loss must give \[5\], one number"),
    "of neighbours": (
        {"task": Task(lambda o, y: focal(o, y) - focal(o, y).mean(-1, keepdim=True), name="n")},
        "task n: loss must be that of each example alone, whatever lies beside it, got 'a difference of",
    ),
    "of one client": (
        {"task": Task(lambda o, y: -o.log_softmax(1)[torch.arange(len(y)), y], name="one")},
        r"task one: loss (fails on outputs|must give \[2, 5\])",
    ),
    "of nothing": ({"task": Task(ignores)}, "task ignores: loss must depend on the outputs"),
    "without a gradient": (
        {"task": Task(lambda o, y: (o - o.detach()).square().sum(-1).sqrt(), name="root")},
        "task root: loss must have a finite gradient",
    ),
    "infinite": ({"task": Task(lambda o, y: o.sum(-1) / 0, name="inf")}, "task inf: loss must be finite"),
    "that spoils what it is given": (
        {"task": Task(lambda o, y: o.log_softmax(-1).gather(-1, y[..., None])[..., 0] + 0 * y.sub_(0), name="spoils")},
        "task spoils: loss must have a gradient, got RuntimeError: .*inplace",
    ),
    "of torch": (
        {"task": Task(F.cross_entropy, name="ce")},
        r"task ce: loss fails on .*; a function of torch wants outputs.flatten\(0, -2\) and y.flatten\(\)",
    ),
    "a metric of nothing": (
        {"evaluate": Evaluate(metrics=(Metric(lambda c, y: None, "f", of="classes"),))},
        "metric f must give a number, a mapping or a vector, got None",
    ),
    "that fails": (
        {"task": Task(lambda o, y: o.nothing, name="bad")},
        r"task bad: loss fails .*\(tests/test_tasks.py:",
    ),
    "other outputs": ({"task": Task(squared_error, outputs="numbers")}, "outputs must be 1 for squared_error"),
    "tokens": ({"task": Task(next_token, outputs="tokens")}, r"train.x must be int64 tokens \[n, t\] for next_token"),
    "no metric": (
        {"evaluate": Evaluate(metrics=("macro_f",))},
        "evaluate.metrics must be metrics, .*did you mean macro_f1",
    ),
    "no meaning": ({"evaluate": Evaluate(metrics=("mse",))}, "must have a meaning for the classification task"),
    "twice": ({"evaluate": Evaluate(metrics=("auc", "auc"))}, "have different names, got 'auc'"),
    "a bare function": (
        {"evaluate": Evaluate(metrics=(focal,))},
        r"must be objects of fedsim.data.Metric, got <function",
    ),
    "a mean metric": (
        {"evaluate": Evaluate(metrics=(Metric(lambda o, y: focal(o, y).mean(), "f"),))},
        r"metric f must give \[16\] numbers for 16 examples, got \[\]; a metric of all predictions",
    ),
    "a metric that fails": (
        {"evaluate": Evaluate(metrics=(Metric(lambda o, y: o.nothing, "f"),))},
        r"metric f fails on 16 test samples at the initial model: AttributeError.*\(tests/test_tasks.py:",
    ),
    "no such best": ({"evaluate": Evaluate(best="eval/auc")}, "evaluate.best must be a tag that this run records"),
    "no such module": ({"evaluate": Evaluate(metrics=("nowhere.auc",))}, "evaluate.metrics must be the dotted path"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_what_it_says_is_one_line(case: str, tmp_path: Path) -> None:
    changes, line = REFUSED[case]
    with pytest.raises(InputError, match=line) as caught:
        run(**changes, run_dir=tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_list_without_brackets_is_told_of_them() -> None:
    with pytest.raises(InputError, match=r"metrics must be .*, got 'macro_f1'; a list has brackets: \[macro_f1\]"):
        Evaluate(metrics="macro_f1")  # type: ignore[arg-type]


def test_a_metric_that_fails_later_is_named() -> None:
    def few(classes: Tensor, y: Tensor) -> float:
        if len(y) < 10:
            raise ValueError("too few")
        return 1.0

    with pytest.raises(ClientError, match=r"metric few fails on the test samples of client 0: ValueError: too few"):
        run(evaluate=Evaluate(clients=True, metrics=(Metric(few, of="classes"),)))


def test_a_folder_that_names_code_of_others_says_so() -> None:
    config = {"task": {"_target_": "fedsim.data.losses.Task", "loss": "mine.focal", "metrics": ["accuracy", "mine.f1"]}}
    config |= {"evaluate": {"metrics": ["macro_f1", "other.metric"]}}
    assert strangers(config) == ["mine.focal", "mine.f1", "other.metric"]


@pytest.mark.slow
def test_own_loss_and_metric_have_the_same_bits_on_ray() -> None:
    evaluate = Evaluate(clients=True, metrics=("accuracy", "auc", F1))
    serial, ray = (
        run(task=Task(focal), evaluate=evaluate, engine=Engine(backend=backend, actors=2))
        for backend in ("serial", "ray")
    )
    assert serial.summary["digest"] == ray.summary["digest"]
    assert last(serial) == last(ray)
