"""Digits, the IDX format, CIFAR's pickles: on small files written here."""

from __future__ import annotations

import gzip
import hashlib
import lzma
import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest

from fedsim.data import CIFAR10, CIFAR100, MNIST, Augment, Digits, FashionMNIST
from fedsim.data.cifar import read_images, unpickle
from fedsim.data.idx import parse_idx, read_idx_dataset
from fedsim.data.published import DataFile
from fedsim.errors import InputError


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def plain(path: str, content: bytes) -> DataFile:
    return DataFile(path, {"": hashlib.md5(content).hexdigest()})


def batch(n: int, key: str, labels: object, protocol: int = 2) -> bytes:
    """A batch as Python 2 wrote it: protocol 2, byte strings for keys and for the array's memory."""
    data = np.random.default_rng(0).integers(0, 256, (n, 3072)).astype(np.uint8)
    if protocol > 2:
        return pickle.dumps({"data": data, key: labels}, protocol=protocol)
    memory = b"T" + struct.pack("<I", data.nbytes) + data.tobytes()  # BINSTRING
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        + b"(K\x01" + b"(J" + struct.pack("<i", n) + b"M\x00\x0ct"
        + b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        + b"\x89" + memory + b"tb"
    )  # fmt: skip
    name = lambda text: b"U" + bytes([len(text)]) + text.encode()  # noqa: E731
    return b"\x80\x02}(" + name("data") + array + name(key) + pickle.dumps(labels, protocol=2)[2:-1] + b"u."


def test_digits_are_those_of_scikit_learn() -> None:
    from sklearn.datasets import load_digits

    images, y = load_digits(return_X_y=True)
    train = Digits(test_share=0).load(0).train
    assert np.array_equal(train.x, (images / 16).astype(np.float32).reshape(-1, 1, 8, 8))
    assert np.array_equal(train.y, y)


def test_digits_are_complete_stratified_and_scaled() -> None:
    data = Digits().load(0)
    assert data.test is not None
    assert (len(data.train), len(data.test)) == (1438, 359)
    assert data.input_shape == (1, 8, 8)
    assert data.train.x.dtype == np.float32
    assert (data.train.x.min(), data.train.x.max()) == (0, 1)
    # every pixel of the file is a whole number of sixteenths, and the file's pixels sum to 561,718
    assert np.concatenate([data.train.x, data.test.x]).sum(dtype=np.float64) * 16 == 561718
    assert np.ptp(np.bincount(data.test.y)) <= 2
    assert data.digest == Digits().load(0).digest != Digits().load(1).digest
    assert Digits(test_share=0).load(0).test is None
    with pytest.raises(InputError, match="test_share must be in"):
        Digits(test_share=1.0)


@pytest.mark.parametrize("packed", [False, True])
def test_idx_data_set_is_read_back(tmp_path: Path, packed: bool) -> None:
    random = np.random.default_rng(0)
    arrays = [random.integers(0, 256, (7, 4, 5)), random.integers(0, 10, 7)]
    arrays += [random.integers(0, 256, (3, 4, 5)), random.integers(0, 10, 3)]
    files = []
    for i, array in enumerate(arrays):
        content = idx(array.astype(np.uint8))
        (tmp_path / f"f{i}{'.gz' * packed}").write_bytes(gzip.compress(content) if packed else content)
        files.append(plain(f"f{i}", content))
    data = read_idx_dataset("toy", str(tmp_path), files, mean=0.1, std=0.3)
    assert data.test is not None
    np.testing.assert_array_equal(data.train.x[:, 0], arrays[0])
    np.testing.assert_array_equal(data.train.y, arrays[1])
    np.testing.assert_array_equal(data.test.x[:, 0], arrays[2])
    np.testing.assert_array_equal(data.test.y, arrays[3])
    assert data.train.x.dtype == np.uint8
    assert data.train.y.dtype == np.int64
    assert (data.mean, data.std, data.outputs, data.task) == ((0.1,), (0.3,), 10, "classification")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "IDX header"),
        (b"\x00\x00\x0d\x01" + bytes(8), r"must start with the IDX header 00 00 08 .* got 00 00 0d"),
        (b"\x00\x00\x08\x03" + bytes(4), "must hold an IDX header of 16 bytes, got 8"),
        (idx(np.zeros((2, 3), np.uint8))[:-1], r"must hold 6 values for sizes \(2, 3\), got 5"),
        (idx(np.zeros((2, 3), np.uint8)) + b"x", "got 7"),
        (b"\x00\x00\x08\x04" + b"\xff" * 16, "must hold .* got 0"),  # sizes whose product overflows 64 bits
    ],
)
def test_malformed_idx_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_idx(content, "some-file")


