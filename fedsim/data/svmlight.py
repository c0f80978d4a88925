"""The text format of LIBSVM and SVMlight: ``label index:value index:value ...`` per line, indices from 1, ascending.

Read with numpy alone: importing scikit-learn's reader takes longer (1.5 s) than reading most files.
"""

from __future__ import annotations

import math
import warnings
from typing import NamedTuple

import numpy as np

from fedsim.data.arrays import check_memory
from fedsim.errors import InputError, require

_BLANKS = np.isin(np.arange(256), list(b" \t\r\n\v\f"))  # [256] which bytes separate words


class Sparse(NamedTuple):
    """A parsed file: n lines with e entries in all."""

    labels: np.ndarray  # [n] float64, as written
    rows: np.ndarray  # [e] int64, the line of each entry
    columns: np.ndarray  # [e] int64 from 0, ascending within a line
    values: np.ndarray  # [e] float32
    features: int  # the largest index in the file


def parse(content: bytes, where: str) -> Sparse:
    """Parse a whole file (a9a: 0.2 s).

    Args:
        content: the uncompressed text.
        where: the file's name, for messages.

    Raises:
        InputError: ``FILE:LINE: ...`` for the first malformed line, or the file holds no samples.
    """
    lines = content.split(b"\n")
    if b"#" in content:
        lines = [line.partition(b"#")[0] for line in lines]
    lines = [line for line in lines if line and not line.isspace()]
    if not lines:
        raise InputError(f"{where}: must hold lines 'label index:value ...', got an empty file")
    sizes = np.array([line.count(b":") for line in lines], dtype=np.int64)  # [n] entries of each line
    numbers = _numbers(b"\n".join(lines), sizes)
    if numbers is None:
        raise InputError(_first_bad_line(content, where) or f"{where}: must hold lines 'label index:value ...'")
    at = np.cumsum(2 * sizes + 1) - 2 * sizes - 1  # [n] where each line's numbers start
    entries = np.delete(numbers, at).reshape(-1, 2)
    rows = np.repeat(np.arange(len(lines)), sizes)
    indices, ends = entries[:, 0], np.cumsum(sizes)[:-1]
    ascending = np.diff(indices) > 0
    ascending[ends[(ends > 0) & (ends < len(indices))] - 1] = True  # the next line starts anew
    if not (ascending.all() and (indices >= 1).all() and (indices == np.floor(indices)).all()):
        raise InputError(_first_bad_line(content, where) or f"{where}: indices must be whole numbers from 1, ascending")
    with np.errstate(over="ignore"):
        values = entries[:, 1].astype(np.float32)
    labels = numbers[at]
    if not (np.isfinite(values).all() and np.isfinite(labels).all()):
        raise InputError(_first_bad_line(content, where) or f"{where}: must hold finite float32 numbers only")
    return Sparse(labels, rows, indices.astype(np.int64) - 1, values, int(indices.max(initial=0)))


def dense(sparse: Sparse, features: int, where: str) -> np.ndarray:
    """[n, features] float32, with zeros where nothing is written.

    Raises:
        InputError: the file has a larger index than ``features``, or the array would not fit in memory.
    """
    most, shape = sparse.features, (len(sparse.labels), features)
    require(most <= features, "data.n_features", f"be >= {most}, the largest index in {where}", features)
    check_memory(where, shape, 4, "use fewer lines or features of it")
    out = np.zeros(shape, np.float32)
    out[sparse.rows, sparse.columns] = sparse.values
    return out


def _numbers(text: bytes, sizes: np.ndarray) -> np.ndarray | None:
    """Label, index, value, index, value ... of all lines, or None when the text is not of that form.

    Args:
        text: lines of words, none of them blank.
        sizes: [n] colons in each line.
    """
    letters = np.frombuffer(text, np.uint8)
    blank = _BLANKS[letters]
    starts = np.flatnonzero(~blank & np.concatenate([[True], blank[:-1]]))  # [words]
    colons = np.flatnonzero(letters == ord(":"))
    home = np.searchsorted(starts, colons, side="right") - 1  # [colons] the word of each colon
    labels = np.cumsum(sizes + 1) - sizes - 1  # [n] the word that is each line's label
    first_of_line = np.flatnonzero(np.concatenate([[True], np.diff(np.cumsum(letters == ord("\n"))[starts]) > 0]))
    fits = len(starts) == len(colons) + len(sizes) and np.array_equal(labels, first_of_line)
    if not fits or (np.diff(home) == 0).any() or np.isin(home, labels).any():
        return None  # a line has a word without a colon, a word has two, or a label has one
    if len(colons) and (colons[-1] + 1 == len(letters) or blank[colons + 1].any()):
        return None  # nothing follows a colon
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # a word that is no number ends the reading
        try:
            numbers = np.fromstring(text.replace(b":", b" "), sep=" ")
        except ValueError:
            return None
    return numbers if len(numbers) == len(sizes) + 2 * len(colons) else None


def _first_bad_line(content: bytes, where: str) -> str | None:
    """The message for the first line that is not in the format; None if every line is."""
    for number, line in enumerate(content.split(b"\n"), start=1):
        words = line.split(b"#")[0].decode("latin1").split()
        reason = _why_bad(words) if words else None
        if reason is not None:
            return f"{where}:{number}: must be 'label index:value ...', got {reason}; correct the line"
    return None


def _why_bad(words: list[str]) -> str | None:
    if not _is_number(words[0]):
        return f"label {words[0][:40]!r}"
    previous = 0
    for word in words[1:]:
        index, colon, value = word.partition(":")
        if not (colon and index.isdecimal() and _is_number(value)):
            return repr(word[:40])
        if int(index) <= previous:
            return f"index {int(index)} after {previous} (indices start at 1 and ascend)"
        previous = int(index)
    return None


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
