"""Download public data sets into the layout that fedsim reads: resumable, checked, unpacked.

Every file is checked against the digest in ``fedsim.data`` before it gets its name; an interrupted download is resumed
by running the command again.
"""

from __future__ import annotations

import argparse
import http.client
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from fedsim.data.cifar import CIFAR10_META, CIFAR10_TEST, CIFAR10_TRAIN, CIFAR100_META, CIFAR100_TEST, CIFAR100_TRAIN
from fedsim.data.fetch import fetch, unpack
from fedsim.data.gas_sensor_drift import GAS_FILES
from fedsim.data.housing import HOUSING_FILE
from fedsim.data.idx import FASHION_MNIST_FILES, MNIST_FILES
from fedsim.data.libsvm import KNOWN
from fedsim.data.published import DataFile, data_root, locate, read_file
from fedsim.data.shakespeare import SHAKESPEARE_FILE
from fedsim.errors import InputError


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
SOURCES: dict[str, tuple[Download, ...]] = {
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


def obtain(name: str, download: Download, root: Path, mirror: str | None, progress: Progress) -> str:
    """Make sure that the files of one download are in place; returns what was done.

    Raises:
        InputError: they cannot be had, are damaged, or are not the published ones.
    """
    if all(locate(root, file) is not None for file in download.gives):
        for file in download.gives:
            read_file(root, file, name)
        return "already there"
    url = download.url if mirror is None else f"{mirror.rstrip('/')}/{download.url.rsplit('/', 1)[1]}"
    target = root / download.path
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            bar = progress.add_task(target.name, total=None)
            fetch(url, target, download.md5, lambda done, total: progress.update(bar, completed=done, total=total))
        if download.is_archive:
            unpack(target, root, download.gives)
            target.unlink()
    except (OSError, http.client.HTTPException) as error:
        raise InputError(
            f"{name}: cannot get {url} ({_reason(error)}); check the network and run again, give --mirror URL, or put "
            f"the files in their place yourself: {_by_hand(name, root)}"
        ) from error
    return "unpacked" if download.is_archive else "downloaded"


def _by_hand(name: str, root: Path) -> str:
    """Which files belong in which folder."""
    paths = [
        root / file.path if download.is_archive else root / download.path
        for download in SOURCES[name]
        for file in download.gives
    ]
    return f"{', '.join(path.name for path in paths)} in {paths[0].parent}"


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", error)
    return " ".join(str(reason).split()) or type(error).__name__


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="download.py",
        description="Download public data sets into the layout that fedsim reads.",
        epilog=f"Names: {', '.join(SOURCES)}. The data sets digits, synthetic and quadratic need no download.",
    )
    parser.add_argument("names", nargs="+", metavar="NAME", choices=list(SOURCES), help="which data sets (see below)")
    parser.add_argument("--root", help="data root (default: $FEDSIM_DATA, else fedsim/ in your cache folder)")
    parser.add_argument("--mirror", metavar="URL", help="get URL/FILE instead of each file's public home")
    args = parser.parse_args(argv)
    root = data_root(args.root)
    console = Console(stderr=True)
    bar = BarColumn(bar_width=None)
    try:
        with Progress(
            TextColumn("{task.description}"), bar, DownloadColumn(), TransferSpeedColumn(), console=console
        ) as p:
            for name in dict.fromkeys(args.names):
                for download in SOURCES[name]:
                    done = obtain(name, download, root, args.mirror, p)
                    print(f"{name}: {Path(download.path).name} {done} in {(root / download.gives[0].path).parent}")
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; run again to continue", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
