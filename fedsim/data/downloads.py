"""Where public data sets are to be had, and which of fedsim's data files each download gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fedsim.data.cifar import CIFAR10_META, CIFAR10_TEST, CIFAR10_TRAIN, CIFAR100_META, CIFAR100_TEST, CIFAR100_TRAIN
from fedsim.data.gas_sensor_drift import GAS_FILES
from fedsim.data.housing import HOUSING_FILE
from fedsim.data.idx import FASHION_MNIST_FILES, MNIST_FILES
from fedsim.data.libsvm import KNOWN
from fedsim.data.published import DataFile
from fedsim.data.shakespeare import SHAKESPEARE_FILE


@dataclass(frozen=True)
class Download:
    """One file at its public home.

    Attributes:
        url: where it is.
        path: where it goes, below the data root.
        md5: its digest, or None where none is known.
        gives: the data files that are there afterwards: the file itself, or members of an archive.
    """

    url: str
    path: str
    md5: str | None
    gives: tuple[DataFile, ...]

    @property
    def is_archive(self) -> bool:
        """Whether ``gives`` are to be unpacked from it."""
        return self.path.endswith((".tar.gz", ".zip"))


def _one_by_one(home: str, files: Sequence[DataFile], form: str = "") -> tuple[Download, ...]:
    return tuple(Download(home + f.name + form, f.path + form, f.md5.get(form), (f,)) for f in files)


def _archive(url: str, path: str, md5: str | None, *files: DataFile) -> tuple[Download, ...]:
    return (Download(url, path, md5, files),)


_LIBSVM = "https://www.csie.ntu.edu.tw/~cjlin/libsvmtools/datasets/binary/"
_LIBSVM_DOWNLOADS = {
    name: _one_by_one(_LIBSVM, (known.train,) if known.test is None else (known.train, known.test))
    for name, known in KNOWN.items()
}
DOWNLOADS: dict[str, tuple[Download, ...]] = {
    "mnist": _one_by_one("https://ossci-datasets.s3.amazonaws.com/mnist/", MNIST_FILES, ".gz"),
    "fashion_mnist": _one_by_one(
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/", FASHION_MNIST_FILES, ".gz"
    ),
    "cifar10": _archive(
        "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        "cifar-10/cifar-10-python.tar.gz",
        "c58f30108f718f92721af3b95e74349a",
        *CIFAR10_TRAIN,
        *CIFAR10_TEST,
        CIFAR10_META,
    ),
    "cifar100": _archive(
        "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
        "cifar-100/cifar-100-python.tar.gz",
        "eb9058c3a382ffc7106e4002c42a8d85",
        *CIFAR100_TRAIN,
        *CIFAR100_TEST,
        CIFAR100_META,
    ),
    **_LIBSVM_DOWNLOADS,
    "libsvm": tuple(download for downloads in _LIBSVM_DOWNLOADS.values() for download in downloads),
    "gas_sensor_drift": _archive(
        "https://archive.ics.uci.edu/static/public/224/gas+sensor+array+drift+dataset.zip",
        "gas-sensor-drift/gas+sensor+array+drift+dataset.zip",
        None,
        *GAS_FILES.values(),
    ),
    "california_housing": _one_by_one(
        "https://raw.githubusercontent.com/ageron/handson-ml/master/datasets/housing/", (HOUSING_FILE,)
    ),
    "tiny_shakespeare": _one_by_one(
        "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/", (SHAKESPEARE_FILE,)
    ),
}
"""{name of a data set: its files}"""


def by_hand(name: str, root: Path) -> str:
    """Which files of a data set belong in which folder."""
    paths = [
        root / file.path if download.is_archive else root / download.path
        for download in DOWNLOADS[name]
        for file in download.gives
    ]
    return f"{', '.join(path.name for path in paths)} in {paths[0].parent}"
