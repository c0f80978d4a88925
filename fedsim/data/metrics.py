"""What is measured of outputs and targets: of each example, or of all predictions at once."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fedsim.data.losses import Outputs, cross_entropy, guess
from fedsim.errors import InputError, require
from fedsim.evaluate import lower_is_better
from fedsim.fields import check_fields

Of: TypeAlias = Literal["examples", "outputs", "classes", "probabilities"]
"""What a metric is of; see ``Metric.of``."""


@dataclass(frozen=True)
class Metric:
    """A number, or several, that says how good predictions are; recorded as ``eval/NAME``.

    >>> import torch
    >>> hits = Metric(lambda guesses, y: (guesses == y).float().mean(), "hits", of="classes")
    >>> value(hits, torch.tensor([0, 1, 1]), torch.tensor([0, 1, 0]))
    {'': 0.6666666865348816}

    Attributes:
        fn: (predictions, y) as tensors -> what it is ``of``.
        name: letters, digits and underscores; "": that of the function. Where small is good it has a word that says so
            (``loss``, ``error``, ``mse``, ``mae``, ``perplexity``, ...): tables, sweeps and the best round go by it.
        of: ``examples``: (outputs [n, ..., k], y [n, ...]) -> [n], a number for each example, whose mean is recorded.
            The others are of all predictions at once, and give a number, a mapping from words to numbers, or a vector:
            ``outputs`` is given them as they are, [n, k], in float64; ``probabilities`` [n, k], of two classes also
            where the model has one output; ``classes`` the predicted classes [n], or labels [n, k] of 0 and 1.
            Positions of sequences are examples of their own.
        tasks: kinds of outputs (``Task.outputs``) that it has a meaning for; (): all.
        after: what is made of the mean over examples; None: nothing.
    """

    fn: Callable[..., Any]
    name: str = ""
    of: Of = "examples"
    tasks: tuple[Outputs, ...] = ()
    after: Callable[[float], float] | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.name:
            object.__setattr__(self, "name", getattr(self.fn, "__name__", ""))
        fit = re.fullmatch(r"\w+", self.name, re.ASCII) is not None
        require(fit, "name", "be letters, digits and underscores", self.name, "give one: Metric(fn, 'name')")

    @property
    def higher(self) -> bool:
        """Whether large is good."""
        return not lower_is_better(self.name)

    def __call__(self, predictions: Tensor, y: Tensor) -> Any:
        """What the function gives."""
        return self.fn(predictions, y)


def from_sklearn(fn: Callable[..., Any], name: str = "", of: Of = "classes", **options: Any) -> Metric:
    """A metric of scikit-learn's, whose functions are of (targets, predictions) and of numpy arrays.

    >>> from sklearn.metrics import f1_score
    >>> from_sklearn(f1_score, "f1_macro", average="macro").higher
    True

    Args:
        fn: such as ``sklearn.metrics.f1_score``.
        name: of the metric; "": that of the function.
        of: what predictions ``fn`` takes: ``classes``, ``probabilities`` (of two classes those of class 1, [n]) or
            ``outputs`` (of one number [n]).
        options: of ``fn``.
    """
    if of == "examples":
        raise InputError("of must be classes, probabilities or outputs for a function of scikit-learn, got 'examples'")
    return Metric(partial(_as_sklearn, fn, of, options), name or fn.__name__, of)


def _as_sklearn(fn: Callable[..., Any], of: Of, options: Mapping[str, Any], predictions: Tensor, y: Tensor) -> Any:
    if of == "probabilities" and predictions.dim() == 2 and predictions.shape[1] == 2 and y.dim() == 1:
        predictions = predictions[:, 1]
    if of == "outputs" and predictions.shape[1:] == (1,) and y.dim() == 1:
        predictions = predictions[:, 0]
    return fn(y.numpy(), predictions.numpy(), **options)


def each(metric: Metric, outputs: Tensor, y: Tensor) -> Tensor:
    """A metric of examples [n], the mean over positions or labels where there are such."""
    found: Tensor = metric.fn(outputs, y)
    fit = isinstance(found, Tensor) and found.dim() > 0 and len(found) == len(y)
    got = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
    do = "a metric of all predictions at once says so: Metric(fn, of='classes')"
    require(fit, f"metric {metric.name}", f"give [{len(y)}] numbers for {len(y)} examples", got, do)
    found = found.to(outputs.dtype)
    return found if found.dim() == 1 else found.flatten(1).mean(-1)


def value(metric: Metric, predictions: Tensor, y: Tensor) -> dict[str, float]:
    """A metric of all predictions: its value under "", or its values under their words or numbers."""
    found = metric.fn(predictions, y)
    require(found is not None, f"metric {metric.name}", "give a number, a mapping or a vector", None)
    if isinstance(found, Mapping):
        return {str(word): float(number) for word, number in found.items()}
    array = np.asarray(found.detach().cpu() if isinstance(found, Tensor) else found, dtype=np.float64)
    require(array.ndim < 2, f"metric {metric.name}", "give a number, a mapping or a vector", list(array.shape))
    return {str(k): float(v) for k, v in enumerate(array)} if array.ndim else {"": float(array)}


def probabilities(outputs: Tensor, kind: Outputs) -> Tensor:
    """[n, k] outputs -> [n, k] probabilities, in float64; of one output those of classes 0 and 1."""
    if kind == "labels":
        return outputs.double().sigmoid()
    if outputs.shape[-1] == 1:
        one = outputs.double().sigmoid()
        return torch.cat([1 - one, one], -1)
    return outputs.double().softmax(-1)


def accuracy(outputs: Tensor, y: Tensor) -> Tensor:
    """1 where the guess is the class, or a label is right."""
    right = (outputs > 0).long() if outputs.dim() == y.dim() else guess(outputs)
    return (right == y).to(outputs.dtype)


def top5(outputs: Tensor, y: Tensor) -> Tensor:
    """1 where the class is among those of the five largest outputs."""
    best = outputs.topk(min(5, outputs.shape[-1]), -1).indices if outputs.shape[-1] > 1 else y[..., None]
    return (best == y[..., None]).any(-1).to(outputs.dtype)


def log_loss(outputs: Tensor, y: Tensor) -> Tensor:
    """The cross-entropy, or of labels the logistic loss."""
    if outputs.dim() == y.dim():
        return F.softplus(torch.where(y.bool(), -outputs, outputs))
    return cross_entropy(outputs, y)


def mse(outputs: Tensor, y: Tensor) -> Tensor:
    """(output - target)^2."""
    return _gap(outputs, y).square()


def mae(outputs: Tensor, y: Tensor) -> Tensor:
    """|output - target|."""
    return _gap(outputs, y).abs()


def _gap(outputs: Tensor, y: Tensor) -> Tensor:
    return outputs - y if outputs.dim() == y.dim() else outputs[..., 0] - y


def perplexity(mean: float) -> float:
    """exp of a mean cross-entropy."""
    return math.exp(mean) if mean < 700 else math.inf


def _counts(classes: Tensor, y: Tensor) -> np.ndarray:
    """[classes, 3] of each class: samples of it, guesses of it, right guesses. Labels are classes of their own."""
    if y.dim() == 2:
        return torch.stack([y.sum(0), classes.sum(0), (classes * y).sum(0)], 1).numpy()
    k = int(torch.maximum(classes.max(), y.max())) + 1
    of = [torch.bincount(t, minlength=k) for t in (y, classes, y[classes == y])]
    return torch.stack(of, 1).numpy()


def macro_f1(classes: Tensor, y: Tensor) -> float:
    """The mean F1 of the classes that occur, in y or among the guesses, or of all labels; 0 where none is right."""
    there, guessed, right = _counts(classes, y).astype(np.float64).T
    some = np.ones(len(there), dtype=bool) if y.dim() == 2 else there + guessed > 0
    return float(np.mean(2 * right[some] / np.maximum(there + guessed, 1)[some]))


def per_class_accuracy(classes: Tensor, y: Tensor) -> dict[str, float]:
    """Of the samples of each class in y, the share that is guessed."""
    there, _, right = _counts(classes, y).T
    return {str(k): float(right[k] / there[k]) for k in np.flatnonzero(there)}


def balanced_accuracy(classes: Tensor, y: Tensor) -> float:
    """The mean of ``per_class_accuracy``."""
    return float(np.mean(list(per_class_accuracy(classes, y).values())))


def auc(p: Tensor, y: Tensor) -> float:
    """Area under the ROC curve: how probable it is that a sample of a class gets more of it than one of the others.

    Of two classes that of class 1; of more, and of labels, the mean over one class against the rest. NaN where a class
    has no samples, or all.
    """
    if y.dim() == 2:
        return float(np.mean([_area(p[:, k], y[:, k]) for k in range(y.shape[1])]))
    if p.shape[1] == 2:
        return _area(p[:, 1], y)
    return float(np.mean([_area(p[:, k], (y == k).long()) for k in range(p.shape[1])]))


def _area(score: Tensor, y: Tensor) -> float:
    from scipy.stats import rankdata

    ones = int(y.sum())
    pairs = ones * (len(y) - ones)
    ranks = rankdata(score.numpy())[y.numpy() == 1]
    return float((ranks.sum() - ones * (ones + 1) / 2) / pairs) if pairs else math.nan


def r2(outputs: Tensor, y: Tensor) -> float:
    """1 - (sum of squared errors) / (that of the mean of y), the mean over targets; NaN of fewer than two samples.

    Of targets that do not vary 1 where they are met, else 0, as scikit-learn has it.
    """
    if len(y) < 2:
        return math.nan
    gap, spread = _gap(outputs, y).reshape(len(y), -1), (y - y.mean(0)).reshape(len(y), -1)
    left, whole = gap.square().sum(0).numpy(), spread.square().sum(0).numpy()
    constant = np.where(left == 0, 1.0, 0.0)
    return float(np.mean(np.where(whole == 0, constant, 1 - left / np.where(whole == 0, 1.0, whole))))


METRICS = {
    metric.name: metric
    for metric in (
        Metric(accuracy, tasks=("classes", "labels", "tokens")),
        Metric(top5, tasks=("classes", "tokens")),
        Metric(macro_f1, of="classes", tasks=("classes", "labels", "tokens")),
        Metric(balanced_accuracy, of="classes", tasks=("classes", "tokens")),
        Metric(per_class_accuracy, of="classes", tasks=("classes", "tokens")),
        Metric(auc, of="probabilities", tasks=("classes", "labels")),
        Metric(log_loss, tasks=("classes", "labels", "tokens")),
        Metric(mse, tasks=("numbers",)),
        Metric(mae, tasks=("numbers",)),
        Metric(r2, of="outputs", tasks=("numbers",)),
        Metric(cross_entropy, "perplexity", tasks=("classes", "tokens"), after=perplexity),
    )
}
"""The metrics that ``evaluate.metrics`` and tasks name by a word."""
