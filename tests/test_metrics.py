"""Every metric against scikit-learn, which knows nothing of fedsim."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics as sk

from fedsim.data.losses import TASKS, Task
from fedsim.data.metrics import METRICS, Metric, from_sklearn
from fedsim.errors import InputError
from fedsim.evaluate import is_better, lower_is_better
from fedsim.pool.scores import Measures

N, K = 60, 7
RANDOM = np.random.default_rng(3)
CLASSES = RANDOM.integers(0, K, N)
CLASSES[:K] = np.arange(K)
LOGITS = RANDOM.normal(size=(N, K))
LOGITS[np.arange(N), CLASSES] += RANDOM.normal(size=N)
LABELS = RANDOM.integers(0, 2, (N, K))
NUMBERS, SEVERAL = RANDOM.normal(size=N), RANDOM.normal(size=(N, 3))
BINARY = RANDOM.integers(0, 2, N)
ONE = LOGITS[:, :1]
P = np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True)
GUESS, SIGMOID = LOGITS.argmax(1), 1 / (1 + np.exp(-LOGITS))


def got(name: str, task: Task, outputs: np.ndarray, y: np.ndarray) -> Any:
    """A metric as a run computes it."""
    measures = Measures(task, (METRICS[name],))
    found = measures.scores(task.loss, torch.from_numpy(outputs), torch.from_numpy(y))
    values = measures.of(METRICS[name], found, y)
    return values[""] if "" in values else [*values.values()]


TRUTH: dict[str, tuple[str, np.ndarray, np.ndarray, Callable[[], Any]]] = {
    "accuracy": ("classification", LOGITS, CLASSES, lambda: sk.accuracy_score(CLASSES, GUESS)),
    "accuracy of one output": ("classification", ONE, BINARY, lambda: sk.accuracy_score(BINARY, ONE[:, 0] > 0)),
    "accuracy of labels": ("multilabel", LOGITS, LABELS, lambda: sk.accuracy_score(LABELS.ravel(), LOGITS.ravel() > 0)),
    "top5": ("classification", LOGITS, CLASSES, lambda: sk.top_k_accuracy_score(CLASSES, LOGITS, k=5)),
    "macro_f1": ("classification", LOGITS, CLASSES, lambda: sk.f1_score(CLASSES, GUESS, average="macro")),
    "macro_f1 of labels": ("multilabel", LOGITS, LABELS, lambda: sk.f1_score(LABELS, LOGITS > 0, average="macro")),
    "balanced_accuracy": ("classification", LOGITS, CLASSES, lambda: sk.balanced_accuracy_score(CLASSES, GUESS)),
    "per_class_accuracy": ("classification", LOGITS, CLASSES, lambda: sk.recall_score(CLASSES, GUESS, average=None)),
    "auc": ("classification", LOGITS, CLASSES, lambda: sk.roc_auc_score(CLASSES, P, multi_class="ovr")),
    "auc of one output": ("classification", ONE, BINARY, lambda: sk.roc_auc_score(BINARY, ONE[:, 0])),
    "auc of two outputs": (
        "classification",
        LOGITS[:, :2],
        BINARY,
        lambda: sk.roc_auc_score(BINARY, P[:, 1] / P[:, 0]),
    ),
    "auc of labels": ("multilabel", LOGITS, LABELS, lambda: sk.roc_auc_score(LABELS, SIGMOID)),
    "log_loss": ("classification", LOGITS, CLASSES, lambda: sk.log_loss(CLASSES, P)),
    "log_loss of labels": ("multilabel", LOGITS, LABELS, lambda: sk.log_loss(LABELS.ravel(), SIGMOID.ravel())),
    "mse": ("regression", ONE, NUMBERS, lambda: sk.mean_squared_error(NUMBERS, ONE[:, 0])),
    "mse of several": ("regression", LOGITS[:, :3], SEVERAL, lambda: sk.mean_squared_error(SEVERAL, LOGITS[:, :3])),
    "mae": ("regression", ONE, NUMBERS, lambda: sk.mean_absolute_error(NUMBERS, ONE[:, 0])),
    "mae of several": ("regression", LOGITS[:, :3], SEVERAL, lambda: sk.mean_absolute_error(SEVERAL, LOGITS[:, :3])),
    "r2": ("regression", ONE, NUMBERS, lambda: sk.r2_score(NUMBERS, ONE[:, 0])),
    "r2 of several": ("regression", LOGITS[:, :3], SEVERAL, lambda: sk.r2_score(SEVERAL, LOGITS[:, :3])),
    "r2 of a constant": ("regression", ONE, np.ones(N), lambda: sk.r2_score(np.ones(N), ONE[:, 0])),
    "perplexity": ("classification", LOGITS, CLASSES, lambda: np.exp(sk.log_loss(CLASSES, P))),
}


@pytest.mark.parametrize("case", TRUTH)
def test_a_metric_is_scikit_learn_s(case: str) -> None:
    task, outputs, y, truth = TRUTH[case]
    assert got(case.partition(" ")[0], TASKS[task], outputs, y) == pytest.approx(truth(), rel=1e-12)


def test_every_metric_has_a_truth() -> None:
    assert {case.partition(" ")[0] for case in TRUTH} == set(METRICS)


def test_positions_of_a_sequence_are_examples() -> None:
    outputs, y = LOGITS.reshape(12, 5, K), CLASSES.reshape(12, 5)
    for name, metric in METRICS.items():
        if "tokens" in metric.tasks:
            flat = got(name, TASKS["classification"], LOGITS, CLASSES)
            assert got(name, TASKS["next_token"], outputs, y) == pytest.approx(flat, rel=1e-12), name


def test_where_a_class_has_no_samples() -> None:
    y = np.zeros(N, dtype=np.int64)
    assert np.isnan(got("auc", TASKS["classification"], LOGITS[:, :2], y))
    assert got("macro_f1", TASKS["classification"], LOGITS, y) == pytest.approx(sk.f1_score(y, GUESS, average="macro"))
    assert got("per_class_accuracy", TASKS["classification"], LOGITS, y) == [np.mean(GUESS == 0)]


def test_functions_of_others_through_the_adapter() -> None:
    functional = pytest.importorskip("torchmetrics.functional")
    options = {"task": "multiclass", "num_classes": K, "average": "macro"}
    theirs = Metric(functools.partial(functional.f1_score, **options), "torch_f1", of="classes")
    auroc = Metric(functools.partial(functional.auroc, **options), "torch_auc", of="probabilities")
    ours = from_sklearn(sk.f1_score, average="macro")
    area = from_sklearn(sk.roc_auc_score, "area", of="probabilities", multi_class="ovr")
    measures = Measures(TASKS["classification"], (theirs, auroc, ours, area))
    found = measures.scores(TASKS["classification"].loss, torch.from_numpy(LOGITS), torch.from_numpy(CLASSES))
    f1, auc = (got(name, TASKS["classification"], LOGITS, CLASSES) for name in ("macro_f1", "auc"))
    for metric, want in ((theirs, f1), (ours, f1), (auroc, auc), (area, auc)):
        assert measures.of(metric, found, CLASSES)[""] == pytest.approx(want, rel=1e-6), metric.name  # theirs: float32
    assert ours.name == "f1_score"
    assert from_sklearn(sk.zero_one_loss).higher is False


def test_only_what_is_asked_for_is_kept() -> None:
    def sizes(*names: str) -> tuple[int, int]:
        measures = Measures(
            TASKS["regression" if "r2" in names else "classification"], tuple(METRICS[n] for n in names)
        )
        found = measures.scores(measures.task.loss, torch.from_numpy(ONE), torch.from_numpy(BINARY))
        return found.guesses.size, found.outputs.size

    assert sizes("accuracy", "macro_f1") == (N, 0)
    assert sizes("auc") == (N, N)
    assert sizes("r2") == (0, N)


def test_direction_is_in_the_name() -> None:
    small = {"log_loss", "mse", "mae", "perplexity"}
    assert {name for name, metric in METRICS.items() if not metric.higher} == small
    assert lower_is_better("comm/uplink_bytes")
    assert lower_is_better("privacy/epsilon")
    assert is_better("eval/accuracy", 0.0, None)
    assert not is_better("eval/accuracy", float("nan"), None)
    assert is_better("eval/mse", 1.0, 2.0)
    assert not is_better("eval/r2", 1.0, 2.0)


def test_the_direction_of_functions_of_others_is_what_they_say() -> None:
    """By scikit-learn's own scorers, and by the classes of torchmetrics, however their words are joined."""
    said = {sk.get_scorer(name)._score_func.__name__: sk.get_scorer(name)._sign for name in sk.get_scorer_names()}
    said.pop("negative_likelihood_ratio")  # small is good there, as no word of it says
    assert {name for name, sign in said.items() if lower_is_better(f"eval/{name}") != (sign < 0)} == set()
    torchmetrics = pytest.importorskip("torchmetrics")
    made = {name: getattr(torchmetrics, name) for name in torchmetrics.__all__}
    told = {name: of.higher_is_better for name, of in made.items() if getattr(of, "higher_is_better", None) is not None}
    wrong = {name for name, higher in told.items() if lower_is_better(f"eval/{name}") == higher}
    assert len(told) > 20
    none = {"TranslationEditRate", "WordInfoPreserved", "RetrievalFallOut", "TotalVariation"}
    assert wrong <= none, "no word of theirs says so"
    assert lower_is_better("eval/RMSE")
    assert not lower_is_better("eval/macroF1")


@pytest.mark.parametrize("name", ["two words", "a/b", "é", "<lambda>"])
def test_a_name_is_a_word(name: str) -> None:
    with pytest.raises(InputError, match="name must be letters, digits and underscores"):
        Metric(len, name)
