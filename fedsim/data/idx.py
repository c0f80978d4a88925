"""MNIST and Fashion-MNIST: the IDX format, gzip-compressed or plain.

Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, "Gradient-based learning applied to document recognition", Proc. IEEE 1998
(MNIST); H. Xiao, K. Rasul, R. Vollgraf, "Fashion-MNIST", arXiv 1708.07747 (Fashion-MNIST).

Digests: the published md5s of the four ``.gz`` files. Those of the plain MNIST files were computed from them; the plain
Fashion-MNIST files have none and are checked by their structure only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedsim.data.arrays import with_digest
from fedsim.data.dataset import Dataset, Split
from fedsim.data.published import DataFile, data_root, read_files
from fedsim.errors import InputError
from fedsim.fields import check_fields

MNIST_FILES = (
    DataFile(
        "mnist/train-images-idx3-ubyte",
        {".gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873", "": "6bbc9ace898e44ae57da46a324031adb"},
    ),
    DataFile(
        "mnist/train-labels-idx1-ubyte",
        {".gz": "d53e105ee54ea40749a09fcbcd1e9432", "": "a25bea736e30d166cdddb491f175f624"},
    ),
    DataFile(
        "mnist/t10k-images-idx3-ubyte",
        {".gz": "9fb629c4189551a2d022fa330f9573f3", "": "2646ac647ad5339dbf082846283269ea"},
    ),
    DataFile(
        "mnist/t10k-labels-idx1-ubyte",
        {".gz": "ec29112dd5afa0611ce80d1b7f02629c", "": "27ae3e4e09519cfbb04c329615203637"},
    ),
)
FASHION_MNIST_FILES = (
    DataFile("fashion-mnist/train-images-idx3-ubyte", {".gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d"}),
    DataFile("fashion-mnist/train-labels-idx1-ubyte", {".gz": "25c81989df183df01b3e8a0aad5dffbe"}),
    DataFile("fashion-mnist/t10k-images-idx3-ubyte", {".gz": "bef4ecab320f06d8554ea6380940ec79"}),
    DataFile("fashion-mnist/t10k-labels-idx1-ubyte", {".gz": "bb300cfdad3c16e7a12a480ee83cd310"}),
)
CLASSES = 10


@dataclass(frozen=True)
class MNIST:
    """Handwritten digits: uint8 images [n, 1, 28, 28], 60,000 / 10,000, 10 classes; about 0.6 s to read.

    Attributes:
        root: folder that holds ``mnist/``; None: FEDSIM_DATA or the user's cache folder.
    """

    root: str | None = None

    def __post_init__(self) -> None:
        check_fields(self)

    def load(self, seed: int) -> Dataset:
        """Read the four files; the seed plays no part."""
        return read_idx_dataset("mnist", self.root, MNIST_FILES, mean=0.1307, std=0.3081)


@dataclass(frozen=True)
class FashionMNIST:
    """Images of clothing: uint8 [n, 1, 28, 28], 60,000 / 10,000, 10 classes.

    Attributes:
        root: folder that holds ``fashion-mnist/``; None: FEDSIM_DATA or the user's cache folder.
    """

    root: str | None = None

    def __post_init__(self) -> None:
        check_fields(self)

    def load(self, seed: int) -> Dataset:
        """Read the four files; the seed plays no part."""
        return read_idx_dataset("fashion_mnist", self.root, FASHION_MNIST_FILES, mean=0.2860, std=0.3530)


def read_idx_dataset(name: str, root: str | None, files: Sequence[DataFile], mean: float, std: float) -> Dataset:
    """A data set of four IDX files: train images, train labels, test images, test labels.

    Raises:
        InputError: a file is missing, damaged, or images and labels do not fit together.
    """
    contents = read_files(data_root(root), files, name)
    arrays = [parse_idx(content, file.path) for content, file in zip(contents, files, strict=True)]
    train = _split(arrays[0], arrays[1], files[1].path)
    test = _split(arrays[2], arrays[3], files[3].path)
    return with_digest(Dataset(name, train, test, "classification", CLASSES, mean=(mean,), std=(std,)))


def parse_idx(content: bytes, where: str) -> np.ndarray:
    """An IDX file of unsigned bytes: two zeros, type 8, number of dimensions, sizes (big-endian int32), data.

    Raises:
        InputError: another type, or a length that does not fit the sizes.
    """
    if len(content) < 4 or content[:3] != b"\x00\x00\x08":
        raise InputError(
            f"{where}: must start with the IDX header 00 00 08 (unsigned bytes), got {content[:3].hex(' ')}"
        )
    start = 4 + 4 * content[3]
    if len(content) < start:
        raise InputError(f"{where}: must hold an IDX header of {start} bytes, got {len(content)} bytes in all")
    shape = tuple(int(size) for size in np.frombuffer(content, ">u4", content[3], offset=4))
    if len(content) - start != math.prod(shape):
        raise InputError(
            f"{where}: must hold {math.prod(shape)} values for sizes {shape}, got {len(content) - start}; "
            "the file is truncated or damaged"
        )
    return np.array(np.frombuffer(content, np.uint8, offset=start).reshape(shape))


def _split(images: np.ndarray, labels: np.ndarray, where: str) -> Split:
    if images.ndim != 3 or labels.shape != images.shape[:1]:
        raise InputError(
            f"{where}: must hold one label per image, got labels of shape {labels.shape} for images of {images.shape}"
        )
    if labels.size and labels.max() >= CLASSES:
        raise InputError(f"{where}: labels must be in 0..{CLASSES - 1}, got {labels.max()}")
    return Split(images[:, None], labels.astype(np.int64))
