"""Names as numbers: labels and clients of a user's own become 0, 1, ..., and their names are kept."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import numpy as np

from fedsim.data.validate import as_array
from fedsim.errors import InputError, require

_WHOLE = re.compile(r"-?\d{1,18}")
_DO = "drop these samples or give them a name"


class Numbered(NamedTuple):
    """What names became."""

    parts: list[np.ndarray]  # of each array that was given: [n] int64, the place of each name
    names: tuple[str, ...]  # of the numbers 0, 1, ...


def as_names(values: Any, where: str) -> np.ndarray:
    """Labels, targets or clients as one array: text, truth values or numbers.

    Args:
        values: an array, tensor, list or column; names are text, whole numbers or truth values.
        where: what they are, for messages.

    Raises:
        InputError: a name is missing, or they are neither names nor numbers.
    """
    if isinstance(values, (list, tuple)) or (hasattr(values, "__array__") and not hasattr(values, "detach")):
        array = np.asarray(values)
        if array.dtype.kind == "S":
            array = np.char.decode(array, "utf-8")
        if array.dtype.kind in "UOT":
            require(array.ndim == 1, where, "be [n], a name for each sample", list(array.shape))
            return _text(array, where)
    array = as_array(values, where)
    if array.dtype.kind == "f" and array.ndim == 1 and np.isnan(array).any():
        missing = int(np.flatnonzero(np.isnan(array))[0])
        raise InputError(f"{where} must have a value for every sample, got none for sample {missing}; {_DO}")
    return array


def number_names(parts: list[np.ndarray], where: str) -> Numbered:
    """Numbers 0..k-1 for the names of all parts together, in ascending order.

    Text is in the order of its characters; but where all of it is whole numbers, as the names of folders may be, it is
    in the order of these, so that the same names have the same numbers wherever they come from.

    Args:
        parts: from ``as_names``; numbers with a fraction are refused.
        where: what they are, for messages.
    """
    for part in parts:
        whole = part.dtype.kind in "biuU" or (part.dtype.kind == "f" and bool((part == np.round(part)).all()))
        require(whole and part.ndim == 1, where, "be [n] names: text, whole numbers or truth values", _kind(part))
    if len({part.dtype.kind == "U" for part in parts}) > 1:
        raise InputError(f"{where} must be all text or all numbers, got {' and '.join(_kind(p) for p in parts)}")
    names, places = np.unique(np.concatenate(parts), return_inverse=True)
    if names.dtype.kind == "U" and all(_WHOLE.fullmatch(name) for name in names.tolist()):
        order = np.argsort(np.array([int(name) for name in names.tolist()]), kind="stable")
        names, places = names[order], np.argsort(order)[places]
    if names.dtype.kind == "f":
        names = names.astype(np.int64)
    cuts = np.cumsum([len(part) for part in parts])[:-1]
    return Numbered(np.split(places.reshape(-1).astype(np.int64), cuts), tuple(map(str, names.tolist())))


def _text(array: np.ndarray, where: str) -> np.ndarray:
    """Text as an array of text; what pandas or a list made objects of as what it is."""
    kinds = {type(value) for value in array.tolist()}
    if kinds and kinds <= {bool, int, float}:
        return as_names(np.array(array.tolist()), where)
    for number, value in enumerate(array.tolist()):
        if not isinstance(value, str) or not value:
            got = "none" if value is None or value != value or value == "" else f"{value!r}"
            raise InputError(f"{where} must have a name for every sample, got {got} for sample {number}; {_DO}")
    return array.astype(np.str_)


def _kind(part: np.ndarray) -> str:
    return f"{part.dtype} {list(part.shape)}" if part.dtype.kind != "U" else f"text {list(part.shape)}"
