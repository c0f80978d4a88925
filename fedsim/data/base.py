"""What a data set is, once read: arrays, a task, and nothing lazy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from fedsim.data.augment import Augment
from fedsim.errors import require

Task = Literal["classification", "regression", "next_token", "least_squares"]


@dataclass(frozen=True)
class Split:
    """Samples of one split.

    Attributes:
        x: [n, ...] inputs: uint8 images [n, c, h, w], floating-point features [n, f] or int64 tokens [n, t].
        y: [n] int64 classes in 0..outputs-1, [n] floating-point targets, or [n, t] int64 next tokens.
        group: [n] int64 natural client of each sample in 0..groups-1, or None.
    """

    x: np.ndarray
    y: np.ndarray
    group: np.ndarray | None = None

    def __post_init__(self) -> None:
        for name in ("y", "group"):
            array = getattr(self, name)
            must = f"have one entry for each of the {len(self.x)} samples"
            require(
                array is None or len(array) == len(self.x), f"Split.{name}", must, None if array is None else len(array)
            )

    def __len__(self) -> int:
        return len(self.x)


@dataclass(frozen=True)
class Dataset:
    """A data set in memory.

    Attributes:
        name: for messages and the provenance file.
        train: training samples, to be divided over clients.
        test: global test samples, or None (evaluation then uses the training samples and says so).
        task: how outputs and targets make a loss (see ``fedsim.losses``).
        outputs: number of classes, of tokens, or of regression outputs.
        mean: per-channel mean for uint8 images scaled to 0..1; () when inputs are used as they are.
        std: per-channel standard deviation, likewise.
        augment: train-time augmentation of images, or None.
        x0: [d] initial model that comes with the problem (``quadratic``), or None.
        digest: sha256 over the arrays, written to provenance.json.
    """

    name: str
    train: Split
    test: Split | None
    task: Task
    outputs: int
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    augment: Augment | None = None
    x0: np.ndarray | None = None
    digest: str = ""

    def __post_init__(self) -> None:
        for name, split in (("train", self.train), ("test", self.test)):
            if split is not None and len(split):
                self._check(name, split)

    def _check(self, name: str, split: Split) -> None:
        """What a file or a user's own class may have got wrong and would show as a bad result only."""
        where = f"data {self.name}: {name}"
        if split.x.dtype.kind == "f":
            require(bool(np.isfinite(split.x).all()), f"{where}.x", "be finite", "NaN or infinite entries")
        if self.task in ("classification", "next_token"):
            whole = split.y.dtype == np.int64
            require(whole, f"{where}.y", "be int64 for classification or next_token", str(split.y.dtype))
            low, high = int(split.y.min()), int(split.y.max())
            ok = low >= 0 and high < self.outputs
            require(ok, f"{where}.y", f"lie in 0..{self.outputs - 1} for outputs={self.outputs}", f"{low}..{high}")

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return tuple(self.train.x.shape[1:])


class Source(Protocol):
    """Where a data set comes from: a frozen dataclass of options with one method."""

    def load(self, seed: int) -> Dataset:
        """Read (or generate) the data; raises InputError when a file is missing or corrupt."""
        ...
