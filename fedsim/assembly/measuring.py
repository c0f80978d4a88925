"""What is measured, and the loss, tried on samples before a run starts: a user's own are code nobody has tested."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedsim.assembly.network import is_peers
from fedsim.assembly.parts import Parts
from fedsim.assembly.problems import did_you_mean
from fedsim.assembly.targets import imported
from fedsim.data.arrays import check_memory
from fedsim.data.batches import Feed, Samples
from fedsim.data.dataset import Dataset
from fedsim.data.losses import TASKS, Task, task_of
from fedsim.data.metrics import METRICS, Metric
from fedsim.errors import InputError, require
from fedsim.evaluate import Evaluate
from fedsim.ground.own_code import FAILURES, said
from fedsim.models import twin
from fedsim.pool.scores import Measures
from fedsim.pool.worker import Setup
from fedsim.record.clients_file import CLIENTS, KEYS
from fedsim.traits.declared import traits_of

SOME = 512
"""At most so many test samples are used to try metrics on."""
FEW = 5
"""Samples that a loss is tried on."""


def measures_of(evaluation: Evaluate, dataset: Dataset) -> Measures:
    """What a run measures: what ``evaluate.metrics`` asks for, or what the task has.

    Raises:
        InputError: a metric does not exist, has no meaning for the task, or stands there twice.
    """
    task = task_of(dataset.task)
    key, asked = "evaluate.metrics", evaluation.metrics
    if asked is None:
        key, asked = "task.metrics", task.metrics
    if asked is None:
        asked = ("mse",) if task.outputs == "numbers" else ("accuracy",)
    metrics = tuple(_metric(one, key) for one in asked)
    names = [metric.name for metric in metrics]
    for metric in metrics:
        kind = not metric.tasks or task.outputs in metric.tasks
        must = f"have a meaning for the {task} task, whose outputs are {task.outputs}"
        require(kind, key, must, metric.name, f"choose of {', '.join(_meant(task))}")
        require(names.count(metric.name) == 1, key, "have different names", metric.name)
        require(metric.name != "loss", key, "have other names than the loss, which is always there", metric.name)
        column = not evaluation.clients or metric.name not in KEYS
        require(column, key, f"have other names than {', '.join(KEYS)}, which are columns of {CLIENTS}", metric.name)
    classes = task.outputs != "numbers"
    for metric in metrics:
        require(classes or metric.of in ("examples", "outputs"), key, f"be of outputs for the {task} task", metric.of)
    beside = metrics if evaluation.metrics is not None else tuple(m for m in metrics if not _is_loss(m, task))
    return Measures(task, metrics, beside)


def _is_loss(metric: Metric, task: Task) -> bool:
    """Whether a metric is the loss under another name: ``mse`` of regression."""
    return metric is METRICS["mse"] and task is TASKS["regression"]


def _meant(task: Task) -> list[str]:
    return [name for name, metric in METRICS.items() if not metric.tasks or task.outputs in metric.tasks]


def _metric(asked: Any, key: str) -> Metric:
    """A metric that is named by a word or a dotted path, or is one."""
    if isinstance(asked, str) and "." not in asked:
        do = f"{did_you_mean(asked, METRICS)}there are {', '.join(METRICS)}; one's own is a dotted path: my_module.NAME"
        require(asked in METRICS, key, "be metrics", asked, do)
        return METRICS[asked]
    found = imported(asked, key) if isinstance(asked, str) else asked
    do = "say what it is of, for example NAME = fedsim.data.Metric(fn, of='classes')"
    require(isinstance(found, Metric), key, "be objects of fedsim.data.Metric", asked, do)
    return found  # type: ignore[no-any-return]


def measurable(parts: Parts, setup: Setup) -> Setup:
    """The set-up, its loss and its metrics tried; metrics that give several numbers are not shared out.

    Raises:
        InputError: a loss or a metric of the user's own is not what it says, or ``evaluate.best`` is not recorded.
    """
    if setup.task not in TASKS.values():
        require_loss(setup)
    found = _tried(setup)
    single = tuple(metric for metric in setup.measures.shared if list(found[metric.name]) == [""])
    tags = _tags(parts, found, [metric.name for metric in single])
    best = parts.evaluate.best
    if best is not None:
        do = f"{did_you_mean(best, tags)}recorded are {', '.join(tags)}"
        require(best in tags, "evaluate.best", "be a tag that this run records", best, do)
    return replace(setup, measures=replace(setup.measures, shared=single))


def _outputs(setup: Setup, samples: Samples, most: int) -> tuple[Tensor, Tensor]:
    """The first model's outputs for samples from all over a split, and their targets."""
    rows = np.unique(np.linspace(0, len(samples.x) - 1, most).astype(np.int64))
    model = twin(setup.models[0])
    model.eval()
    feed = Feed(replace(samples, x=samples.x[rows], y=samples.y[rows]), torch.device("cpu"), setup.dtype)
    x, y = feed.take(torch.arange(len(rows)), None)
    with torch.no_grad():
        return model(x), y


