"""Files of named arrays in the format of safetensors, written and read without holding all of them in memory.

The bytes are those that ``safetensors.numpy.save_file`` writes, which would need every array whole, twice.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from fedsim.ground.streamed import Streamed

Array = np.ndarray | Streamed
DTYPES = {
    "BOOL": np.bool_,
    "U8": np.uint8,
    "I8": np.int8,
    "I16": np.int16,
    "U16": np.uint16,
    "F16": np.float16,
    "I32": np.int32,
    "U32": np.uint32,
    "F32": np.float32,
    "C64": np.complex64,
    "F64": np.float64,
    "I64": np.int64,
    "U64": np.uint64,
}
"""What the format calls them, in its order; a file has the last kind first, and names in order within each."""
CODES = {np.dtype(kind): code for code, kind in DTYPES.items()}
ALIGNED = 8


def save_file(arrays: Mapping[str, Array], path: Path, metadata: Mapping[str, str]) -> str:
    """Write a new file.

    Args:
        arrays: by name; those of numpy in C order.
        path: of the file, which must not be there.
        metadata: kept in its header.

    Returns:
        sha256 of its bytes.
    """
    order = {kind: place for place, kind in enumerate(CODES)}
    names = sorted(arrays, key=lambda name: (-order[arrays[name].dtype], name.encode()))
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name in names:
        begin, end = end, end + arrays[name].dtype.itemsize * math.prod(arrays[name].shape)
        header[name] = {
            "dtype": CODES[arrays[name].dtype],
            "shape": list(arrays[name].shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % ALIGNED)
    hashed = hashlib.sha256()
    with path.open("xb") as file:
        for part in (len(text).to_bytes(8, "little"), text):
            hashed.update(part)
            file.write(part)
        for name in names:
            for rows in _parts(arrays[name]):
                data = memoryview(rows.reshape(-1).view(np.uint8))  # type: ignore[arg-type]  # numpy's stubs before Python 3.12
                hashed.update(data)
                file.write(data)
    return hashed.hexdigest()


def _parts(array: Array) -> Iterable[np.ndarray]:
    return array.parts() if isinstance(array, Streamed) else [array]


def open_file(path: Path) -> tuple[Mapping[str, str], dict[str, Array]]:
    """The metadata and the arrays of a file, those with rows to be read in parts, which it is kept open for.

    Raises:
        SafetensorError: it is none of the format.
        KeyError: it has no metadata, or a kind of number that numpy lacks.
    """
    file: Any = safe_open(path, framework="np")
    arrays: dict[str, Array] = {}
    for name in file.keys():  # noqa: SIM118 - no mapping
        lazy = file.get_slice(name)
        shape, kind = tuple(lazy.get_shape()), np.dtype(DTYPES[lazy.get_dtype()])
        arrays[name] = Streamed(kind, shape, partial(_rows, lazy)) if all(shape) and shape else file.get_tensor(name)
    return file.metadata() or {}, arrays


def _rows(lazy: Any, start: int, stop: int) -> np.ndarray:
    found: np.ndarray = lazy[start:stop]
    return found
