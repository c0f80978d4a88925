"""Tables as data sets: CSV and Parquet files, read with pyarrow, and frames of pandas."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedsim.data.columns import ColumnRoles, Sheet, SheetOptions, arranged
from fedsim.data.dataset import Dataset
from fedsim.data.losses import Task
from fedsim.data.memory import require_memory
from fedsim.data.own import Arrays, stem
from fedsim.errors import InputError, first_line, require
from fedsim.fields import check_fields

if TYPE_CHECKING:
    import pyarrow

_NO_ARROW = "data={} needs pyarrow, got no pyarrow; pip install 'fedsim-ray[tables]'"
_BLOCK = 2**30  # bytes from which the type of a CSV's columns is told: of every file but the largest, all of it


@dataclass(frozen=True)
class _TableFile(ABC):
    """What is said of a file with a table; ``Parquet`` describes it."""

    path: str
    target: str
    client: str | None = None
    test: float | str = 0.2
    task: str | Task | None = None
    outputs: int | None = None
    features: tuple[str, ...] | None = None
    drop: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    shape: tuple[int, ...] | None = None
    pixels: bool = False
    standardise: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        self._said()

    def load(self, seed: int) -> Dataset:
        """Read the file or files; the seed decides which samples are held out where there is no test file."""
        tested = self._read(self.test) if isinstance(self.test, str) else None
        return arranged(self._read(self.path), tested, *self._said(), stem(self.path)).load(seed)

    def _said(self) -> tuple[ColumnRoles, SheetOptions]:
        layout = ColumnRoles(**{field.name: getattr(self, field.name) for field in fields(ColumnRoles)})
        share = 0.0 if isinstance(self.test, str) else self.test
        return layout, SheetOptions(share, self.task, self.outputs, self.standardise)

    @abstractmethod
    def _read(self, path: str) -> Sheet:
        """The columns of a file of this kind."""


@dataclass(frozen=True)
class Csv(_TableFile):
    """A CSV file with a heading, plain or compressed (.gz, .bz2): a sample in each row, its target in a column.

    Its keys are those of ``Parquet``, and ``delimiter``, what stands between two cells.
    """

    delimiter: str = ","

    def __post_init__(self) -> None:
        super().__post_init__()
        require(len(self.delimiter) == 1, "delimiter", "be one character", self.delimiter)

    def _read(self, path: str) -> Sheet:
        def read(file: Path) -> pyarrow.Table:
            from pyarrow import csv

            require_memory(path, file.stat().st_size)
            whole = csv.ReadOptions(block_size=_BLOCK, use_threads=False)  # one thread: errors name their row
            return csv.read_csv(file, whole, csv.ParseOptions(delimiter=self.delimiter))

        return _table(path, "csv", read)


@dataclass(frozen=True)
class Parquet(_TableFile):
    """A Parquet file: a sample in each row, its target in a column.

    Attributes:
        path: the file.
        target: the column to predict.
        client: the column that says whose sample it is; None: there are no natural clients.
        test: the share held out for testing, in proportion to clients and classes, 0 for none; or the FILE of the test
            samples, with the same columns.
        task: such as ``classification`` or ``regression``; None: whole numbers and text are classes, fractions are not.
        outputs: number of classes, whose labels are then kept as they are; None: as many as there are.
        features: the columns of inputs; None: all but target, client and an unnamed index.
        drop: columns to leave out, where ``features`` is None.
        categories: columns of text that become one column of zeros and ones for each of their values.
        shape: shape of one sample, such as [3, 32, 32] for images; None: one number for each column.
        pixels: whether the inputs are pixels of images of this shape, whole numbers 0..255.
        standardise: give features the mean 0 and the variance 1 of the training samples.
    """

    def _read(self, path: str) -> Sheet:
        def read(file: Path) -> pyarrow.Table:
            from pyarrow import parquet

            found = parquet.ParquetFile(file)
            require_memory(path, 4 * found.metadata.num_rows * found.metadata.num_columns)
            return found.read()

        return _table(path, "parquet", read)


def from_pandas(
    frame: Any,
    target: Any,
    *,
    client: Any = None,
    test: Any = 0.2,
    task: str | Task | None = None,
    outputs: int | None = None,
    features: Sequence[Any] | None = None,
    drop: Sequence[Any] = (),
    categories: Sequence[Any] = (),
    shape: tuple[int, ...] | None = None,
    pixels: bool = False,
    standardise: bool = False,
    name: str = "own",
) -> Arrays:
    """A data source from a frame of pandas, or whatever has ``columns`` and gives a column by its name.

    Args:
        frame: a sample in each row.
        target: the column to predict.
        client: the column that says whose sample it is.
        test: the share held out for testing, or the frame of the test samples.
        task: as in ``from_arrays``, like ``outputs`` and ``standardise``.
        outputs: number of classes.
        features: the columns of inputs; None: all but target, client and an unnamed index.
        drop: columns to leave out, where ``features`` is None.
        categories: columns of text that become one column of zeros and ones for each of their values.
        shape: shape of one sample, such as (3, 32, 32) for images; None: one number for each column.
        pixels: whether the inputs are pixels of images of this shape, whole numbers 0..255.
        standardise: give features the mean 0 and the variance 1 of the training samples.
        name: of the data, for messages.

    Raises:
        InputError: a column is missing, or a cell is empty or no number, with its row.
    """
    share = isinstance(test, (int, float))
    chosen = None if features is None else _words(features)
    whose = None if client is None else str(client)
    layout = ColumnRoles(str(target), whose, chosen, _words(drop), _words(categories), shape, pixels)
    told = SheetOptions(test if share else 0.0, task, outputs, standardise)
    tested = None if share else _frame(test, f"data {name} (test)")
    return arranged(_frame(frame, f"data {name}"), tested, layout, told, name)


def _words(names: Sequence[Any]) -> tuple[str, ...]:
    return tuple(map(str, names))


def _table(path: str, kind: str, read: Callable[[Path], Any]) -> Sheet:
    """The columns of a file; whatever is wrong with it is one line."""
    try:
        import pyarrow
    except ImportError as error:
        raise InputError(_NO_ARROW.format(kind)) from error
    file = Path(path).expanduser()
    try:
        found = read(file)
        _require_columns(path, found.column_names, found.num_rows)
        columns = {name: _from_arrow(found[name]) for name in found.column_names}
    except (OSError, pyarrow.ArrowException) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
        raise InputError(f"{path}: cannot be read as {kind} ({why}); check the path and what is in the file") from error
    return Sheet(columns, path)


def _from_arrow(column: pyarrow.ChunkedArray) -> np.ndarray:
    """Numbers (NaN where a cell is empty), or objects that are text (None where it is empty)."""
    from pyarrow import types

    kind = column.type
    if types.is_boolean(kind) and column.null_count:
        column = column.cast("int8")
    elif not (types.is_boolean(kind) or types.is_integer(kind) or types.is_floating(kind) or types.is_nested(kind)):
        column = column.cast("string")
    array: np.ndarray = column.to_numpy()
    return array


def _frame(frame: Any, where: str) -> Sheet:
    """The columns of a frame, as those of a file are."""
    whole = hasattr(frame, "columns") and hasattr(frame, "__getitem__")
    require(whole, where, "be a frame of pandas", type(frame).__name__)
    names = [str(name) for name in frame.columns]
    _require_columns(where, names, len(frame))
    return Sheet({str(name): _from_series(frame[name]) for name in frame.columns}, where)


def _from_series(series: Any) -> np.ndarray:
    array = np.asarray(series)
    if array.dtype.kind in "biuf":
        return array
    cells = [None if missing else cell for missing, cell in zip(np.asarray(series.isna()), array.tolist(), strict=True)]
    if all(isinstance(cell, (bool, int, float)) for cell in cells if cell is not None):
        return np.array([np.nan if cell is None else cell for cell in cells])
    return np.array([cell if cell is None else str(cell) for cell in cells], dtype=object)


def _require_columns(where: str, names: Sequence[str], rows: int) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    require(not twice, where, "name every column once", twice[:3])
    require(rows > 0, where, "hold a row for each sample", "no rows")
