"""A torch data set as a source: any that has a length and gives (input, target) by number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fedsim.data.images import CHANNELS, pixels
from fedsim.data.losses import Task
from fedsim.data.memory import require_memory
from fedsim.data.own import Arrays, from_arrays
from fedsim.data.validate import as_array
from fedsim.errors import require

_DO = "pass a torch.utils.data.Dataset whose samples are (input, target)"


def from_torch(
    dataset: Any,
    *,
    test: Any = 0.2,
    client: Any = None,
    client_test: Any = None,
    task: str | Task | None = None,
    outputs: int | None = None,
    standardise: bool = False,
    name: str = "own",
) -> Arrays:
    """A data source from a map-style torch Dataset, all of whose samples are read now, once.

    Inputs may be tensors, arrays or images of PIL's; images of bytes ([c, h, w], or PIL's in L or RGB) are scaled like
    all images of bytes, those that a transform made floating-point numbers of are used as they are. A random transform
    is drawn once for each sample.

    Args:
        dataset: with a length, and samples (input, target).
        test: the share held out for testing, or the data set of the test samples.
        client: of a sample's number its client, by name or number; or a list of them.
        client_test: the same for the test samples.
        task: as in ``from_arrays``, like ``outputs`` and ``standardise``.
        outputs: number of classes.
        standardise: give features the mean 0 and the variance 1 of the training samples.
        name: of the data, for messages.

    Raises:
        InputError: it is no such data set, or its samples have different shapes.
    """
    share = isinstance(test, (int, float))
    x, y = _read(dataset, f"data {name}")
    given: dict[str, Any] = {"x": x, "y": y, "client": _owners(client, len(x))}
    if not share:
        x_test, y_test = _read(test, f"data {name} (test)")
        given |= {"x_test": x_test, "y_test": y_test, "client_test": _owners(client_test, len(x_test))}
    options: dict[str, Any] = {
        "task": task,
        "outputs": outputs,
        "standardise": standardise,
        "test": test if share else 0.0,
    }
    return from_arrays(**given, **options, name=name)


def _read(dataset: Any, where: str) -> tuple[np.ndarray, Any]:
    """All samples: inputs [n, ...], and targets as they are."""
    sized = hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
    require(sized, where, "be a data set with a length and samples by number", type(dataset).__name__, _DO)
    require(len(dataset) > 0, where, "hold samples", 0)
    first, _ = _sample(dataset, 0, where)
    require_memory(where, len(dataset) * first.nbytes)
    x, y = np.empty((len(dataset), *first.shape), first.dtype), []
    for number in range(len(dataset)):
        array, target = _sample(dataset, number, where)
        same = array.shape == first.shape and array.dtype == first.dtype
        got, do = f"{array.dtype} {list(array.shape)}", "let a transform make them alike"
        require(same, f"{where}: sample {number}", f"be like the first, {first.dtype} {list(first.shape)}", got, do)
        x[number] = array
        y.append(target)
    return x, y if isinstance(y[0], str) else np.asarray(y)


def _sample(dataset: Any, number: int, where: str) -> tuple[np.ndarray, Any]:
    """One input as an array, and its target as a number, text or array."""
    sample = dataset[number]
    pair = isinstance(sample, (tuple, list)) and len(sample) == 2
    require(pair, f"{where}: sample {number}", "be (input, target)", type(sample).__name__, _DO)
    x, y = sample
    if hasattr(x, "getbands"):  # an image of PIL's
        do = "convert('L') or convert('RGB') it"
        require(x.mode in CHANNELS, f"{where}: sample {number}", "be grey (L) or colour (RGB)", x.mode, do)
        x = pixels(x)
    target = y.tolist() if hasattr(y, "tolist") else y
    return np.asarray(x) if isinstance(x, (int, float)) else as_array(x, f"{where}: sample {number}"), target


def _owners(client: Callable[[int], Any] | Any, samples: int) -> Any:
    return [client(number) for number in range(samples)] if callable(client) else client
