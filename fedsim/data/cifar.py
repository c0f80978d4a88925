"""CIFAR-10 and CIFAR-100, "python version": pickled batches, plain or compressed.

A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", technical report, University of Toronto 2009.

The batches are pickles, so they are opened only after their published md5 matched, and then by an unpickler that knows
nothing but numpy arrays. Mean and standard deviation per channel: computed from the training files (CIFAR-10), the
commonly published values (CIFAR-100).
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from fedsim.data.arrays import with_digest
from fedsim.data.augment import Augment
from fedsim.data.dataset import Dataset, Split
from fedsim.data.published import DataFile, data_root, read_files
from fedsim.errors import InputError, first_line, require
from fedsim.fields import check_fields

_TEN = "cifar-10/cifar-10-batches-py/"
_HUNDRED = "cifar-100/cifar-100-python/"
CIFAR10_TRAIN = (
    DataFile(
        _TEN + "data_batch_1", {"": "c99cafc152244af753f735de768cd75f", ".xz": "178e27a4d3b205f1d829f62b7c431364"}
    ),
    DataFile(
        _TEN + "data_batch_2", {"": "d4bba439e000b95fd0a9bffe97cbabec", ".xz": "424e3cfb7436412aee435f4814106797"}
    ),
    DataFile(
        _TEN + "data_batch_3", {"": "54ebc095f3ab1f0389bbae665268c751", ".xz": "3a526addde62cdb5eb84a88e82603c4f"}
    ),
    DataFile(
        _TEN + "data_batch_4", {"": "634d18415352ddfa80567beed471001a", ".xz": "a5684bd7cf09705fe6aab191b1fe2946"}
    ),
    DataFile(
        _TEN + "data_batch_5", {"": "482c414d41f54cd18b22e5b47cb7c3cb", ".xz": "9f84c817ec15c505299c2e174a571959"}
    ),
)
CIFAR10_TEST = (
    DataFile(_TEN + "test_batch", {"": "40351d587109b95175f43aff81a1287e", ".xz": "076dde44e938a521437508c0d1612243"}),
)
CIFAR10_META = DataFile(_TEN + "batches.meta", {"": "5ff9c542aee3614f3951f8cda6e48888"})  # class names, not read here
CIFAR100_TRAIN = (DataFile(_HUNDRED + "train", {"": "16019d7e3df5f24257cddd939b257f8d"}),)
CIFAR100_TEST = (DataFile(_HUNDRED + "test", {"": "f0ef6b0ae62326f3e7ffdfab6717acfc"}),)
CIFAR100_META = DataFile(_HUNDRED + "meta", {"": "7973b15100ade9c7d40fb424638fde48"})  # class names, not read here

_RECONSTRUCT = np.empty(0).__reduce__()[0]  # numpy's own, wherever this version of numpy keeps it
_GLOBALS: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


@dataclass(frozen=True)
class CIFAR10:
    """Colour images: uint8 [n, 3, 32, 32], 50,000 / 10,000, 10 classes.

    Reading takes about 1 s from plain batches. From ``.xz`` it takes 1 to 2 s of CPU more per batch, spread over all
    cores; ``xz -dk *.xz`` in the folder unpacks them once and for all.

    Attributes:
        root: folder that holds ``cifar-10/cifar-10-batches-py/``; None: FEDSIM_DATA or the user's cache folder.
        augment: flip and crop training images at random (see ``fedsim.data.augment``).
        crop: with ``augment``: probability of the random crop, in [0, 1].
    """

    root: str | None = None
    augment: bool = False
    crop: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self)
        require(0 <= self.crop <= 1, "crop", "be in [0, 1]", self.crop)

    def load(self, seed: int) -> Dataset:
        """Read the six batches; the seed plays no part."""
        train, test = read_images(self.root, (CIFAR10_TRAIN, CIFAR10_TEST), "cifar10", "labels", classes=10)
        return with_digest(
            Dataset(
                "cifar10",
                train,
                test,
                "classification",
                outputs=10,
                mean=(0.4914, 0.4822, 0.4465),
                std=(0.2470, 0.2435, 0.2616),
                augment=Augment(crop=self.crop) if self.augment else None,
            )
        )


@dataclass(frozen=True)
class CIFAR100:
    """Colour images: uint8 [n, 3, 32, 32], 50,000 / 10,000, 100 classes in 20 superclasses.

    Attributes:
        root: folder that holds ``cifar-100/cifar-100-python/``; None: FEDSIM_DATA or the user's cache folder.
        labels: ``fine`` (100 classes) or ``coarse`` (20 superclasses).
        augment: flip and crop training images at random (see ``fedsim.data.augment``).
        crop: with ``augment``: probability of the random crop, in [0, 1].
    """

    root: str | None = None
    labels: Literal["fine", "coarse"] = "fine"
    augment: bool = False
    crop: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self)
        require(0 <= self.crop <= 1, "crop", "be in [0, 1]", self.crop)

    def load(self, seed: int) -> Dataset:
        """Read the two files; the seed plays no part."""
        key, classes = f"{self.labels}_labels", 100 if self.labels == "fine" else 20
        train, test = read_images(self.root, (CIFAR100_TRAIN, CIFAR100_TEST), "cifar100", key, classes)
        return with_digest(
            Dataset(
                "cifar100",
                train,
                test,
                "classification",
                outputs=classes,
                mean=(0.5071, 0.4865, 0.4409),
                std=(0.2673, 0.2564, 0.2762),
                augment=Augment(crop=self.crop) if self.augment else None,
            )
        )


def read_images(
    root: str | None, splits: Sequence[Sequence[DataFile]], source: str, key: str, classes: int
) -> list[Split]:
    """The images of each split's batches, in file order.

    Args:
        root: data root, or None for the default.
        splits: the batches of each, with the md5 that must match before they are unpickled.
        source: the data set's name, for messages.
        key: which labels: ``labels``, ``fine_labels`` or ``coarse_labels``.
        classes: number of classes.

    Raises:
        InputError: a batch is missing, damaged, unsafe, or not in the expected form.
    """
    files = [file for split in splits for file in split]
    contents = read_files(data_root(root), files, source)
    batches = iter([_batch(content, file.path, key, classes) for content, file in zip(contents, files, strict=True)])
    parts = [[next(batches) for _ in split] for split in splits]
    return [Split(np.concatenate([b.x for b in part]), np.concatenate([b.y for b in part])) for part in parts]


def _batch(content: bytes, where: str, key: str, classes: int) -> Split:
    batch = unpickle(content, where)
    if not isinstance(batch, dict) or not {"data", key} <= batch.keys():
        raise InputError(f"{where}: must hold a dictionary with 'data' and {key!r}, got {type(batch).__name__}")
    data, labels = batch["data"], np.asarray(batch[key])
    if not (isinstance(data, np.ndarray) and data.dtype == np.uint8 and data.ndim == 2 and data.shape[1] == 3072):
        raise InputError(f"{where}: data must be uint8 [n, 3072], got {getattr(data, 'shape', type(data))}")
    if labels.shape != data.shape[:1] or labels.dtype.kind not in "iu" or not np.isin(labels, range(classes)).all():
        raise InputError(f"{where}: {key} must be {len(data)} integers in 0..{classes - 1}, got {labels.shape}")
    return Split(data.reshape(-1, 3, 32, 32), labels.astype(np.int64))


def unpickle(content: bytes, where: str) -> Any:
    """Open a pickle (of Python 2 or 3) that may hold numpy arrays and plain values, and nothing else.

    Raises:
        InputError: it is not a pickle, or asks for any other object.
    """
    try:
        return _NumpyUnpickler(io.BytesIO(content), encoding="latin1").load()
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, IndexError, KeyError, AttributeError) as error:
        raise InputError(
            f"{where}: cannot be opened as a batch of images ({first_line(error)}); download it again"
        ) from error


class _NumpyUnpickler(pickle.Unpickler):
    """Finds the four globals of a pickled numpy array; refuses every other."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _GLOBALS[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"refused to load {module}.{name}") from None
