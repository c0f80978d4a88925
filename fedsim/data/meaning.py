"""What a user's arrays mean where he does not say: images or features, classes or targets, and how many."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedsim.data.losses import Task, task_of
from fedsim.data.validate import as_array
from fedsim.errors import require

MOST_CLASSES = 100
"""More different whole numbers than this are not taken for classes, unless the user says so."""


def told_by(y: np.ndarray, where: str) -> str:
    """What targets are for, where the user does not say: names are classes, fractions are for regression."""
    do = "say data.task=classification or data.task=regression (from Python task=...)"
    require(y.ndim == 1, where, "be [n] where no task is given", list(y.shape), do)
    if y.dtype.kind == "f":
        return "regression"
    if y.dtype.kind in "iu":
        kinds = len(np.unique(y))
        few = kinds <= MOST_CLASSES and (kinds <= 20 or len(y) >= 10 * kinds)
        require(few, where, "be few classes where no task is given", f"{kinds} different whole numbers", do)
    return "classification"


def channel_statistics(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of uint8 images [n, c, h, w] once scaled to 0..1.

    From how often each of the 256 values occurs, so that they depend on no order and on no rounding.
    """
    counts = np.zeros((images.shape[1], 256), np.int64)
    for begin in range(0, len(images), 256):  # counting makes int64 of the pixels
        for channel, row in enumerate(counts):
            row += np.bincount(images[begin : begin + 256, channel].reshape(-1), minlength=256)
    value = np.arange(256) / 255
    mean = counts @ value / counts.sum(1)
    std = np.sqrt((counts * (value - mean[:, None]) ** 2).sum(1) / counts.sum(1))
    std[(counts > 0).sum(1) == 1] = 1.0  # a constant channel is only centred
    return tuple(mean.tolist()), tuple(std.tolist())


def as_inputs(x: Any, where: str) -> np.ndarray:
    """Inputs as ``Dataset`` takes them: images stay bytes, numbers with a fraction and truth values are float32."""
    array = as_array(x, where)
    if array.dtype == np.uint8:
        shape = list(array.shape)
        do = "pass x.astype('float32') for features" if array.ndim != 3 else "pass x[:, None]"
        last = array.ndim == 4 and shape[3] in (1, 3, 4) and shape[1] not in (1, 3, 4)
        do = "pass x.transpose(0, 3, 1, 2)" if last else do
        require(array.ndim == 4 and not last, where, "be images [n, c, h, w] where it is uint8", shape, do)
    elif array.dtype.kind in "fb":
        with np.errstate(over="ignore"):  # said below
            narrow = array.astype(np.float32, copy=False)
        beyond = array.dtype.kind == "f" and bool((np.isinf(narrow) & np.isfinite(array)).any())
        if beyond:
            require(False, where, "lie within 3.4e+38, the range of float32", float(np.abs(array).max()))
        return narrow
    return array


def as_targets(y: np.ndarray, task: str | Task, where: str) -> np.ndarray:
    """Targets that are no names: whole numbers for tasks with classes, else float32."""
    if not task_of(task).whole:
        return y.astype(np.float32)
    if y.dtype.kind == "f" and bool((y == np.round(y)).all()):
        return y.astype(np.int64)
    require(
        y.dtype.kind != "f", where, f"be whole numbers for {task}", "fractions", "for these say data.task=regression"
    )
    return y


def outputs_of(task: str | Task, y: list[np.ndarray], x: np.ndarray, classes: tuple[str, ...]) -> int:
    """How many outputs a model has: the classes, the tokens up to the largest, or the targets of a sample."""
    kind = task_of(task).outputs
    if kind == "classes":
        return len(classes)
    if kind == "tokens":
        tokens = max(int(array.max(initial=0)) for array in (*y, x))
        return tokens + 1
    return 1 if y[0].ndim == 1 else y[0].shape[1]
