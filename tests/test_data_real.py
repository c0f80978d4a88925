"""The real files, where FEDSIM_DATA has them: counts and ranges stated by their homes."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from fedsim.data import (
    CIFAR10,
    CIFAR100,
    MNIST,
    CaliforniaHousing,
    Dataset,
    FashionMNIST,
    GasSensorDrift,
    LibSVM,
    TinyShakespeare,
)
from fedsim.data.cifar import CIFAR10_TEST, read_images

ROOT = os.environ.get("FEDSIM_DATA")


def needs(folder: str) -> pytest.MarkDecorator:
    present = ROOT is not None and (Path(ROOT) / folder).exists()
    return pytest.mark.skipif(not present, reason=f"FEDSIM_DATA has no {folder}")


def mean_and_std(images: np.ndarray) -> tuple[float, float]:
    """Of uint8 pixels scaled to 0..1, from their histogram."""
    times, level = np.bincount(images.ravel(), minlength=256), np.arange(256) / 255
    mean = float(times @ level / images.size)
    return mean, float(np.sqrt(times @ (level - mean) ** 2 / images.size))


def counts(data: Dataset) -> list[list[int]]:
    splits = [split for split in (data.train, data.test) if split is not None]
    return [np.bincount(split.y, minlength=data.outputs).tolist() for split in splits]


@needs("mnist")
def test_mnist() -> None:
    data = MNIST().load(0)
    train, test = counts(data)
    assert (sum(train), sum(test), min(train), max(train)) == (60_000, 10_000, 5421, 6742)
    assert mean_and_std(data.train.x) == pytest.approx((data.mean[0], data.std[0]), abs=5e-5)  # four digits
    assert data.input_shape == (1, 28, 28)


@needs("fashion-mnist")
def test_fashion_mnist() -> None:
    data = FashionMNIST().load(0)
    assert counts(data) == [[6000] * 10, [1000] * 10]
    assert mean_and_std(data.train.x) == pytest.approx((data.mean[0], data.std[0]), abs=5e-5)


@needs("cifar-10")
def test_cifar10_test_batch() -> None:
    (split,) = read_images(None, [CIFAR10_TEST], "cifar10", "labels", classes=10)
    assert split.x.shape == (10_000, 3, 32, 32)
    assert np.bincount(split.y).tolist() == [1000] * 10
    assert split.y[:5].tolist() == [3, 8, 8, 0, 6]  # cat, ship, ship, airplane, frog: the well-known first images


@pytest.mark.slow  # decompresses six batches: 10 s
@needs("cifar-10")
def test_cifar10() -> None:
    data = CIFAR10(augment=True).load(0)
    assert counts(data) == [[5000] * 10, [1000] * 10]
    for channel in range(3):
        expected = data.mean[channel], data.std[channel]
        assert mean_and_std(data.train.x[:, channel]) == pytest.approx(expected, abs=5e-5)
    assert data.augment is not None


@needs("cifar-100")
@pytest.mark.parametrize(("labels", "classes"), [("fine", 100), ("coarse", 20)])
def test_cifar100(labels: str, classes: int) -> None:
    data = CIFAR100(labels=labels).load(0)  # type: ignore[arg-type]
    assert counts(data) == [[50_000 // classes] * classes, [10_000 // classes] * classes]


@needs("libsvm")
@pytest.mark.parametrize(
    ("name", "features", "expected"),
    [
        ("a9a", 123, [[24720, 7841], [12435, 3846]]),
        ("w8a", 300, [[48270, 1479]]),
        ("mushrooms", 112, [[3916, 4208]]),
    ],
)
def test_libsvm(name: str, features: int, expected: list[list[int]]) -> None:
    data = LibSVM(name=name, test_share=0).load(0)
    assert counts(data) == expected
    assert data.input_shape == (features,)
    assert np.isin(data.train.x, (0, 1)).all()
    assert data.outputs == 2


@needs("gas-sensor-drift")
def test_gas_sensor_drift() -> None:
    data = GasSensorDrift(batches=(1, 2, 3, 4, 5, 6, 8, 9)).load(0)
    train, test = counts(data)
    per_class = [1316, 1664, 681, 592, 1779, 665]  # the counts of the eight batches, summed
    assert [a + b for a, b in zip(train, test, strict=True)] == per_class
    assert data.train.group is not None
    assert data.test is not None
    assert data.test.group is not None
    sizes = np.bincount(data.train.group) + np.bincount(data.test.group)
    assert sizes.tolist() == [445, 1244, 1586, 161, 197, 2300, 294, 470]
    assert data.input_shape == (128,)


@needs("california-housing")
def test_california_housing() -> None:
    data = CaliforniaHousing().load(0)
    assert data.test is not None
    assert (len(data.train), len(data.test), data.input_shape) == (16_512, 4128, (8,))
    assert data.train.y.max() == 1
    y = np.concatenate([data.train.y, data.test.y]).astype(np.float64) * 500_001
    assert y.mean() == pytest.approx(206_855.8, abs=1)  # of the whole file, as commonly reported
    np.testing.assert_allclose(data.train.x.mean(0, dtype=np.float64), 0, atol=1e-6)


@needs("tinyshakespeare")
def test_tiny_shakespeare() -> None:
    data = TinyShakespeare().load(0)
    assert data.test is not None
    assert data.outputs == 65
    assert data.train.group is not None
    assert data.test.group is not None
    assert set(data.train.group) == set(data.test.group) == set(range(181))
    assert (data.train.x[:, 1:] == data.train.y[:, :-1]).all()
    assert data.train.x.min() >= 0
    assert max(data.train.y.max(), data.test.y.max()) == 64
    first = "".join(
        "\n !$&',-.3:;?"[i] if i < 13 else chr(i - 13 + 65) if i < 39 else chr(i - 39 + 97) for i in data.train.x[0]
    )
    assert first.startswith("Before we proceed any further, hear me speak.\n\nYou are all resolved")
