"""LIBSVM text, gas sensors and housing: on small files written here."""

from __future__ import annotations

import gzip
import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.data import CaliforniaHousing, GasSensorDrift, LibSVM, gas_sensor_drift
from fedsim.data.housing import INPUTS, parse_housing, prepare_housing
from fedsim.data.published import DataFile
from fedsim.data.svmlight import dense, parse
from fedsim.errors import InputError

SMALL = b"+1 1:0.5 3:-2\n-1 2:1e1 # a remark\n\n-1\n+1 4:0.25\n"


def small_matrix() -> np.ndarray:
    return np.array([[0.5, 0, -2, 0], [0, 10, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0.25]])


def test_svmlight_text_is_read_back() -> None:
    small = parse(SMALL, "small")
    np.testing.assert_array_equal(small.labels, [1, -1, -1, 1])
    np.testing.assert_array_equal(dense(small, 4, "small"), small_matrix())
    wide = dense(small, 6, "small")
    assert wide.dtype == np.float32
    np.testing.assert_array_equal(wide, np.pad(small_matrix(), ((0, 0), (0, 2))))


_WORDS = st.sampled_from(
    ["1", "-1", "+2.5", "1:2", "2:-3e1", "3:+1", "7:.5", "1:", ":1", "1:2:3", "x", "1.5:2", "nan", "0:1"]
)
_LINES = st.lists(st.tuples(st.lists(_WORDS, max_size=4), st.sampled_from(["", " ", "\t", "\r", " # 1:x"])), max_size=4)


@settings(deadline=None, max_examples=400)
@given(_LINES)
def test_svmlight_reads_what_scikit_learn_reads_and_refuses_what_it_refuses(lines: list[tuple[list[str], str]]) -> None:
    from sklearn.datasets import load_svmlight_file

    text = "".join(f"{' '.join(words)}{end}\n" for words, end in lines).encode()
    try:
        values, labels = load_svmlight_file(io.BytesIO(text), dtype=np.float32, zero_based=False)
        expected = values.toarray() if np.isfinite(values.data).all() and np.isfinite(labels).all() else None
    except (ValueError, OverflowError):
        expected = None
    if expected is None or not text.strip() or not len(labels):
        with pytest.raises(InputError):
            parse(text, "f")
        return
    sparse = parse(text, "f")
    np.testing.assert_array_equal(sparse.labels, labels)
    np.testing.assert_array_equal(dense(sparse, expected.shape[1], "f"), expected)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.lists(st.floats(-1e6, 1e6, width=32), min_size=3, max_size=3), min_size=1, max_size=20))
def test_svmlight_round_trip(rows: list[list[float]]) -> None:
    text = "".join(f"1 {' '.join(f'{j + 1}:{v!r}' for j, v in enumerate(row))}\n" for row in rows)
    np.testing.assert_array_equal(dense(parse(text.encode(), "f"), 3, "f"), np.array(rows, np.float32))


@pytest.mark.parametrize(
    ("line", "got"),
    [
        (b"one 1:2", "label 'one'"),
        (b"1:2 2:3", "label '1:2'"),
        (b"nan 1:2", "label 'nan'"),
        (b"1 2", "'2'"),
        (b"1 2:", "'2:'"),
        (b"1 a:2", "'a:2'"),
        (b"1 1:x", "'1:x'"),
        (b"1 1:2:3", "'1:2:3'"),
        (b"1 1:inf", "'1:inf'"),
        (b"1 1:1e99", None),
        (b"1 -1:2", "'-1:2'"),
        (b"1 0:2", "index 0 after 0"),
        (b"1 3:1 2:1", "index 2 after 3"),
        (b"1 3:1 3:1", "index 3 after 3"),
    ],
)
def test_a_malformed_line_is_named(line: bytes, got: str | None) -> None:
    with pytest.raises(InputError) as caught:
        parse(SMALL + line + b"\n1 1:1\n", "some/file")
    message = str(caught.value)
    assert "\n" not in message
    if got is None:  # right by the format, too large for float32
        assert message.startswith("some/file: must hold finite float32")
    else:
        assert message.startswith("some/file:6: must be 'label index:value ...'")
        assert f"got {got}" in message


def test_an_empty_file_and_a_too_small_width_are_refused() -> None:
    with pytest.raises(InputError, match=r"f: must hold lines .* got an empty file"):
        parse(b"\n \n", "f")
    with pytest.raises(InputError, match="n_features must be >= 4, the largest index in f, got 3"):
        dense(parse(SMALL, "f"), 3, "f")


