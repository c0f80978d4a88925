"""What a data set is, once read: arrays, a task, and nothing lazy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from fedsim.data import validate
from fedsim.data.augment import Augment
from fedsim.data.losses import Task, task_of
from fedsim.errors import require
from fedsim.fields import fitted, instance

Word = Literal["classification", "regression", "next_token", "least_squares", "multilabel"]
"""The tasks that have a word: ``fedsim.data.losses.TASKS``."""

NAMES = (("classes", tuple[str, ...]), ("clients", tuple[str, ...]))
"""Fields of a data set that name its numbers."""


@dataclass(frozen=True)
class Split:
    """Samples of one split.

    Arrays may be given as numpy arrays, tensors or nested lists; they are numpy arrays afterwards.

    Attributes:
        x: [n, ...] inputs: uint8 images [n, c, h, w], floating-point features [n, f] or int64 tokens [n, t].
        y: [n] int64 classes in 0..outputs-1, [n] floating-point targets or [n, outputs] several, [n, t] int64 next
            tokens, or [n, outputs] int64 labels 0 and 1.
        group: [n] int64 natural client of each sample, >= 0, or None.

    Raises:
        InputError: something is no array of numbers, or has not one entry for each sample.
    """

    x: np.ndarray
    y: np.ndarray
    group: np.ndarray | None = None

    def __post_init__(self) -> None:
        for name in ("x", "y", "group"):
            if name != "group" or self.group is not None:
                array = validate.as_array(getattr(self, name), f"Split.{name}")
                must = f"have one entry for each of the {len(self.x)} samples"
                require(len(array) == len(self.x), f"Split.{name}", must, len(array))
                object.__setattr__(self, name, array)

    def __len__(self) -> int:
        return len(self.x)


@dataclass(frozen=True)
class Dataset:
    """A data set in memory, checked when it is made (``fedsim.data.validate``).

    Whole numbers of any type become int64, truth values 0.0 and 1.0 (as labels 0 and 1).

    Attributes:
        name: for messages and the provenance file.
        train: training samples, one or more, to be divided over clients.
        test: global test samples of the same shape and kind, or None (evaluation then uses the training samples and
            says so).
        task: how outputs and targets make a loss: ``classification``, ``multilabel``, ``regression``, ``next_token``,
            ``least_squares``, or a ``Task`` of one's own.
        outputs: number of classes, of labels, of tokens, or of targets, >= 1.
        mean: per-channel mean, in 0..1, for uint8 images, which are scaled to 0..1; () when inputs are used as they
            are: features, tokens, images that are normalised already.
        std: per-channel standard deviation, likewise, in (0, 1].
        augment: train-time augmentation of images [n, c, h, w], or None.
        x0: [d] initial model that comes with the problem (``quadratic``), or None.
        digest: sha256 over the arrays, written to provenance.json.
        classes: names of the classes 0, 1, ... where labels had others, kept in the run's names.json; else ().
        clients: names of the natural clients 0, 1, ..., likewise.

    Raises:
        InputError: names the array, what it must be, what it is, what to do.
    """

    name: str
    train: Split
    test: Split | None
    task: str | Task
    outputs: int
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    augment: Augment | None = None
    x0: np.ndarray | None = None
    digest: str = ""
    classes: tuple[str, ...] = ()
    clients: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self._set("name", fitted(self.name, str, "Dataset.name", instance))
        where = f"data {self.name}"
        for name, kind in (("task", Word | Task), ("outputs", int), ("digest", str), *NAMES):
            self._set(name, fitted(getattr(self, name), kind, f"{where}: {name}", instance))
        require(self.outputs >= 1, f"{where}: outputs", "be >= 1", self.outputs)
        several = isinstance(self.train, Split) and self.train.y.ndim > 1 and not task_of(self.task).summed
        one = task_of(self.task).whole or self.outputs == 1 or several
        require(one, f"{where}: outputs", f"be 1 for {self.task}, which has one target", self.outputs)
        for name in ("mean", "std"):
            self._set(name, validate.channels(getattr(self, name), f"{where}: {name}"))
        validate.check_scale(self.mean, self.std, where)
        for name in ("train", "test"):
            self._set(name, self._checked(getattr(self, name), name))
        self._check_shapes(where)
        if self.x0 is not None:
            self._set("x0", validate.initial_model(self.x0, f"{where}: x0"))

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)  # a frozen dataclass, while it is made

    def _checked(self, split: Any, name: str) -> Split | None:
        """A split as workers want it."""
        where, optional = f"data {self.name}: {name}", name == "test"
        if split is None and optional:
            return None
        must = "be a Split of arrays" + (" or None" if optional else "")
        require(isinstance(split, Split), where, must, _kind(split), "pass fedsim.data.Split(x, y)")
        require(len(split) > 0, f"data.{name}", "hold samples", 0, "leave it out with test=None" if optional else "")
        x = validate.inputs(split.x, self.task, f"{where}.x", scaled=bool(self.mean))
        y = validate.targets(split.y, self.task, self.outputs, f"{where}.y")
        group = None if split.group is None else validate.groups(split.group, f"{where}.group")
        if task_of(self.task).outputs == "tokens":
            require(x.shape == y.shape, f"{where}.y", f"have the shape of x, {list(x.shape)}", list(y.shape))
        same = x is split.x and y is split.y and group is split.group
        return split if same else Split(x, y, group)

    def _check_shapes(self, where: str) -> None:
        """Test samples are like training samples, images have the channels of mean, and only images are augmented."""
        x = self.train.x
        if self.mean:
            must = f"have a number for each of the {x.shape[1]} channels of images [n, c, h, w]"
            require(len(self.mean) == x.shape[1], f"{where}: mean", must, f"{len(self.mean)} for {list(x.shape)}")
        if self.test is not None:
            must = f"have samples of the shape of train.x, {list(x.shape[1:])}"
            test = self.test.x
            require(test.shape[1:] == x.shape[1:], f"{where}: test.x", must, list(test.shape[1:]))
            must = f"be of the kind of train.x, {x.dtype}"
            require(test.dtype.kind == x.dtype.kind, f"{where}: test.x", must, str(test.dtype))
        if self.augment is not None:
            kind = isinstance(self.augment, Augment)
            require(kind, f"{where}: augment", "be a fedsim.data.Augment or None", _kind(self.augment))
            images, got = x.ndim == 4 and x.dtype.kind in "uf", f"x of {x.dtype} {list(x.shape)}"
            require(images, f"{where}: augment", "be None unless x holds images [n, c, h, w]", got)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return tuple(self.train.x.shape[1:])


class Source(Protocol):
    """Where a data set comes from: a frozen dataclass of options with one method."""

    def load(self, seed: int) -> Dataset:
        """Read (or generate) the data; raises InputError when a file is missing or corrupt."""
        ...


def _kind(value: Any) -> str:
    """What a value is, for messages."""
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
