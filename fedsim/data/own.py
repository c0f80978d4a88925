"""A user's own arrays as a data set: the one path that files, tables and folders of images take to ``Dataset``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.data.arrays import TrainTest, check_share, divide, holdout, holdout_of_each, standardise, with_digest
from fedsim.data.augment import Augment
from fedsim.data.dataset import Dataset, Split
from fedsim.data.losses import Task, task_of
from fedsim.data.meaning import as_inputs, as_targets, channel_statistics, outputs_of, told_by
from fedsim.data.numbered import as_names, number_names
from fedsim.errors import require
from fedsim.fields import check_fields
from fedsim.ground import addresses
from fedsim.ground.rng import numpy_stream


@dataclass(frozen=True, eq=False)
class Arrays:
    """Arrays in memory as a source, made by ``from_arrays``, which describes the fields."""

    x: Any
    y: Any
    client: Any = None
    x_test: Any = None
    y_test: Any = None
    client_test: Any = None
    test: float = 0.2
    task: str | Task | None = None
    outputs: int | None = None
    name: str = "own"
    standardise: bool = False
    augment: Augment | None = None
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_fields(self)
        check_share(self.test, "test")
        check_outputs(self.outputs)
        pairs = (self.x_test is None) == (self.y_test is None)
        require(pairs, f"data {self.name}", "have x_test and y_test, or neither", "one of them")
        tested = self.client_test is None or (self.client is not None and self.x_test is not None)
        require(tested, f"data {self.name}: client_test", "come with client and x_test", "one without the other")
        for part in ("x", "y"):
            require(getattr(self, part) is not None, self._at(part), "be given", None)
        for part in ("x", "x_test"):
            self._fit(part, None if getattr(self, part) is None else as_inputs(getattr(self, part), self._at(part)))
        for part in ("y", "y_test", "client", "client_test"):
            self._fit(part, None if getattr(self, part) is None else as_names(getattr(self, part), self._at(part)))
        for part, of in (("y", "x"), ("client", "x"), ("y_test", "x_test"), ("client_test", "x_test")):
            if getattr(self, part) is not None:
                got, samples = len(getattr(self, part)), len(getattr(self, of))
                require(got == samples, self._at(part), f"have one entry for each of the {samples} samples", got)
        require(len(self.x) > 0, self._at("x"), "hold samples", 0)

    def _fit(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)  # a frozen dataclass, while it is made

    def _at(self, part: str) -> str:
        return f"data {self.name}: {part}"

    def load(self, seed: int) -> Dataset:
        """Number labels and clients, hold out and scale; the seed decides which samples are held out."""
        task = self.task or told_by(self.y, self._at("y"))
        y, classes = self._labels(task)
        client, clients = self._numbers(self.client, self.client_test, "client")
        if self.x_test is None:
            train, test = divide(self._parts(seed, y[0], client, task), self.x, y[0], client[0] if client else None)
        else:
            train = Split(self.x, y[0], client[0] if client else None)
            test = Split(self.x_test, y[1], client[1] if len(client) > 1 else None)
        if self.standardise:
            train, test = _standardised(train, test, self._at("x"))
        outputs = self.outputs or outputs_of(task, y, self.x, classes)
        self._check_classes(classes, outputs)
        mean, std = channel_statistics(train.x) if train.x.dtype == np.uint8 else ((), ())
        made = Dataset(self.name, train, test, task, outputs, mean, std, self.augment)
        return with_digest(replace(made, classes=self.classes or classes, clients=clients))

    def _labels(self, task: str | Task) -> tuple[list[np.ndarray], tuple[str, ...]]:
        """Targets of the training and test samples, and the names of the classes."""
        parts = [part for part in (self.y, self.y_test) if part is not None]
        text = any(part.dtype.kind == "U" for part in parts)
        if task_of(task).classes and (self.outputs is None or text):
            return self._numbers(self.y, self.y_test, "y")
        require(not text, self._at("y"), f"be numbers for {task}", "text")
        return [as_targets(part, task, self._at("y")) for part in parts], ()

    def _check_classes(self, found: tuple[str, ...], outputs: int) -> None:
        """Raise InputError where there is but one class, or names were given that are not those of the classes."""
        do = "say outputs=K where K classes are possible"
        require(len(found) != 1 or self.outputs is not None, self._at("y"), "hold two classes at least", found, do)
        given, text = self.classes, self.y.dtype.kind == "U"
        require(not given or not text or given == found, self._at("classes"), "be left out where y has names", given)
        named = f"name each of the {outputs} classes"
        require(not given or len(given) == outputs, self._at("classes"), named, len(given))

    def _numbers(self, first: Any, second: Any, name: str) -> tuple[list[np.ndarray], tuple[str, ...]]:
        parts = [part for part in (first, second) if part is not None]
        return number_names(parts, self._at(name)) if parts else ([], ())

    def _parts(self, seed: int, y: np.ndarray, client: Sequence[np.ndarray], task: str | Task) -> TrainTest:
        rng = numpy_stream(seed, addresses.DATA_SPLIT)
        label = y if task_of(task).classes and y.ndim == 1 else np.zeros(len(y), np.int64)
        if not client:
            return holdout(label, self.test, rng)
        return holdout_of_each(client[0], np.unique(label, return_inverse=True)[1], self.test, rng)


def from_arrays(
    x: Any,
    y: Any,
    *,
    client: Any = None,
    x_test: Any = None,
    y_test: Any = None,
    client_test: Any = None,
    test: float = 0.2,
    task: str | Task | None = None,
    outputs: int | None = None,
    name: str = "own",
    standardise: bool = False,
    augment: Augment | None = None,
    classes: Sequence[str] = (),
) -> Arrays:
    """A data source from arrays, tensors or lists.

    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> whose = ["ann", "bob", "eve", "kim", "lee"] * 10
    >>> data = from_arrays(rng.normal(size=(50, 3)), ["cat", "dog"] * 25, client=whose).load(seed=0)
    >>> len(data.train), len(data.test), data.task, data.classes, data.clients
    (40, 10, 'classification', ('cat', 'dog'), ('ann', 'bob', 'eve', 'kim', 'lee'))

    Args:
        x: [n, ...] samples: uint8 images [n, c, h, w], which are scaled with the mean and standard deviation of the
            training images; floating-point features or images, used as they are (float32); whole numbers are tokens.
        y: [n] targets. Text, truth values and whole numbers are classes, which become 0, 1, ... in ascending order;
            floating-point numbers are targets of regression. ``task`` decides otherwise.
        client: [n] whose sample each is, by name or number: the clients of ``partition=natural``.
        x_test: test samples.
        y_test: their targets.
        client_test: their clients.
        test: without ``x_test``, the share held out for testing, chosen by the run's seed in proportion to clients
            and classes; in [0, 1), 0 for no test samples.
        task: such as ``classification``, ``regression`` or ``multilabel``, or a ``Task``; None: told by ``y``.
        outputs: number of classes, whose labels are then kept as they are; None: as many as there are.
        name: of the data, for messages.
        standardise: give features the mean 0 and the variance 1 of the training samples.
        augment: train-time augmentation of images.
        classes: names of the classes 0, 1, ..., where labels are numbers.

    Raises:
        InputError: names the array, what it must be, what it is, what to do.
    """
    return Arrays(
        x=x,
        y=y,
        client=client,
        x_test=x_test,
        y_test=y_test,
        client_test=client_test,
        test=test,
        task=task,
        outputs=outputs,
        name=name,
        standardise=standardise,
        augment=augment,
        classes=tuple(classes),
    )


def check_outputs(outputs: int | None) -> None:
    """Raise InputError unless there are as many outputs, or the data say how many."""
    require(outputs is None or outputs >= 1, "outputs", "be >= 1", outputs, "null leaves it to the data")


def stem(path: str) -> str:
    """The name of a data set that comes from a file or folder: ``wine`` of ``~/data/wine.csv.gz``."""
    return Path(path).expanduser().absolute().name.partition(".")[0] or "own"


def _standardised(train: Split, test: Split | None, where: str) -> tuple[Split, Split | None]:
    features = train.x.dtype.kind == "f"
    require(features, where, "be floating-point features to be standardised", str(train.x.dtype))
    scaled = standardise(train.x, *([] if test is None else [test.x]))
    return replace(train, x=scaled[0]), None if test is None else replace(test, x=scaled[1])
