"""Evaluation on the test samples, over all of them and client by client: the global model, or each client's own.

It knows what workers answer and what is made of it; when to evaluate is ``fedsim.evaluate.Evaluate``'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fedsim.aggregate import Mean, merge_all
from fedsim.data.batches import Samples
from fedsim.data.dataset import Task
from fedsim.pool.worker import CHUNK, Backend, EvalJob, ObjectiveJob, Scores


class Evaluation(NamedTuple):
    """What one evaluation found."""

    metrics: dict[str, float]  # by TensorBoard tag
    confusion: np.ndarray | None  # [classes, classes] samples by true and predicted class; None: no classification


def evaluate(backend: Backend, x: np.ndarray, test: Samples, task: Task, *, clients: bool) -> Evaluation:
    """Evaluate the global model.

    Args:
        backend: who computes.
        x: [d] model.
        test: the test samples in client order; those that nobody owns come last.
        task: decides which metrics exist.
        clients: whether to add the metrics per client, each on its own test samples; clients without any do not count.
    """
    total = len(test.x)
    jobs = [EvalJob(a, min(a + CHUNK, total)) for a in range(0, total, CHUNK)]
    parts: Sequence[Scores] = backend.map("evaluate", jobs, [job.last - job.first for job in jobs], x)
    return summarise(Scores(*(np.concatenate(a) for a in zip(*parts, strict=True))), test, task, clients=clients)


def peers_scores(found: np.ndarray, who: str) -> dict[str, float]:
    """Metrics of the peers' own models.

    Args:
        found: [n, 2] each model's loss and accuracy, NaN where the task has none.
        who: ``peer``, or ``unmixed_peer`` before mixing.
    """
    losses, scores = found.T
    out = {f"eval/{who}_loss_mean": float(losses.mean()), f"eval/{who}_loss_worst": float(losses.max())}
    if np.isnan(scores).all():
        return out
    return out | {f"eval/{who}_accuracy_mean": float(scores.mean()), f"eval/{who}_accuracy_worst": float(scores.min())}


def gradient(backend: Backend, x: np.ndarray, train: Samples, shares: np.ndarray) -> dict[str, float]:
    """The training objective at a model and the squared norm of its gradient.

    Args:
        backend: who computes.
        x: [d] model.
        train: the training samples in client order, augmentation left out.
        shares: [clients] weight of each client's mean loss, which sum to 1.
    """
    sizes = train.sizes()
    weights = np.repeat(shares / sizes, sizes)
    total = len(weights)
    jobs = [
        ObjectiveJob(j, a, min(a + CHUNK, total), weights[a : a + CHUNK]) for j, a in enumerate(range(0, total, CHUNK))
    ]
    answers = backend.map("gradient", jobs, [job.last - job.first for job in jobs], x)
    sums = merge_all({(j, span): sums for j, (sums, span) in enumerate(answers) if span}, Mean().merge)
    return {"eval/train_loss": float(sums["loss"]), "eval/grad_norm2": float(np.square(sums["gradient"]).sum())}


def summarise(found: Scores, test: Samples, task: Task, *, clients: bool) -> Evaluation:
    """Metrics of the scores of test samples, the first of which are the clients' in order.

    Args:
        found: of all test samples, or of those that some client owns.
        test: the test samples in client order.
        task: decides which metrics exist.
        clients: whether to add the metrics per client, each on its own test samples; clients without any do not count.
    """
    losses = found.losses.astype(np.float64)
    out = {"eval/loss": float(losses.mean())}
    if task == "regression":
        out["eval/mse"] = out["eval/loss"]
    scores = found.scores.astype(np.float64)
    if len(scores):
        out["eval/accuracy"] = float(scores.mean())
    sizes = test.sizes()
    if clients and (tested := sizes > 0).any():
        per = scores if len(scores) else losses
        name = "accuracy" if len(scores) else "loss"
        mine = np.add.reduceat(per[: test.start[-1]], test.start[:-1][tested]) / sizes[tested]
        ordered = np.sort(mine) if name == "accuracy" else -np.sort(-mine)
        worst = ordered[: -(-len(mine) // 10)]
        out |= {
            f"eval/client_{name}_mean": float(mine.mean()),
            f"eval/client_{name}_std": float(mine.std()),
            f"eval/client_{name}_worst10": float(worst.mean()),
        }
    guesses, y = found.guesses, test.y[: len(losses)]
    if not len(guesses):
        return Evaluation(out, None)
    classes = int(max(guesses.max(), test.y.max())) + 1
    cells = np.bincount(y * classes + guesses, minlength=classes**2)
    return Evaluation(out, cells.reshape(classes, classes))
