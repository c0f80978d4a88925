"""Evaluation on the test samples, over all of them and client by client: the global model, or each client's own.

It knows what workers answer and what is made of it; when to evaluate is ``fedsim.evaluate.Evaluate``'s.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np

from fedsim.aggregate import Mean, merge_all
from fedsim.data.batches import Samples
from fedsim.data.metrics import Metric
from fedsim.errors import ClientError, Diverged
from fedsim.ground.own_code import FAILURES, said
from fedsim.pool.scores import Measures, Scores, joined
from fedsim.pool.worker import Backend, EvalJob, ObjectiveJob, Setup


class Evaluation(NamedTuple):
    """What one evaluation found."""

    metrics: dict[str, float]  # by TensorBoard tag
    confusion: np.ndarray | None  # [classes, classes] samples by true and predicted class; None: no classification
    clients: Mapping[str, np.ndarray] | None = None  # of clients or peers, if asked for: see ``client_values``


def evaluate(backend: Backend, x: np.ndarray, setup: Setup, *, clients: bool) -> Evaluation:
    """Evaluate the global model.

    Args:
        backend: who computes.
        x: [d] model.
        setup: what is measured, of which test samples, and how many at once.
        clients: whether to add the metrics per client, each on its own test samples; clients without any do not count.
    """
    total, chunk = len(setup.test.x), setup.chunk
    jobs = [EvalJob(a, min(a + chunk, total)) for a in range(0, total, chunk)]
    parts: Sequence[Scores] = backend.map("evaluate", jobs, [job.last - job.first for job in jobs], x)
    return summarise(joined(parts), setup.test, setup.measures, clients=clients)


def peers_scores(found: np.ndarray, metrics: Sequence[Metric], who: str) -> dict[str, float]:
    """Metrics of the peers' own models.

    Args:
        found: [n, 1 + metrics] each model's loss and metrics.
        metrics: in the order of the columns.
        who: ``peer``, or ``unmixed_peer`` before mixing.
    """
    out = {f"eval/{who}_loss_mean": float(found[:, 0].mean()), f"eval/{who}_loss_worst": float(found[:, 0].max())}
    for metric, values in zip(metrics, found[:, 1:].T, strict=True):
        worst = values.min() if metric.higher else values.max()
        out |= {f"eval/{who}_{metric.name}_mean": float(values.mean()), f"eval/{who}_{metric.name}_worst": float(worst)}
    return out


def gradient(backend: Backend, x: np.ndarray, setup: Setup, shares: np.ndarray) -> dict[str, float]:
    """The training objective at a model and the squared norm of its gradient.

    Args:
        backend: who computes.
        x: [d] model.
        setup: of the training samples, which are taken without augmentation, and how many at once.
        shares: [clients] weight of each client's mean loss, which sum to 1.
    """
    sizes, chunk = setup.train.sizes(), setup.chunk
    weights = np.repeat(shares / sizes, sizes)
    total = len(weights)
    jobs = [
        ObjectiveJob(j, a, min(a + chunk, total), weights[a : a + chunk]) for j, a in enumerate(range(0, total, chunk))
    ]
    answers = backend.map("gradient", jobs, [job.last - job.first for job in jobs], x)
    sums = merge_all({(j, span): sums for j, (sums, span) in enumerate(answers) if span}, Mean().merge)
    return {"eval/train_loss": float(sums["loss"]), "eval/grad_norm2": float(np.square(sums["gradient"]).sum())}


def summarise(found: Scores, test: Samples, measures: Measures, *, clients: bool) -> Evaluation:
    """Metrics of the scores of test samples, the first of which are the clients' in order.

    Args:
        found: of all test samples, or of those that some client owns.
        test: the test samples in client order.
        measures: what is measured beside the loss.
        clients: whether to add the metrics per client, each on its own test samples; clients without any do not count.
    """
    y = test.y[: len(found.losses)]
    out = {"eval/loss": float(found.losses.astype(np.float64).mean())}
    for metric in measures.metrics:
        with _named(metric, "the test samples"):
            values = measures.of(metric, found, y)
        out |= {f"eval/{metric.name}{word and '_'}{word}": number for word, number in values.items()}
    table = None
    if clients and (test.sizes() > 0).any():
        table = client_values(found, test, measures)
        for metric in measures.shared:
            mine = table[metric.name]
            if metric.of != "examples":  # of all predictions: of those clients where it has a value
                mine = mine[~np.isnan(mine)] if not np.isnan(mine).all() else mine[:1]
            out |= _spread(metric.name, mine, higher=metric.higher)
        out |= _spread("loss", table["loss"], higher=False) if not measures.shared else {}
    if not measures.task.classes:
        return Evaluation(out, None, table)
    classes = int(max(found.guesses.max(), test.y.max())) + 1
    cells = np.bincount(y * classes + found.guesses, minlength=classes**2)
    return Evaluation(out, cells.reshape(classes, classes), table)


def require_finite(record: Mapping[str, float]) -> None:
    """Raise Diverged when the model was evaluated and its loss has no value, though its parameters may have."""
    if not math.isfinite(record.get("eval/loss", 0.0)):
        raise Diverged(f"the loss on the test samples is not finite after round {record['round']:.0f}")


def client_values(found: Scores, test: Samples, measures: Measures) -> dict[str, np.ndarray]:
    """What is measured of each client with test samples, on these alone.

    Returns:
        ``client`` [k] and ``samples`` [k]; ``loss`` [k] and each shared metric [k], NaN where a client's samples give
        it no value.
    """
    sizes = test.sizes()
    tested = np.flatnonzero(sizes)
    table = {"client": tested, "samples": sizes[tested], "loss": _means(found.losses.astype(np.float64), test)}
    return table | {metric.name: _of_clients(metric, found, test, measures) for metric in measures.shared}


def peer_values(found: np.ndarray, metrics: Sequence[Metric], samples: int) -> dict[str, np.ndarray]:
    """The same of peers' own models, each on all ``samples``; ``found`` and ``metrics`` are as of ``peers_scores``."""
    peers = np.arange(len(found))
    names = ("loss", *(metric.name for metric in metrics))
    return {"client": peers, "samples": np.full(len(found), samples), **dict(zip(names, found.T, strict=True))}