def test_a_matrix_that_would_not_fit_densely_is_refused() -> None:
    wide = parse(b"1 1:1 1000000000:1\n2 1:1\n", "wide")
    with pytest.raises(InputError, match=r"wide must fit in 4 GB .* 2 x 1000000000 numbers = 8\.0 GB; use fewer"):
        dense(wide, 1_000_000_000, "wide")


def test_libsvm_path_with_test_file_and_labels_in_order(tmp_path: Path) -> None:
    (tmp_path / "train.gz").write_bytes(gzip.compress(b"5 1:1\n-3 2:1\n5 3:1\n0 1:2\n"))
    (tmp_path / "test").write_bytes(b"0 5:1\n-3 1:1\n")
    data = LibSVM(path=str(tmp_path / "train.gz"), test_path=str(tmp_path / "test")).load(0)
    assert data.test is not None
    np.testing.assert_array_equal(data.train.y, [2, 0, 2, 1])  # -3, 0, 5 -> 0, 1, 2
    np.testing.assert_array_equal(data.test.y, [1, 0])
    assert data.train.x.shape == (4, 5)
    assert data.test.x[0, 4] == 1
    assert (data.outputs, data.name, data.task) == (3, "train.gz", "classification")
    assert LibSVM(path=str(tmp_path / "train.gz"), n_features=9, test_share=0.25).load(0).train.x.shape == (3, 9)


def test_libsvm_holds_out_a_share_that_the_seed_chooses(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"".join(b"%d 1:%d\n" % (i % 2, i) for i in range(100)))
    data, again, other = (LibSVM(path=str(tmp_path / "f")).load(seed) for seed in (0, 0, 1))
    assert data.test is not None
    assert (len(data.train), len(data.test), int(data.test.y.sum())) == (80, 20, 10)
    assert sorted([*data.train.x[:, 0], *data.test.x[:, 0]]) == list(range(100))
    assert data.digest == again.digest != other.digest
    assert LibSVM(path=str(tmp_path / "f"), test_share=0).load(0).test is None


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (b"1 1:1\n1 1:2\n", b"1 1:1\n", "must be two or more whole numbers"),
        (b"1.5 1:1\n2.5 1:2\n", b"1 1:1\n", "must be two or more whole numbers"),
        (b"1 1:1\n2 1:2\n", b"3 1:1\n", r"among the training labels \[1.0, 2.0\], got \[3.0\]"),
    ],
)
def test_libsvm_labels_must_be_classes(tmp_path: Path, train: bytes, test: bytes, message: str) -> None:
    (tmp_path / "a").write_bytes(train)
    (tmp_path / "b").write_bytes(test)
    with pytest.raises(InputError, match=message):
        LibSVM(path=str(tmp_path / "a"), test_path=str(tmp_path / "b")).load(0)


def test_libsvm_options_are_checked(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="name must be one of a9a, w8a, mushrooms, got 'a1a'; for another file"):
        LibSVM(name="a1a")
    with pytest.raises(InputError, match="test_path must come with path"):
        LibSVM(test_path="x")
    with pytest.raises(InputError, match=r"no file a9a .*fedsim download a9a"):
        LibSVM(root=str(tmp_path)).load(0)
    with pytest.raises(InputError, match="nowhere: cannot be read"):
        LibSVM(path=str(tmp_path / "nowhere")).load(0)


