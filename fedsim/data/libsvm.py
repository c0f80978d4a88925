"""Binary and multi-class problems in LIBSVM text format: a9a, w8a, mushrooms, or any file of the user.

C.-C. Chang and C.-J. Lin, "LIBSVM: a library for support vector machines", ACM TIST 2011; the files' home is
https://www.csie.ntu.edu.tw/~cjlin/libsvmtools/datasets/, which publishes no digests: those below were computed from
copies with the sample and feature counts that it states.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedsim.data.arrays import check_share, divide, holdout, with_digest
from fedsim.data.dataset import Dataset, Split
from fedsim.data.published import DataFile, data_root, read_files, read_path
from fedsim.data.svmlight import Sparse, dense, parse
from fedsim.errors import InputError, require
from fedsim.fields import check_fields
from fedsim.ground import addresses
from fedsim.ground.rng import numpy_stream


@dataclass(frozen=True)
class Problem:
    """A classification problem that fedsim knows by name, with its published files.

    Attributes:
        features: number of features.
        train: its file.
        test: its test file, or None.
    """

    features: int
    train: DataFile
    test: DataFile | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        require(self.features >= 1, "features", "be >= 1", self.features)


KNOWN = {
    "a9a": Problem(
        123,
        DataFile("libsvm/a9a", {"": "fb3596510d780aaf76a06dc721d49662"}),
        DataFile("libsvm/a9a.t", {"": "f0bb16cf1ee3e80ff560e9d132ee647e"}),
    ),
    "w8a": Problem(300, DataFile("libsvm/w8a", {"": "05cdbfad8de0af3887c0e6f42fddc32b"})),
    "mushrooms": Problem(112, DataFile("libsvm/mushrooms", {"": "2a52251de564d72e772b25211a84f5f8"})),
}


@dataclass(frozen=True)
class LibSVM:
    """A classification problem in LIBSVM format, as dense float32 features [n, f] in file order.

    Labels become 0..k-1 in ascending order of the numbers in the training file (-1, +1 -> 0, 1).

    Attributes:
        name: ``a9a`` (32,561 / 16,281 x 123), ``w8a`` (49,749 x 300) or ``mushrooms`` (8,124 x 112).
        path: another training file (plain, .gz, .xz or .bz2), read instead of ``name``.
        test_path: the test file that belongs to ``path``.
        n_features: number of features; None: known from ``name``, or the largest index of the files.
        test_share: where there is no test file: share held out, stratified by class; 0 for no test split.
        root: folder that holds ``libsvm/``; None: FEDSIM_DATA or the user's cache folder.
    """

    name: str = "a9a"
    path: str | None = None
    test_path: str | None = None
    n_features: int | None = None
    test_share: float = 0.2
    root: str | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        known = ", ".join(KNOWN)
        require(self.name in KNOWN, "name", f"be one of {known}", self.name, "for another file use data.path=FILE")
        require(self.path is not None or self.test_path is None, "test_path", "come with path", self.test_path)
        require(self.n_features is None or self.n_features > 0, "n_features", "be > 0", self.n_features)
        check_share(self.test_share)

    def load(self, seed: int) -> Dataset:
        """Read the file or files; the seed decides which samples are held out when there is no test file."""
        train, test, features, name = self._parsed()
        classes = np.unique(train.labels)
        x, y = dense(train, features, name), _classes(train.labels, classes, name)
        if test is None:
            parts = holdout(y, self.test_share, numpy_stream(seed, addresses.DATA_SPLIT))
            splits = divide(parts, x, y)
        else:
            where = f"{name} (test)"
            splits = Split(x, y), Split(dense(test, features, where), _classes(test.labels, classes, where))
        return with_digest(Dataset(name, *splits, "classification", outputs=len(classes)))

    def _parsed(self) -> tuple[Sparse, Sparse | None, int, str]:
        if self.path is not None:
            train = _parse_path(self.path)
            test = None if self.test_path is None else _parse_path(self.test_path)
            largest = max(sparse.features for sparse in (train, test) if sparse is not None)
            return train, test, self.n_features or largest, Path(self.path).name
        known, root = KNOWN[self.name], data_root(self.root)
        files = [known.train] if known.test is None else [known.train, known.test]
        contents = read_files(root, files, self.name)
        parsed = [parse(content, file.path) for content, file in zip(contents, files, strict=True)]
        return parsed[0], parsed[1] if parsed[1:] else None, self.n_features or known.features, self.name


def _parse_path(path: str) -> Sparse:
    return parse(read_path(Path(path).expanduser(), {}, "give another file as data.path"), path)


def _classes(labels: np.ndarray, classes: np.ndarray, where: str) -> np.ndarray:
    """Labels as positions in ``classes`` [k], which is ascending."""
    if len(classes) < 2 or not (classes == np.round(classes)).all():
        raise InputError(f"{where}: labels must be two or more whole numbers (classes), got {classes[:5].tolist()}")
    strangers = np.setdiff1d(labels, classes)
    if len(strangers):
        raise InputError(
            f"{where}: labels must be among the training labels {classes.tolist()}, got {strangers.tolist()}"
        )
    return np.searchsorted(classes, labels).astype(np.int64)