def _of_clients(metric: Metric, found: Scores, test: Samples, measures: Measures) -> np.ndarray:
    """[k] the metric of each client with test samples; NaN where it has no value there."""
    if metric.of == "examples":
        column = np.ascontiguousarray(found.values[:, measures.examples.index(metric)]).astype(np.float64)
        means = _means(column, test)
        return means if metric.after is None else np.array([metric.after(mean) for mean in means.tolist()])
    values = []
    for client in np.flatnonzero(test.sizes()).tolist():
        mine = slice(test.start[client], test.start[client + 1])
        with _named(metric, f"the test samples of client {client}"):
            values.append(measures.of(metric, Scores(*(array[mine] for array in found)), test.y[mine])[""])
    return np.array(values)


def _means(per: np.ndarray, test: Samples) -> np.ndarray:
    """The mean over each client's test samples, of clients that have some."""
    sizes = test.sizes()
    tested = sizes > 0
    sums: np.ndarray = np.add.reduceat(per[: test.start[-1]], test.start[:-1][tested])
    means: np.ndarray = sums / sizes[tested]
    return means


def _spread(name: str, mine: np.ndarray, *, higher: bool) -> dict[str, float]:
    """Mean, standard deviation and worst tenth of the clients' values."""
    ordered = np.sort(mine) if higher else -np.sort(-mine)
    worst = ordered[: -(-len(mine) // 10)]
    found = {"mean": mine.mean(), "std": mine.std(), "worst10": worst.mean()}
    return {f"eval/client_{name}_{what}": float(number) for what, number in found.items()}


@contextmanager
def _named(metric: Metric, where: str) -> Iterator[None]:
    """A metric of a user's own that fails is named."""
    try:
        yield
    except FAILURES as error:
        do = "; a client may lack classes: give NaN for it, which does not count" if "client" in where else ""
        raise ClientError(f"metric {metric.name} fails on {where}: {said(error)}{do}") from error
