"""The text format of LIBSVM and SVMlight: ``label index:value index:value ...`` per line, indices from 1, ascending."""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fedsim.data.arrays import check_memory
from fedsim.errors import InputError, require

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix


class Sparse(NamedTuple):
    """A parsed file."""

    labels: np.ndarray  # [n] float64, as written
    values: csr_matrix  # [n, f] float32, f = the largest index in the file


def parse(content: bytes, where: str) -> Sparse:
    """Parse a whole file (a9a: 0.2 s).

    Args:
        content: the uncompressed text.
        where: the file's name, for messages.

    Raises:
        InputError: ``FILE:LINE: ...`` for the first malformed line, or the file holds no samples.
    """
    from sklearn.datasets import load_svmlight_file  # 2 s to import: only for runs that need it

    if not content.strip():
        raise InputError(f"{where}: must hold lines 'label index:value ...', got an empty file")
    try:
        values, labels = load_svmlight_file(io.BytesIO(content), dtype=np.float32, zero_based=False)
    except (ValueError, OverflowError) as error:
        raise InputError(_first_bad_line(content, where) or f"{where}: {error}") from error
    if not (np.isfinite(values.data).all() and np.isfinite(labels).all()):
        raise InputError(_first_bad_line(content, where) or f"{where}: must hold finite float32 numbers only")
    return Sparse(labels, values)


def dense(values: csr_matrix, features: int, where: str) -> np.ndarray:
    """[n, features] float32, with zeros where nothing is written.

    Raises:
        InputError: the file has a larger index than ``features``, or the array would not fit in memory.
    """
    most = values.shape[1]
    require(most <= features, "data.n_features", f"be >= {most}, the largest index in {where}", features)
    check_memory(where, (values.shape[0], features), 4, "use fewer lines or features of it")
    wide = type(values)((values.data, values.indices, values.indptr), shape=(values.shape[0], features))
    return np.asarray(wide.toarray())


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
