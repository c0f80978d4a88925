"""Data root, digests, compressed forms, hold-out, standardisation and the data set digest."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import lzma
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.data import Dataset, Split
from fedsim.data.arrays import check_memory, holdout, standardise, with_digest
from fedsim.data.published import FORMS, DataFile, data_root, read_file, read_files, read_path
from fedsim.errors import InputError

CONTENT = b"some content\n" * 50
COMPRESS = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress, ".bz2": bz2.compress}


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def test_data_root_prefers_the_option_then_the_environment_then_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDSIM_DATA", "/from/environment")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    monkeypatch.setenv("HOME", "/home/someone")
    assert data_root("~/mine") == Path("/home/someone/mine")
    assert data_root(None) == Path("/from/environment")
    monkeypatch.delenv("FEDSIM_DATA")
    assert data_root(None) == Path("/cache/fedsim")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert data_root(None) == Path("/home/someone/.cache/fedsim")


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_content(tmp_path: Path, form: str) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / f"set/file{form}").write_bytes(COMPRESS[form](CONTENT))
    assert read_file(tmp_path, DataFile("set/file"), "toy") == CONTENT
    assert read_file(tmp_path, DataFile("set/file", {"": md5(CONTENT)}), "toy") == CONTENT
    own = {form: md5(COMPRESS[form](CONTENT))} if form != ".gz" else {}  # gzip writes the time of day
    assert read_file(tmp_path, DataFile("set/file", own), "toy") == CONTENT


def test_a_missing_file_names_file_folder_and_both_ways_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        read_file(tmp_path, DataFile("set/file"), "toy")
    message = str(caught.value)
    assert "\n" not in message
    for part in ("no file file", str(tmp_path / "set"), "fedsim download toy", "FEDSIM_DATA", "data.root"):
        assert part in message


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("damage", ["truncated", "changed", "empty"])
def test_a_damaged_file_names_expected_and_got_digest(tmp_path: Path, form: str, damage: str) -> None:
    good = COMPRESS[form](CONTENT)
    bad = {"truncated": good[:-12], "changed": good[:30] + b"?" + good[31:], "empty": b""}[damage]
    (tmp_path / f"file{form}").write_bytes(bad)
    with pytest.raises(InputError) as caught:
        read_file(tmp_path, DataFile("file", {form: md5(good), "": md5(CONTENT)}), "toy")
    message = str(caught.value)
    assert "\n" not in message
    for part in (f"file{form}", md5(good), md5(bad), "delete it and run `fedsim download toy`"):
        assert part in message


def test_a_recompressed_file_is_recognised_by_its_content_and_another_is_not(tmp_path: Path) -> None:
    file = DataFile("file", {".xz": "0" * 32, "": md5(CONTENT)})
    (tmp_path / "file.xz").write_bytes(lzma.compress(CONTENT, preset=0))
    assert read_file(tmp_path, file, "toy") == CONTENT
    (tmp_path / "file.xz").write_bytes(lzma.compress(CONTENT + b"more"))
    with pytest.raises(InputError, match="expected md5 0000"):
        read_file(tmp_path, file, "toy")


def test_what_cannot_be_read_or_decompressed_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_path(tmp_path, {}, "do something")
    (tmp_path / "a.gz").write_bytes(b"not gzip")
    with pytest.raises(InputError, match=r"a\.gz: cannot be decompressed .*; do something"):
        read_path(tmp_path / "a.gz", {}, "do something")


def test_of_several_files_none_is_opened_before_all_are_there_and_right(tmp_path: Path) -> None:
    good = [DataFile(f"set/{i}", {".xz": md5(lzma.compress(b"%d" % i)), "": md5(b"%d" % i)}) for i in range(3)]
    (tmp_path / "set").mkdir()
    for i in range(3):
        (tmp_path / f"set/{i}.xz").write_bytes(lzma.compress(b"%d" % i))
    assert read_files(tmp_path, good, "toy") == [b"0", b"1", b"2"]
    broken = [DataFile("set/0"), *good[1:]]  # without a digest, what is inside shows only on opening
    (tmp_path / "set/0.xz").write_bytes(b"not xz")
    with pytest.raises(InputError, match=r"0\.xz: cannot be decompressed"):
        read_files(tmp_path, broken, "toy")
    (tmp_path / "set/1.xz").write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"1\.xz: damaged"):
        read_files(tmp_path, broken, "toy")
    (tmp_path / "set/2.xz").unlink()
    with pytest.raises(InputError, match="no file 2"):
        read_files(tmp_path, broken, "toy")


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=60), st.floats(0, 0.95), st.integers(0, 9))
def test_holdout_takes_the_share_of_every_stratum_up_to_one(strata: list[int], share: float, seed: int) -> None:
    train, test = holdout(np.array(strata), share, np.random.default_rng(seed))
    assert sorted([*train, *test]) == list(range(len(strata)))
    assert list(train) == sorted(train)
    assert list(test) == sorted(test)
    assert len(test) == round(share * len(strata))
    for kind in set(strata):
        held = sum(strata[i] == kind for i in test)
        assert abs(held - share * strata.count(kind)) < 1 + 1e-9


def test_holdout_depends_on_the_generator_only() -> None:
    strata = np.arange(400) % 3
    one, again, other = (holdout(strata, 0.2, np.random.default_rng(seed)).test for seed in (0, 0, 1))
    assert (one == again).all()
    assert (one != other).any()


def test_standardise_uses_the_statistics_of_the_training_samples() -> None:
    train, test = standardise(np.array([[1.0, 5], [3, 5]]), np.array([[2.0, 6], [4, 5]]))
    np.testing.assert_array_equal(train, [[-1, 0], [1, 0]])
    np.testing.assert_array_equal(test, [[0, 1], [2, 0]])
    assert train.dtype == test.dtype == np.float32


def test_arrays_beyond_the_memory_limit_are_refused() -> None:
    check_memory("a file", (1_000_000, 999), 4, "do something")
    with pytest.raises(InputError, match=r"a file must fit in 4 GB .* got 1000000 x 1001 numbers = 4.0 GB; do someth"):
        check_memory("a file", (1_000_000, 1001), 4, "do something")


def test_the_digest_covers_names_types_shapes_and_bytes() -> None:
    x, y = np.arange(6, dtype=np.float32).reshape(3, 2), np.array([0, 1, 0])
    plain = with_digest(Dataset("toy", Split(x, y), None, "classification", 2))
    by_hand = b"train.x <f4 (3, 2)\n" + x.tobytes() + b"train.y <i8 (3,)\n" + y.tobytes()
    assert plain.digest == hashlib.sha256(by_hand).hexdigest()
    variants = [
        replace(plain, train=Split(x.astype(np.float64), y)),
        replace(plain, train=Split(x.reshape(3, 1, 2), y)),
        replace(plain, train=Split(x, 1 - y)),
        replace(plain, train=Split(x, y, y)),
        replace(plain, test=Split(x, y)),
        replace(plain, x0=np.zeros(2)),
    ]
    assert len({plain.digest, *(with_digest(v).digest for v in variants)}) == 7
    assert with_digest(replace(plain, train=Split(np.asfortranarray(x), y))).digest == plain.digest


def test_arrays_that_do_not_fit_together_are_refused() -> None:
    x, y = np.zeros((3, 2), np.float32), np.array([0, 1, 0])
    with pytest.raises(InputError, match=r"Split\.y must have one entry for each of the 3 samples, got 2"):
        Split(x, y[:2])
    with pytest.raises(InputError, match=r"Split\.group must have one entry"):
        Split(x, y, np.zeros(4, np.int64))
    wrong = [
        (Split(x, y + 1), "train.y must lie in 0..1 for outputs=2, got '1..2'"),
        (Split(x, y - 1), "train.y must lie in 0..1"),
        (Split(x, y.astype(np.float32)), "train.y must be int64"),
        (Split(np.full_like(x, np.nan), y), "train.x must be finite"),
    ]
    for split, message in wrong:
        with pytest.raises(InputError, match=message):
            Dataset("toy", split, None, "classification", 2)
        with pytest.raises(InputError, match=message.replace("train", "test")):
            Dataset("toy", Split(x, y), split, "classification", 2)
    Dataset("toy", Split(x, y.astype(np.float32) * 7), None, "regression", 1)
