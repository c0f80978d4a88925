"""Speakers and windows of Tiny Shakespeare, on a small play."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedsim.data import TinyShakespeare
from fedsim.data.shakespeare import speeches, windows
from fedsim.errors import InputError

PLAY = b"""First Citizen:
Before we proceed:
hear me speak.

All:
Speak, speak.

First Citizen:
You are all resolved.
"""


def test_a_colon_after_an_empty_line_names_the_speaker() -> None:
    assert speeches(PLAY) == {
        b"First Citizen": b"Before we proceed:\nhear me speak.\n\nYou are all resolved.\n\n",
        b"All": b"Speak, speak.\n\n",
    }
    assert speeches(b"a prologue\n\nA:\nyes") == {b"A": b"yes\n"}


def test_windows_are_shifted_by_one_and_split_in_time() -> None:
    text = b"B:\n" + b"abcdefghij" * 4 + b"\n\nA:\nxy\n\nC:\n" + b"klmnopqrst" * 2
    data = windows(text, length=5, min_chars=10, test_share=0.25)
    letters = sorted(set(text.decode()))
    assert data.outputs == len(letters)
    assert data.test is not None

    def spelled(rows: np.ndarray) -> list[str]:
        return ["".join(letters[i] for i in row) for row in rows]

    # B: 42 characters with two line ends, the last 10 (0.25 * 42 rounded) for testing; A is dropped; C: 21, last 5
    assert spelled(data.train.x) == ["abcde", "fghij"] * 3 + ["klmno", "pqrst", "klmno"]
    assert spelled(data.train.y) == ["bcdef", "ghija"] * 3 + ["lmnop", "qrstk", "lmnop"]
    assert spelled(data.test.x) == ["cdefg"]
    assert spelled(data.test.y) == ["defgh"]
    np.testing.assert_array_equal(data.train.group, [0] * 6 + [1] * 3)
    np.testing.assert_array_equal(data.test.group, [0])
    assert data.train.x.dtype == data.train.y.dtype == np.int64
    assert data.task == "next_token"
    assert windows(text, 5, 10, 0.0).test is None


def test_options_are_checked(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="min_chars must leave more than length=80 characters for training, got 100"):
        TinyShakespeare(min_chars=100)
    TinyShakespeare(min_chars=101)
    with pytest.raises(InputError, match="length must be >= 1"):
        TinyShakespeare(length=0)
    with pytest.raises(InputError, match="min_chars must be at most what one speaker says"):
        windows(PLAY, 5, 1000, 0.2)
    (tmp_path / "tinyshakespeare").mkdir()
    (tmp_path / "tinyshakespeare/input.txt").write_bytes(PLAY)
    with pytest.raises(InputError, match="expected md5 6fb458f1232090904fb40fe944165e91"):
        TinyShakespeare(root=str(tmp_path)).load(0)
