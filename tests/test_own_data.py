"""A user's own arrays: what can mean one thing only gives the bits of plain arrays, all else is one line that helps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fedsim import Engine, Local, simulate
from fedsim.algorithms.fedavg import FedAvg
from fedsim.data import (
    CIFAR10,
    CIFAR100,
    MNIST,
    Augment,
    CaliforniaHousing,
    Dataset,
    Digits,
    FashionMNIST,
    GasSensorDrift,
    LibSVM,
    Quadratic,
    Split,
    Synthetic,
    TinyShakespeare,
    validate,
)
from fedsim.errors import InputError
from fedsim.models import char_lstm, linear
from fedsim.partition import Iid

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(24, 3)).astype(np.float32)
Y = (X[:, 0] > 0).astype(np.int64)
T = X[:, 0].copy()
PIXELS = RANDOM.integers(0, 255, (24, 1, 4, 4)).astype(np.uint8)
WORDS = RANDOM.integers(0, 5, (24, 6))
NEXT = RANDOM.integers(0, 5, (24, 6))
GROUP = np.arange(24) % 4

KINDS: dict[str, dict[str, Any]] = {
    "features": {"x": X, "y": Y, "task": "classification", "outputs": 2},
    "regression": {"x": X, "y": T, "task": "regression", "outputs": 1},
    "least_squares": {"x": X, "y": T, "task": "least_squares", "outputs": 1},
    "images": {"x": PIXELS, "y": Y, "task": "classification", "outputs": 2, "mean": (0.5,), "std": (0.25,)},
    "tokens": {"x": WORDS, "y": NEXT, "task": "next_token", "outputs": 5},
}


def own(kind: str = "features", test: dict[str, Any] | None = None, **changes: Any) -> Dataset:
    """A data set of one of the kinds; ``test`` changes its test arrays, ``x``, ``y`` and ``group`` both splits'."""
    given = {**KINDS[kind], "group": None, **changes}
    arrays = {name: given.pop(name) for name in ("x", "y", "group")}
    return Dataset("own", Split(**arrays), Split(**{**arrays, **(test or {})}), **given)


def run(data: Dataset, model: Any = linear, **changes: Any) -> Any:
    options: dict[str, Any] = {"rounds": 2, "local": Local(batch_size=4), "engine": Engine(backend="serial"), **changes}
    return simulate(FedAvg(lr=0.05), data=data, partition=Iid(clients=4), model=model, **options)


def model_of(kind: str) -> Any:
    return char_lstm if kind == "tokens" else linear


def wide(array: np.ndarray) -> np.ndarray:
    """The same numbers, every second of twice as many and backwards."""
    return np.repeat(array[::-1], 2, axis=0)[::2][::-1]