@pytest.mark.parametrize(
    ("labels", "message"), [([1, 2], "one label per image"), ([1, 2, 10], "labels must be in 0..9")]
)
def test_idx_labels_must_fit_the_images(tmp_path: Path, labels: list[int], message: str) -> None:
    contents = [idx(np.zeros((3, 2, 2), np.uint8)), idx(np.array(labels, np.uint8))]
    for i, content in enumerate(contents):
        (tmp_path / str(i)).write_bytes(content)
    files = [DataFile("0"), DataFile("1")] * 2
    with pytest.raises(InputError, match=f"1: .*{message}"):
        read_idx_dataset("toy", str(tmp_path), files, 0.0, 1.0)


@pytest.mark.parametrize("source", [MNIST, FashionMNIST])
def test_a_truncated_published_file_is_refused(tmp_path: Path, source: type[MNIST] | type[FashionMNIST]) -> None:
    folder = tmp_path / ("mnist" if source is MNIST else "fashion-mnist")
    folder.mkdir()
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (folder / f"{name}-ubyte.gz").write_bytes(gzip.compress(idx(np.zeros((5, 28, 28), np.uint8)))[:-9])
    with pytest.raises(InputError, match=r"train-images-idx3-ubyte\.gz: damaged.*expected md5 [0-9a-f]{32}, got"):
        source(root=str(tmp_path)).load(0)


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("packed", [False, True])
def test_cifar_batches_are_read_in_order(tmp_path: Path, protocol: int, packed: bool) -> None:
    files = []
    for i in range(3):
        content = batch(4 + i, "labels", [i] * (4 + i), protocol)
        (tmp_path / f"b{i}{'.xz' * packed}").write_bytes(lzma.compress(content) if packed else content)
        files.append(plain(f"b{i}", content))
    split, last = read_images(str(tmp_path), [files, files[2:]], "toy", "labels", classes=10)
    np.testing.assert_array_equal(last.x, split.x[9:])
    assert split.x.shape == (15, 3, 32, 32)
    assert split.x.dtype == np.uint8
    np.testing.assert_array_equal(split.y, [0] * 4 + [1] * 5 + [2] * 6)
    first = np.random.default_rng(0).integers(0, 256, (4, 3072)).astype(np.uint8)
    assert split.x[3, 2, 31, 30] == first[3, 2 * 1024 + 31 * 32 + 30]


class Malice:
    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("protocol", range(6))
def test_a_malicious_pickle_is_refused_and_runs_nothing(tmp_path: Path, protocol: int) -> None:
    marker = tmp_path / "owned"
    content = pickle.dumps({"data": Malice(marker), "labels": []}, protocol=protocol)
    with pytest.raises(InputError, match=r"batch: cannot be opened .*refused to load (posix|nt)\.system"):
        unpickle(content, "batch")
    assert not marker.exists()
    pickle.loads(content)  # the same bytes do harm in a plain unpickler: the test can fail
    assert marker.exists()


@pytest.mark.parametrize("name", ["builtins\neval", "numpy\nload", "numpy.lib.npyio\nload", "builtins\ngetattr"])
def test_the_unpickler_knows_nothing_but_arrays(name: str) -> None:
    with pytest.raises(InputError, match="refused to load"):
        unpickle(f"c{name}\n.".encode(), "batch")


def test_a_pickle_with_another_digest_is_not_opened(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10/cifar-10-batches-py"
    folder.mkdir(parents=True)
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        (folder / name).write_bytes(pickle.dumps(Malice(tmp_path / "owned")))
    with pytest.raises(InputError, match=r"data_batch_1: damaged.*expected md5 c99cafc152244af753f735de768cd75f"):
        CIFAR10(root=str(tmp_path)).load(0)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"garbage", "cannot be opened"),
        (b"", "cannot be opened"),
        (pickle.dumps([1, 2]), "must hold a dictionary with 'data' and 'labels', got list"),
        (batch(2, "fine_labels", [0, 1]), "must hold a dictionary"),
        (pickle.dumps({"data": "x", "labels": []}), r"data must be uint8 \[n, 3072\]"),
        (batch(2, "labels", [0]), "labels must be 2 integers in 0..9"),
        (batch(2, "labels", [0, 10]), "labels must be 2 integers in 0..9"),
        (batch(2, "labels", [0.5, 1.0]), "labels must be 2 integers in 0..9"),
    ],
)
def test_malformed_batches_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "b").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_images(str(tmp_path), [[plain("b", content)]], "toy", "labels", classes=10)


def test_cifar_options_are_checked() -> None:
    with pytest.raises(InputError, match="crop must be in"):
        CIFAR10(crop=2.0)
    with pytest.raises(InputError, match="labels must be one of fine, coarse, got 'medium'"):
        CIFAR100(labels="medium")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"cifar100: no file train .* in .*cifar-100-python; run"):
        CIFAR100(root="/nonexistent").load(0)
    assert Augment(crop=0.5).crop == 0.5
