"""When a run evaluates, and what; how it is done lies in ``fedsim.runs.evaluation``."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from fedsim.errors import require
from fedsim.fields import check_fields

LOWER_IS_BETTER = frozenset(
    {"loss", "logloss", "nll", "bce", "entropy", "perplexity", "hinge", "deviance", "divergence", "brier", "ece"}
    | {"error", "errors", "mse", "rmse", "msle", "rmsle", "mae", "mape", "smape", "fpr", "fnr"}
    | {"distance", "gap", "lost", "angle", "std", "norm2", "bytes", "epsilon"}
)
"""Words of a metric that is good when it is small."""

SHARES = frozenset({"accuracy", "top5", "f1", "auc", "auroc", "precision", "recall", "jaccard"})
"""Words of a metric that lies between 0 and 1."""


def _words(tag: str) -> set[str]:
    """The words of a metric's name, in whatever way they are joined: ``macro_f1``, ``RMSE``, ``MeanSquaredError``."""
    return set(
        re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", tag.rpartition("/")[2]).lower().split("_")
    )


def lower_is_better(tag: str) -> bool:
    """Whether a metric such as ``eval/loss`` is good when it is small: whether it has a word that says so."""
    words = _words(tag)
    return bool(LOWER_IS_BETTER & words) and "d2" not in words  # d2_brier_score: the share that is explained


def is_share(tag: str) -> bool:
    """Whether a metric such as ``eval/accuracy`` lies between 0 and 1: whether it has a word that says so."""
    return bool(SHARES & _words(tag))


def is_better(tag: str, new: float, old: float | None) -> bool:
    """Whether a value of a metric beats the best one so far, None before there is one; NaN and infinity never do.

    >>> is_better("eval/accuracy", 0.9, 0.8), is_better("eval/loss", 0.9, 0.8), is_better("eval/loss", 0.8, 0.8)
    (True, False, False)
    """
    if not math.isfinite(new):
        return False
    return old is None or (new < old if lower_is_better(tag) else new > old)


@dataclass(frozen=True)
class Evaluate:
    """When and what to evaluate.

    >>> evaluate = Evaluate(every=10, clients=True)
    >>> [done for done in range(26) if evaluate.due(done, rounds=25)]
    [0, 10, 20, 25]

    Attributes:
        every: rounds between evaluations, >= 1; the first and the last round are always evaluated.
        clients: also report the mean, the standard deviation and the worst tenth of the clients, each on its own test
            split; of peers: the mean and the worst of their own models on all test samples, before and after mixing.
            ``worst10`` is the mean of the tenth of the clients with test samples that fare worst, rounded up: of 10
            clients the worst, of 11 to 20 the mean of two. (q-FFL's program, github litian96/fair_flearn,
            plot_fairness.py, rounds down.) In a run's folder ``clients.parquet`` has every client's own values, where
            pyarrow is installed (extra ``tables``).
        gradient: also report what is minimised, the weighted mean of all clients' training losses, and the squared norm
            of its gradient at the global model: ``eval/train_loss``, ``eval/grad_norm2``.
        metrics: what is measured beside the loss: names of ``fedsim.data.metrics.METRICS``, dotted paths of a
            ``fedsim.data.metrics.Metric``, or such objects; None: what the task says (accuracy, or ``mse``).
        best: the tag whose best round, by ``is_better``, is *the* best one, such as ``eval/macro_f1``; None: accuracy
            where there is one, else the first score, else the loss.
    """

    every: int = 1
    clients: bool = False
    gradient: bool = False
    metrics: tuple[str | Callable[..., Any], ...] | None = None
    best: str | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        require(self.every >= 1, "every", "be >= 1", self.every)
        tag = self.best is None or self.best.startswith("eval/")
        require(tag, "best", "be the tag of a metric, such as eval/accuracy", self.best)

    def judged(self, tags: Collection[str]) -> str:
        """The tag that says which round is the best one, of those on record.

        >>> Evaluate().judged(["eval/loss", "eval/mse"]), Evaluate(best="eval/loss").judged(["eval/loss", "eval/mse"])
        ('eval/mse', 'eval/loss')
        """
        if self.best is not None:
            return self.best
        scores = [tag for tag in tags if tag.startswith("eval/") and tag != "eval/loss"]
        return "eval/accuracy" if "eval/accuracy" in scores else (scores or ["eval/loss"])[0]

    def due(self, done: int, rounds: int) -> bool:
        """Whether to evaluate after ``done`` of ``rounds`` rounds."""
        return done % self.every == 0 or done == rounds
