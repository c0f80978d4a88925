"""A user's arrays in one file: ``numpy.savez("mine.npz", x=x, y=y)``."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.data.arrays import check_share
from fedsim.data.dataset import Dataset
from fedsim.data.memory import require_memory
from fedsim.data.own import check_outputs, from_arrays, stem
from fedsim.errors import InputError, first_line, require
from fedsim.fields import check_fields

NEEDED = ("x", "y")
ARRAYS = (*NEEDED, "client", "x_test", "y_test", "client_test")


@dataclass(frozen=True)
class Npz:
    """Arrays of an .npz file: x and y, and where there are any client, x_test, y_test, client_test.

    What they hold is what ``fedsim.data.from_arrays`` takes: uint8 images [n, c, h, w], floating-point features or
    int64 tokens in x; classes by name or number, or floating-point targets, in y; names or numbers in client. Nothing
    that Python would have to run is read from the file.

    Attributes:
        path: the file.
        test: where there is no x_test: the share held out for testing, in proportion to clients and classes; 0: none.
        task: such as ``classification`` or ``regression``; None: whole numbers and text are classes, fractions are not.
        outputs: number of classes, whose labels are then kept as they are; None: as many as there are.
        standardise: give features the mean 0 and the variance 1 of the training samples.
    """

    path: str
    test: float = 0.2
    task: str | None = None
    outputs: int | None = None
    standardise: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        check_share(self.test, "test")
        check_outputs(self.outputs)

    def load(self, seed: int) -> Dataset:
        """Read the file; the seed decides which samples are held out where it has no test samples."""
        arrays = read_arrays(self.path)
        options: dict[str, Any] = {
            "task": self.task,
            "outputs": self.outputs,
            "standardise": self.standardise,
            "test": self.test,
        }
        return from_arrays(**arrays, **options, name=stem(self.path)).load(seed)


def read_arrays(path: str) -> dict[str, Any]:
    """The arrays of an .npz file by name.

    Raises:
        InputError: it cannot be read, lacks x or y, has an array of another name, or is larger than the memory.
    """
    file = Path(path).expanduser()
    try:
        with zipfile.ZipFile(file) as members:
            require_memory(path, sum(member.file_size for member in members.infolist()))
        with np.load(file, allow_pickle=False) as found:
            _require_names(path, list(found.files))
            return {name: _array(found, name, path) for name in found.files}
    except InputError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else error
        do = "write one with numpy.savez(FILE, x=x, y=y)"
        raise InputError(f"data.path must be an .npz file, got {path} ({why}); {do}") from error


def _array(found: np.lib.npyio.NpzFile, name: str, path: str) -> np.ndarray:
    try:
        array: np.ndarray = found[name]
        return array
    except MemoryError as error:  # the heading of an array may say any shape
        raise InputError(
            f"{path}: {name} must fit into memory, got {first_line(error)}; write the file again"
        ) from error
    except ValueError as error:  # of Python objects, which are pickles
        do = f"save {name}.astype(str) for text, {name}.astype('float32') for numbers"
        raise InputError(f"{path}: {name} must be an array of numbers or text, got Python objects; {do}") from error


def _require_names(path: str, names: list[str]) -> None:
    listed = ", ".join(names) or "nothing"
    for name in NEEDED:
        require(name in names, path, f"hold the array {name}", listed, "numpy.savez(FILE, x=x, y=y)")
    for name in names:
        near = get_close_matches(name, ARRAYS, n=1)
        guess = f"did you mean {near[0]}? " if near else ""
        known = f"{guess}leave it out, or rename it; arrays: {', '.join(ARRAYS)}"
        require(name in ARRAYS, path, "hold no other arrays", name, known)
