"""What workers assume of arrays, made true or refused: the one place where a user's data are checked.

Lists, tensors and other types of numbers are converted where they can mean one thing only; everything else is an
``InputError`` that names the array, what it must be, what it is, and what to do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedsim.data.losses import Task, task_of
from fedsim.errors import InputError, require
from fedsim.ground.own_code import error_line

LEAST_STD = 1e-6
"""Less than the standard deviation of ten million pixels of which one differs by 1 in 255: a constant channel."""


def as_array(value: Any, where: str) -> np.ndarray:
    """An array, tensor or nested list of numbers as a native numpy array [n, ...].

    Raises:
        InputError: it is none of these, or holds something else than numbers; names ``where``.
    """
    must = "be an array of numbers [n, ...]"
    if isinstance(value, np.ma.MaskedArray):
        raise InputError(f"{where} must {must}, got a masked array; fill it first, for example x.filled(0)")
    known = isinstance(value, (np.ndarray, Tensor, list, tuple)) or hasattr(value, "__array__")
    require(known and not isinstance(value, type), where, must, _kind(value), "pass a numpy array")
    try:
        if isinstance(value, Tensor):
            value = value.detach().cpu()
            value = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
        array = np.asarray(value)
    except Exception as error:  # ragged lists, sparse tensors: numpy and torch raise many types
        raise InputError(f"{where} must {must}, got {_kind(value)} that is no array ({error_line(error)})") from error
    numbers = array.dtype.kind in "biuf" and array.ndim > 0
    do = "convert it, for example x.astype('float32')"
    if array.dtype.kind in "SUO" and where.endswith((".y", ".group")):
        do = "number the names, those of train and test together: numpy.unique(names, return_inverse=True)[1]"
    require(numbers, where, must, f"{array.dtype} {list(array.shape)}", do)
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        return array.astype(np.float64)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def inputs(x: np.ndarray, task: str | Task, where: str, *, scaled: bool) -> np.ndarray:
    """Inputs as workers want them: uint8 images, finite floating-point features or int64 tokens, [n, ...].

    Args:
        x: from ``as_array``; whole numbers other than images become int64 tokens, truth values 0.0 and 1.0.
        task: of the data set.
        where: the name of the array.
        scaled: whether the data set has ``mean`` and ``std``.
    """
    shape = list(x.shape)
    require(x.ndim > 1, where, "be [n, ...], a row for each sample", shape, "for one feature pass x[:, None]")
    require(0 not in shape[1:], where, "have at least one number in each sample", shape)
    if task_of(task).outputs == "tokens":
        whole = x.dtype.kind in "iu" and x.ndim == 2
        require(whole, where, f"be int64 tokens [n, t] for {task}", f"{x.dtype} {shape}")
        return _int64(x, where)
    if scaled:
        do = "normalise x yourself and leave mean and std out"
        if x.dtype.kind in "iu" and x.size and x.min() >= 0 and x.max() <= 255:
            do = "pass x" + ("[:, None]" if x.ndim == 3 else "") + ("" if x.dtype == np.uint8 else ".astype('uint8')")
        image = x.dtype == np.uint8 and x.ndim == 4
        must = "be uint8 images [n, c, h, w] where there is a mean, for it is of images scaled to 0..1"
        require(image, where, must, f"{x.dtype} {shape}", do)
        return x
    if x.dtype == np.uint8:
        do = "give mean and std of images, or pass x.astype('float32') for features, x.astype('int64') for tokens"
        raise InputError(f"{where} must have a mean and a std where it is uint8, got none; {do}")
    if x.dtype.kind in "iu":
        return _int64(x, where)
    if x.dtype.kind == "b":
        return x.astype(np.float32)
    _require_finite(x, where)
    return x


def targets(y: np.ndarray, task: str | Task, outputs: int, where: str) -> np.ndarray:
    """Targets as losses want them: see ``Split.y``.

    Args:
        y: from ``as_array``; whole numbers of any size become int64 classes, or float64 targets of regression. A
            column [n, 1] is refused: against outputs [n] its loss would be of n times n pairs.
        task: of the data set.
        outputs: of the data set; classes lie in 0..outputs-1.
        where: the name of the array.
    """
    goal, shape = task_of(task), list(y.shape)
    do = "pass y[:, 0]" if shape[1:] == [1] else ""
    if not goal.whole:
        wide = not goal.summed and shape[1:] == [outputs] and outputs > 1
        must = f"be [n] for {task}, one target for each sample"
        must += f", or [n, {outputs}]" if outputs > 1 else ""
        require(y.ndim == 1 or wide, where, must, shape, do)
        y = y if y.dtype.kind == "f" else y.astype(np.float64)
        _require_finite(y, where)
        return np.ascontiguousarray(y)
    if goal.outputs == "labels":
        return _truths(y, outputs, f"{task}", where)
    cast = "pass y.astype('int64') if these are classes; for numbers to predict use task='regression'"
    require(y.dtype.kind in "biu", where, f"be int64 for {task}", str(y.dtype), cast)
    if goal.classes:
        several = shape[1:] == [outputs] and outputs > 1
        do = "pass y.argmax(1) if they are one-hot, or use task='multilabel'" if several else do
        require(y.ndim == 1, where, f"be [n] for {task}, the class of each sample", shape, do)
    else:
        require(y.ndim == 2, where, f"be [n, t] for {task}, the next token at each position", shape)
    y = y.astype(np.int64) if y.dtype.kind == "b" else _int64(y, where)
    low, high = (int(y.min()), int(y.max())) if y.size else (0, 0)
    do = f"pass y - {low}" if 0 < high - low < outputs and low == 1 else ""
    do = "pass (y > 0).astype('int64')" if set(np.unique(y[:1000]).tolist()) == {-1, 1} else do
    ok = low >= 0 and high < outputs
    require(ok, where, f"lie in 0..{outputs - 1} for outputs={outputs}", f"{low}..{high}", do)
    return y


def _truths(y: np.ndarray, outputs: int, task: str, where: str) -> np.ndarray:
    """Labels [n, k] as int64 0 and 1."""
    kind = y.dtype.kind in "biuf" and y.ndim == 2 and y.shape[1] == outputs
    require(kind, where, f"be [n, {outputs}] for {task}, 0 or 1 for each label", f"{y.dtype} {list(y.shape)}")
    other = y[(y != 0) & (y != 1)]
    require(not other.size, where, f"be 0 or 1 for {task}", other.flat[0].item() if other.size else 0)
    return np.ascontiguousarray(y.astype(np.int64, copy=False))


def groups(group: np.ndarray, where: str) -> np.ndarray:
    """The natural client of each sample, [n] int64, >= 0."""
    do = "pass numpy.unique(group, return_inverse=True)[1]"
    got = f"{group.dtype} {list(group.shape)}"
    require(group.dtype.kind in "iu" and group.ndim == 1, where, "be [n] int64, the client of each sample", got, do)
    group = _int64(group, where)
    require(not group.size or group.min() >= 0, where, "be >= 0", int(group.min(initial=0)), do)
    return group


def channels(value: Any, where: str) -> tuple[float, ...]:
    """``mean`` or ``std`` as a tuple of finite numbers."""
    must = "be a tuple of numbers, one for each channel, or ()"
    if not isinstance(value, (Sequence, np.ndarray, Tensor)) or isinstance(value, (str, bytes)):
        raise InputError(f"{where} must {must}, got {value!r}")
    if not len(value):
        return ()
    array = as_array(value, where)
    require(array.ndim == 1 and array.dtype.kind in "iuf", where, must, value)
    done = tuple(float(v) for v in value)
    require(all(math.isfinite(v) for v in done), where, "be finite", done)
    return done


def check_scale(mean: tuple[float, ...], std: tuple[float, ...], where: str) -> None:
    """Raise InputError unless mean and std go together and are those of images scaled to 0..1."""
    must = "have as many numbers as mean, or both be ()"
    require(len(mean) == len(std), f"{where}: std", must, f"{len(std)} for {len(mean)}")
    do = "of images in 0..255 divide it by 255"
    require(all(0 <= m <= 1 for m in mean), f"{where}: mean", "lie in 0..1, as images do once scaled", mean, do)
    do = do if max(std, default=0.0) > 1 else "use 1.0 for a channel that does not vary"
    require(all(LEAST_STD <= s <= 1 for s in std), f"{where}: std", f"lie in {LEAST_STD:g}..1", std, do)


def initial_model(x0: Any, where: str) -> np.ndarray:
    """The initial model [d] that comes with a problem."""
    array = as_array(x0, where)
    must = "be [d] floating-point numbers"
    require(array.ndim == 1 and array.dtype.kind == "f", where, must, f"{array.dtype} {list(array.shape)}")
    _require_finite(array, where)
    return np.ascontiguousarray(array)


def _int64(array: np.ndarray, where: str) -> np.ndarray:
    """Whole numbers of any type as int64, exactly."""
    most = int(array.max(initial=0))
    require(most < 2**63, where, "fit into int64", most)
    return array.astype(np.int64, copy=False)


def _require_finite(array: np.ndarray, where: str) -> None:
    require(bool(np.isfinite(array).all()), where, "be finite", "NaN or infinite entries")


def _kind(value: Any) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