SAME: dict[str, Any] = {
    "lists": lambda a: a.tolist(),
    "tuples": lambda a: tuple(a.tolist()),
    "tensors": lambda a: torch.from_numpy(a),
    "tensors with a gradient": lambda a: torch.from_numpy(a).requires_grad_(a.dtype.kind == "f"),
    "rows of tensors": lambda a: [torch.from_numpy(row) for row in a] if a.ndim > 1 else torch.from_numpy(a),
    "big-endian": lambda a: a.astype(a.dtype.newbyteorder(">")),
    "strided": wide,
    "Fortran order": np.asfortranarray,
    "read-only": lambda a: np.frombuffer(a.tobytes(), a.dtype).reshape(a.shape),
    "another size": lambda a: a.astype({"f": np.float64, "i": np.int16, "u": np.uint8}[a.dtype.kind]),
    "long double": lambda a: a.astype(np.longdouble) if a.dtype.kind == "f" else a,
    "unsigned": lambda a: a.astype(np.uint64) if a.dtype.kind == "i" else a,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", SAME)
def test_what_can_mean_one_thing_only_gives_the_bits_of_plain_arrays(kind: str, how: str) -> None:
    arrays = {**{name: KINDS[kind][name] for name in ("x", "y")}, "group": GROUP}
    if kind == "images" and how in ("lists", "tuples"):
        arrays.pop("x")  # a list does not say that its numbers are bytes
    plain = own(kind, group=GROUP)
    data = own(kind, **{"group": GROUP, **{name: SAME[how](array) for name, array in arrays.items()}})
    for split, want in ((data.train, plain.train), (data.test, plain.test)):
        for name in ("x", "y", "group"):
            assert getattr(split, name).dtype.kind == getattr(want, name).dtype.kind
            assert getattr(split, name).dtype.isnative
        for name in ("x", "y", "group"):
            np.testing.assert_array_equal(getattr(split, name), getattr(want, name))
    a, b = run(plain, model_of(kind)), run(data, model_of(kind))
    assert b.metrics[-1]["eval/loss"] == a.metrics[-1]["eval/loss"]


def test_truth_values_and_small_floats_are_numbers() -> None:
    assert own(x=X > 0).train.x.dtype == np.float32
    assert own(y=Y == 1).train.y.tolist() == Y.tolist()
    assert own("regression", y=Y).train.y.dtype == np.float64
    half = own(x=torch.from_numpy(X).to(torch.bfloat16))
    assert half.train.x.dtype == np.float32
    assert run(half).status == run(own(x=X.astype(np.float16))).status == "finished"


NAN = X.copy()
NAN[3, 1] = np.nan
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "one-hot labels": ({"y": np.eye(2, dtype=np.int64)[Y]}, r"train.y .*\[24, 2\]; pass y.argmax\(1\)"),
    "a column of labels": ({"y": Y[:, None]}, r"train.y .*\[24, 1\]; pass y\[:, 0\]"),
    "labels as floats": ({"y": Y.astype(np.float64)}, "train.y must be int64"),
    "labels as text": ({"y": np.where(Y, "cat", "dog")}, "Split.y must be an array of numbers"),
    "labels from 1": ({"y": Y + 1}, "train.y must lie in 0..1 for outputs=2, got '1..2'; pass y - 1"),
    "labels -1 and 1": ({"y": 2 * Y - 1}, r"train.y must lie in 0..1.*pass \(y > 0\)"),
    "a label too many": ({"outputs": 2, "y": np.arange(24) % 3}, "train.y must lie in 0..1"),
    "no labels": ({"y": None}, "Split.y must be an array"),
    "labels of a test sample": ({"test": {"y": Y + 5}}, "test.y must lie in"),
    "uint64 beyond int64": ({"y": np.full(24, 2**63, np.uint64)}, "train.y must fit into int64"),
    "a column of targets": ({"kind": "regression", "y": T[:, None]}, r"train.y must be \[n\].*pass y\[:, 0\]"),
    "a column of test targets": ({"kind": "regression", "test": {"y": T[:, None]}}, r"test.y must be \[n\]"),
    "three targets": ({"kind": "regression", "y": np.stack([T] * 3, 1)}, "train.y must be"),
    "three outputs": ({"kind": "regression", "outputs": 3}, "outputs must be 1 for regression"),
    "NaN target": ({"kind": "regression", "y": np.where(T > 0, np.nan, T)}, "train.y must be finite"),
    "infinite test target": ({"kind": "least_squares", "test": {"y": np.full(24, np.inf)}}, "test.y must be finite"),
    "complex targets": ({"kind": "regression", "y": T + 1j}, "Split.y must be an array of numbers"),
    "NaN": ({"x": NAN}, "train.x must be finite"),
    "NaN in a test sample": ({"test": {"x": NAN}}, "test.x must be finite"),
    "objects": ({"x": X.astype(object)}, "Split.x must be an array of numbers"),
    "complex": ({"x": X.astype(complex)}, "Split.x must be an array of numbers"),
    "text": ({"x": X.astype(str)}, "Split.x must be an array of numbers"),
    "dates": ({"x": np.zeros((24, 3), "datetime64[s]")}, "Split.x must be an array of numbers"),
    "masked": ({"x": np.ma.masked_less(X, 0)}, "masked array"),
    "ragged": ({"x": [[1.0, 2.0], [3.0]] * 12}, "Split.x must be an array of numbers"),
    "a sparse tensor": ({"x": torch.from_numpy(X).to_sparse()}, "Split.x must be an array"),
    "a number": ({"x": 3.0}, "Split.x must be an array"),
    "a dictionary": ({"x": {"a": X}}, "Split.x must be an array"),
    "a generator": ({"x": (row for row in X)}, "Split.x must be an array"),
    "a torch data set": ({"x": torch.utils.data.TensorDataset(torch.from_numpy(X))}, "Split.x must be an array"),
    "one number a sample": ({"x": T}, r"train.x must be \[n, ...\].*x\[:, None\]"),
    "empty samples": ({"x": X[:, :0]}, "train.x must have at least one number"),
    "no samples": ({"x": X[:0], "y": Y[:0]}, "data.train must hold samples"),
    "too few labels": ({"y": Y[:-1]}, "Split.y must have one entry for each of the 24 samples, got 23"),
    "bytes without mean": ({"x": (100 * np.abs(X)).astype(np.uint8)}, "train.x must have a mean"),
    "another width": ({"test": {"x": X[:, :2]}}, r"test.x must have samples of the shape of train.x, \[3\], got \[2\]"),
    "another rank": ({"test": {"x": X[:, :, None]}}, "test.x must have samples of the shape"),
    "another kind": ({"test": {"x": (9 * X).astype(np.int64)}}, "test.x must be of the kind of train.x, float32"),
    "no test samples": ({"test": {"x": X[:0], "y": Y[:0]}}, "data.test must hold samples"),
    "float images with mean": ({"x": PIXELS / 255, "mean": (0.5,), "std": (0.5,)}, "normalise x yourself"),
    "images as int64": ({"x": PIXELS.astype(int), "mean": (0.5,), "std": (0.5,)}, "astype.'uint8'"),
    "images without channels": (
        {"kind": "images", "x": PIXELS[:, 0]},
        r"train.x must be uint8 images.*pass x\[:, None\]$",
    ),
    "int images without channels": (
        {"kind": "images", "x": PIXELS[:, 0].astype(int)},
        r"train.x must be uint8 images.*pass x\[:, None\].astype\('uint8'\)$",
    ),
    "labels of names": (
        {"y": np.array(["cat", "dog"])[Y]},
        r"Split.y must be an array of numbers.*return_inverse=True",
    ),
    "labels of objects": ({"y": np.array(["cat", "dog"], object)[Y]}, r"Split.y must be .*return_inverse=True"),
    "labels of bytes": ({"y": np.array([b"cat", b"dog"])[Y]}, r"Split.y must be .*return_inverse=True"),
    "features of names": ({"x": X.astype(str)}, r"Split.x must be .*astype\('float32'\)"),
    "three means": ({"kind": "images", "mean": (0.5,) * 3, "std": (0.5,) * 3}, "mean must have a number for each"),
    "mean without std": ({"kind": "images", "std": ()}, "std must have as many"),
    "std without mean": ({"kind": "images", "mean": ()}, "std must have as many"),
    "std 0": ({"kind": "images", "std": (0.0,)}, "std must lie in"),
    "negative std": ({"kind": "images", "std": (-0.5,)}, "std must lie in"),
    "std of bytes": ({"kind": "images", "mean": (0.4,), "std": (60.0,)}, "divide it by 255"),
    "mean of bytes": ({"kind": "images", "mean": (125.0,)}, "mean must lie in 0..1.*divide it by 255"),
    "NaN mean": ({"kind": "images", "mean": (float("nan"),)}, "mean must be finite"),
    "mean is a number": ({"kind": "images", "mean": 0.5}, "mean must be a tuple"),
    "mean is text": ({"kind": "images", "mean": "0.5"}, "mean must be a tuple"),
    "group too short": ({"group": GROUP[:-1]}, "Split.group must have one entry"),
    "negative group": ({"group": GROUP - 1}, "group must be >= 0"),
    "group of floats": ({"group": GROUP / 2}, "group must be"),
    "group of names": (
        {"group": [str(g) for g in GROUP]},
        r"Split.group must be an array of numbers.*return_inverse=True",
    ),
    "augmented features": ({"augment": Augment()}, "augment must be None unless x holds images"),
    "augment is true": ({"kind": "images", "augment": True}, "augment must be a fedsim.data.Augment"),
    "the class Augment": ({"kind": "images", "augment": Augment}, "augment must be a fedsim.data.Augment"),
    "float tokens": ({"kind": "tokens", "x": WORDS / 2}, "train.x must be int64 tokens"),
    "next tokens, one": ({"kind": "tokens", "y": NEXT[:, 0]}, r"train.y must be \[n, t\]"),
    "next tokens, fewer": ({"kind": "tokens", "y": NEXT[:, 1:]}, "train.y must have the shape of x"),
    "next token too large": ({"kind": "tokens", "y": NEXT + 5}, "train.y must lie in 0..4"),
    "a task misspelled": ({"task": "classificaton"}, "task must be one of classification"),
    "a callable task": ({"task": nn.functional.mse_loss}, "task must be one of"),
    "no outputs": ({"outputs": 0}, "outputs must be >= 1"),
    "outputs as float": ({"outputs": 2.0}, "outputs must be an int"),
    "outputs as truth": ({"outputs": True}, "outputs must be an int"),
    "x0 of NaN": ({"x0": np.array([np.nan])}, "x0 must be finite"),
    "x0 of rank 2": ({"x0": np.zeros((1, 2))}, r"x0 must be \[d\]"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_all_else_is_one_line_that_names_the_array(name: str) -> None:
    changes, says = REFUSED[name]
    with pytest.raises(InputError, match=says) as caught:
        own(**changes)
    assert "\n" not in str(caught.value)
    assert ", got " in str(caught.value)


@pytest.mark.parametrize("given", [(X, Y), [X, Y], {"x": X}, None, Split, torch.utils.data.TensorDataset()])
def test_a_split_is_a_split(given: Any) -> None:
    with pytest.raises(InputError, match="data own: train must be a Split of arrays, got"):
        Dataset("own", given, None, "classification", 2)
    if given is not None:
        with pytest.raises(InputError, match="data own: test must be a Split of arrays or None, got"):
            Dataset("own", Split(X, Y), given, "classification", 2)


class Last(nn.Module):
    """Predicts from the last token only, where every position has a target."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.last = nn.Embedding(5, 4), nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.rows(x[:, -1]))


class Many(nn.Linear):
    """As many outputs for a sample as there are samples: [m, 3, 1], which a target [m] would broadcast against."""

    def __init__(self) -> None:
        super().__init__(1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x[..., None])


BAD_FIT: dict[str, tuple[Dataset, Any, str]] = {
    "int features": (own(x=(9 * X).astype(np.int32)), linear, r"whole numbers are tokens: for features pass|int64"),
    "tokens without a row": (own("tokens", x=WORDS + 7), char_lstm, "fails on int64 samples .* data.train"),
    "negative tokens": (own("tokens", test={"x": WORDS - 1}), char_lstm, "fails on int64 samples .* data.test"),
    "features for an embedding": (
        own(x=np.abs(np.round(X))),
        lambda: nn.Sequential(nn.Embedding(9, 2), nn.Flatten(), nn.Linear(6, 2)),
        "fails on float32 samples",
    ),
    "outputs without positions": (own("tokens"), Last, r"have outputs \[1, 6, k\] for 1 sample of"),
    "many outputs": (own("regression"), Many, "have outputs"),
    "three outputs": (own("regression"), lambda: nn.Linear(3, 3), "to outputs"),
    "beyond float32": (own(x=1e300 * X.astype(np.float64)), linear, r"data.train.x must lie within 3.4e\+38"),
    "targets beyond float32": (own("regression", y=1e300 * T.astype(np.float64)), linear, "data.train.y must lie"),
    "x0 beyond float32": (own("regression", x0=np.full(4, 1e300)), linear, "data.x0 must lie within"),
}


@pytest.mark.parametrize("name", BAD_FIT)
def test_what_only_the_model_can_tell_is_told_before_anything_starts(name: str, tmp_path: Any) -> None:
    data, model, says = BAD_FIT[name]
    with pytest.raises(InputError, match=says) as caught:
        run(data, model, run_dir=tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


SOURCES: list[Any] = [
    *(Digits(), Synthetic(clients=3, max_size=60), Quadratic(), MNIST(), FashionMNIST(), CIFAR10(augment=True)),
    *(CIFAR100(), LibSVM(), LibSVM("mushrooms"), GasSensorDrift(), CaliforniaHousing(), TinyShakespeare()),
]


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: type(source).__name__)
def test_every_source_gives_what_workers_assume(source: Any) -> None:
    """The validator changes nothing of fedsim's own data: not an array is copied, so that no digest can change."""
    try:
        data = source.load(0)
    except InputError as error:
        pytest.skip(str(error))
    for split in (data.train, data.test):
        if split is not None:
            assert validate.as_array(split.x, "x") is split.x or split.x.base is not None
            assert validate.inputs(split.x, data.task, "x", scaled=bool(data.mean)) is split.x
            y = validate.targets(split.y, data.task, data.outputs, "y")
            assert np.shares_memory(y, split.y)
            assert y.dtype == split.y.dtype
    assert replace(data).train is data.train


def test_a_resumed_run_has_the_same_arrays(tmp_path: Any) -> None:
    run(own(), run_dir=tmp_path / "run")
    with pytest.raises(InputError, match="data"):
        run(own(x=X + 1), run_dir=tmp_path / "run", resume=True, rounds=3)
    assert run(own(), run_dir=tmp_path / "run", resume=True, rounds=3).status == "finished"