@pytest.fixture
def gas_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Batches 2, 5 and 7 of small size; their digests are not asked for."""
    monkeypatch.setattr(
        gas_sensor_drift, "GAS_FILES", {i: DataFile(f"gas-sensor-drift/batch{i}.dat") for i in range(1, 11)}
    )
    (tmp_path / "gas-sensor-drift").mkdir()
    random = np.random.default_rng(0)
    for batch, n in ((2, 50), (5, 100), (7, 25)):
        x = 100 * batch + random.normal(size=(n, 128))
        lines = [f"{i % 5 + 1} " + " ".join(f"{j + 1}:{v:.6f}" for j, v in enumerate(row)) for i, row in enumerate(x)]
        (tmp_path / f"gas-sensor-drift/batch{batch}.dat").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_gas_batches_that_are_present_become_groups(gas_root: Path) -> None:
    data = GasSensorDrift(root=str(gas_root)).load(0)
    assert data.test is not None
    assert data.train.group is not None
    assert data.test.group is not None
    np.testing.assert_array_equal(np.bincount(data.train.group), [40, 80, 20])
    np.testing.assert_array_equal(np.bincount(data.test.group), [10, 20, 5])
    np.testing.assert_array_equal(np.bincount(data.test.y), [7, 7, 7, 7, 7])
    assert data.outputs == 6
    np.testing.assert_allclose(data.train.x.mean(0, dtype=np.float64), 0, atol=1e-6)  # float32 storage
    np.testing.assert_allclose(data.train.x.std(0, dtype=np.float64), 1, atol=1e-6)
    assert (np.diff([data.train.x[data.train.group == g].mean() for g in range(3)]) > 0).all()  # batches stay apart


def test_gas_batches_can_be_chosen(gas_root: Path) -> None:
    data = GasSensorDrift(batches=(7, 2), root=str(gas_root), test_share=0).load(0)
    assert data.test is None
    np.testing.assert_array_equal(np.bincount(data.train.group), [25, 50])  # in the order given
    with pytest.raises(InputError, match=r"no file batch3\.dat"):
        GasSensorDrift(batches=(2, 3), root=str(gas_root)).load(0)
    for wrong in ((), (0,), (11,), (2, 2)):
        with pytest.raises(InputError, match=r"batches must be different numbers in 1\.\.10"):
            GasSensorDrift(batches=wrong)


def test_gas_batches_must_have_the_right_classes_and_features(gas_root: Path) -> None:
    file = gas_root / "gas-sensor-drift/batch5.dat"
    file.write_text("1 128:1\n7 128:2\n")
    with pytest.raises(InputError, match=r"batch5\.dat: labels must be 1\.\.6, got \[1\.0, 7\.0\]"):
        GasSensorDrift(root=str(gas_root)).load(0)
    file.write_text("1 127:1\n")
    with pytest.raises(InputError, match="must have 128 features, got 127"):
        GasSensorDrift(root=str(gas_root)).load(0)


def test_without_any_gas_batch_the_first_is_reported_missing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no file batch1\.dat .*fedsim download gas_sensor_drift"):
        GasSensorDrift(root=str(tmp_path)).load(0)


HEADER = ",".join((*INPUTS, "median_house_value", "ocean_proximity"))


def csv_of(rows: list[list[str]]) -> bytes:
    return "\n".join([HEADER, *(",".join(row) for row in rows)]).encode() + b"\n"


def test_housing_fills_blanks_with_the_median_of_the_training_samples() -> None:
    rows = [[str(i * i * k) for k in range(1, 9)] + [str(100.0 * (i + 1)), "INLAND"] for i in range(10)]
    for i in (1, 4):
        rows[i][4] = ""
    table = parse_housing(csv_of(rows), "housing")
    assert table.shape == (10, 9)
    assert np.isnan(table[:, 4]).tolist() == [i in (1, 4) for i in range(10)]
    data = prepare_housing(table, 0.3, seed=0)
    assert data.test is not None
    assert (len(data.train), len(data.test), data.outputs, data.task) == (7, 3, 1, "regression")
    top = (
        10 if data.test.y.max() < 1 else 10 * float(data.test.y.max()) ** -1
    )  # in hundreds: the largest training target
    assert data.train.y.max() == 1
    train = [round(float(v) * top) - 1 for v in data.train.y]  # targets are 100, 200, ..., 1000: row i has 100 (i + 1)
    known = [float(rows[i][4]) for i in train if rows[i][4]]
    bedrooms = [float(rows[i][4]) if rows[i][4] else float(np.median(known)) for i in train]
    expected = (np.array(bedrooms) - np.mean(bedrooms)) / np.std(bedrooms)
    np.testing.assert_allclose(data.train.x[:, 4], expected, rtol=1e-6)  # float32 storage


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "housing:1: must name the columns"),
        (b"longitude,latitude\n1,2\n", "got no housing_median_age, total_rooms"),
        (csv_of([]), "got only the header"),
        (
            csv_of([["1"] * 9 + ["X"], ["1"] * 3 + ["x"] + ["1"] * 5]),
            "housing:3: total_rooms must be a number, got 'x'",
        ),
        (csv_of([["1"] * 3 + [""] + ["1"] * 5]), "housing:2: total_rooms must be a number, got ''"),
        (csv_of([["1"] * 8 + ["nan"]]), "housing:2: median_house_value must be a number, got 'nan'"),
        (csv_of([["1"] * 5]), "housing:2: population must be a number, got 'no such column'"),
    ],
)
def test_malformed_housing_files_are_refused(content: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_housing(content, "housing")


def test_a_damaged_housing_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "california-housing").mkdir()
    (tmp_path / "california-housing/housing.csv").write_bytes(csv_of([]))
    with pytest.raises(InputError, match=r"housing\.csv: damaged.*d1c47305887e2252bf1ccbd74ff159a6"):
        CaliforniaHousing(root=str(tmp_path)).load(0)