def require_loss(setup: Setup) -> None:
    """Raise InputError unless the loss is of each example alone, for any leading dimensions, and has a gradient.

    It is tried in float64, where rounding decides nothing: on some samples, on twice as many as two clients', and one
    by one.
    """
    outputs, y = (t.double() if t.is_floating_point() else t for t in _outputs(setup, setup.train, FEW))
    outputs = outputs.detach().requires_grad_()
    loss, name, n = setup.task.loss, f"task {setup.task}: loss", len(y)
    try:
        losses = loss(outputs, y)
        two = loss(torch.stack([outputs, outputs.flip(0)]), torch.stack([y, y.flip(0)]))
        alone = [loss(outputs[i : i + 1], y[i : i + 1]) for i in range(n)]
    except FAILURES as error:  # user code: any type
        what = f"outputs {list(outputs.shape)} or [2, {n}, ...] and y {list(y.shape)}"
        flat = "; a function of torch wants outputs.flatten(0, -2) and y.flatten()" if outputs.dim() > y.dim() else ""
        raise InputError(f"{name} fails on {what}: {said(error)}{flat}") from error
    _require_shape(losses, [n], name, "one number for each example")
    _require_shape(two, [2, n], name, "one number for each example of two clients")
    for one in alone:
        _require_shape(one, [1], name, "one number for one example")
    require(bool(torch.isfinite(losses).all()), name, "be finite at the initial model", losses.tolist())
    require(losses.requires_grad, name, "depend on the outputs", "a number without a gradient")
    try:
        (gradient,) = torch.autograd.grad(losses.sum(), outputs, allow_unused=True)
    except FAILURES as error:  # of a loss that changed what it was given
        raise InputError(f"{name} must have a gradient, got {said(error)}") from error
    good = gradient is not None and bool(torch.isfinite(gradient).all())
    require(
        good, name, "have a finite gradient at the initial model", "none" if gradient is None else "NaN or infinity"
    )
    must = "be that of each example alone, whatever lies beside it"
    for got, how in (
        (torch.cat(alone), "alone"),
        (two[0], "beside another client's"),
        (two[1].flip(0), "as the second"),
    ):
        gap = float((got - losses).detach().abs().max())
        require(gap <= 1e-9 * (1 + float(losses.detach().abs().max())), name, must, f"a difference of {gap:.1e} {how}")


def _require_shape(found: Any, shape: list[int], name: str, what: str) -> None:
    got = f"{found.dtype} {list(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
    good = isinstance(found, Tensor) and list(found.shape) == shape and found.is_floating_point()
    require(good, name, f"give {shape}, {what}", got)


def _tried(setup: Setup) -> dict[str, dict[str, float]]:
    """What every metric gives for the initial model on some test samples, by name."""
    measures = setup.measures
    outputs, y = _outputs(setup, setup.test, SOME)
    if measures.outputs:
        shape = (len(setup.test.x), *outputs.shape[1:])
        asks = [metric.name for metric in measures.metrics if metric.of in ("outputs", "probabilities")]
        do = f"leave {', '.join(asks)} out of evaluate.metrics, or evaluate on fewer samples"
        check_memory("the outputs of all test samples", shape, setup.dtype.itemsize, do)
    found = {}
    for metric in measures.metrics:
        alone = Measures(measures.task, (metric,))
        try:
            found[metric.name] = alone.of(metric, alone.scores(measures.task.loss, outputs, y), y.numpy())
        except InputError:
            raise
        except FAILURES as error:  # user code: any type
            what = f"{len(y)} test samples at the initial model"
            raise InputError(f"metric {metric.name} fails on {what}: {said(error)}") from error
    return found


def _tags(parts: Parts, found: dict[str, dict[str, float]], shared: Sequence[str]) -> list[str]:
    """The tags ``eval/*`` that the run will record."""
    tags = ["eval/loss"]
    tags += [f"eval/{name}{word and '_'}{word}" for name, values in found.items() for word in values]
    peers = is_peers(parts.algorithm)
    own = not peers and "own" in traits_of(parts.algorithm).hooks
    if parts.evaluate.clients and peers:
        tags += [f"eval/peer_{name}_{what}" for name in ("loss", *shared) for what in ("mean", "worst")]
    elif parts.evaluate.clients or own:
        tags += [f"eval/client_{name}_{what}" for name in shared or ["loss"] for what in ("mean", "std", "worst10")]
    return tags + (["eval/train_loss", "eval/grad_norm2"] if parts.evaluate.gradient else [])
