"""Columns of a table as the arrays of a data set: features, target, client; what is no number is said with its row."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from fedsim.data.arrays import check_share
from fedsim.data.losses import Task
from fedsim.data.own import Arrays, check_outputs, from_arrays
from fedsim.errors import InputError, require
from fedsim.fields import check_fields

Columns: TypeAlias = Mapping[str, np.ndarray]
"""By name, in the order of the table: numbers, truth values, or objects that are text or None where a cell is empty."""


_INDEX = re.compile(r"|Unnamed: 0|__index_level_\d+__")
"""What a frame's index without a name is called in files: in CSV, in CSV that pandas read, in Parquet."""


class Sheet(NamedTuple):
    """The columns of a file or frame, and what it is called in messages."""

    columns: Columns
    where: str


@dataclass(frozen=True)
class ColumnRoles:
    """Which columns of a table are what.

    Attributes:
        target: the column to predict.
        client: the column that says whose sample it is, or None.
        features: the columns of inputs; None: all others, but a frame's index that has no name.
        drop: columns to leave out, where ``features`` is None.
        categories: columns of text that become one column of zeros and ones for each of their values.
        shape: the shape of one sample, such as [3, 32, 32] for images; None: one number for each column.
        pixels: whether the inputs are pixels of images of this shape, whole numbers 0..255.
    """

    target: str
    client: str | None = None
    features: tuple[str, ...] | None = None
    drop: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    shape: tuple[int, ...] | None = None
    pixels: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        require(self.features is None or not self.drop, "drop", "be [] where features is given", list(self.drop))
        for size in self.shape or ():
            require(size >= 1, "shape", "hold sizes >= 1", list(self.shape or ()))
        images = not self.pixels or (self.shape is not None and len(self.shape) == 3)
        require(images, "shape", "be [channels, height, width] where pixels is true", self.shape)

    def inputs(self, table: Sheet) -> list[str]:
        """The names of the columns of inputs.

        Raises:
            InputError: the table lacks a column that was named.
        """
        names = list(table.columns)
        own = [self.target, *([] if self.client is None else [self.client])]
        for name in (*own, *(self.features or ()), *self.drop, *self.categories):
            if name not in names:
                raise InputError(f"{table.where} must have the column {name}, got {_listed(name, names)}")
        rest = [n for n in names if n not in (*own, *self.drop) and not _INDEX.fullmatch(n)]
        chosen = rest if self.features is None else list(self.features)
        again = sorted({name for name in chosen if chosen.count(name) > 1})
        require(not again, "features", "name each column once", again)
        twice = [name for name in own if name in chosen]
        require(not twice, "features", "be neither target nor client", twice)
        require(bool(chosen), table.where, "have a column of inputs", names)
        return chosen


@dataclass(frozen=True)
class SheetOptions:
    """What is said of a table beside its columns; see ``fedsim.data.from_arrays``."""

    test: float = 0.2
    task: str | Task | None = None
    outputs: int | None = None
    standardise: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        check_share(self.test, "test")
        check_outputs(self.outputs)


def arranged(table: Sheet, tested: Sheet | None, layout: ColumnRoles, told: SheetOptions, name: str) -> Arrays:
    """A table, or one for training and one for testing, as a source.

    Raises:
        InputError: a column is missing, or a cell is empty or no number, with its row (from 1, without the heading).
    """
    tables = [table] if tested is None else [table, tested]
    chosen = layout.inputs(table)
    for other in tables[1:]:
        layout.inputs(other)
        lacking = [column for column in chosen if column not in other.columns]
        if lacking:
            raise InputError(f"{other.where} must have the column {lacking[0]} of {table.where}, got none")
    values = {c: _values(tables, c) for c in layout.categories if c in chosen}
    given: dict[str, Any] = {}
    for one, suffix in zip(tables, ("", "_test"), strict=False):
        given[f"x{suffix}"] = _shaped(np.concatenate([_numbers(one, c, values) for c in chosen], 1), layout, one.where)
        given[f"y{suffix}"] = _names(one, layout.target)
        if layout.client is not None:
            given[f"client{suffix}"] = _names(one, layout.client)
    return from_arrays(**given, **vars(told), name=name)


def _numbers(table: Sheet, name: str, values: Mapping[str, np.ndarray]) -> np.ndarray:
    """[n, 1] float32 of a column, or [n, k] of zeros and ones of one of text."""
    column = table.columns[name]
    if name in values:
        ones: np.ndarray = _names(table, name).astype(str)[:, None] == values[name]
        return ones.astype(np.float32)
    do = f"data.categories=[{name}] makes columns of zeros and ones of text, data.drop=[{name}] leaves it out"
    if column.dtype.kind not in "biuf":
        row, cell = next(((i, c) for i, c in enumerate(column.tolist()) if not _is_number(c)), (0, None))
        kind = f"{cell!r} in row {row + 1}"
        raise InputError(f"{table.where}: column {name} must hold numbers, got {kind}; {do}")
    if column.dtype.kind == "f" and not np.isfinite(column).all():
        row = int(np.flatnonzero(~np.isfinite(column))[0]) + 1
        do = f"fill it or leave the row out, or the column with data.drop=[{name}]"
        raise InputError(f"{table.where}: column {name} must hold finite numbers, got none in row {row}; {do}")
    return column.astype(np.float32)[:, None]


def _is_number(cell: Any) -> bool:
    """Whether a cell of a column of text is empty or a number, as most of its column may be."""
    try:
        return cell is None or cell == "" or isinstance(float(cell), float)
    except (TypeError, ValueError):
        return False


def _names(table: Sheet, name: str) -> np.ndarray:
    """A column of targets, clients or categories, without an empty cell."""
    column = table.columns[name]
    empty = [cell is None or cell == "" for cell in column.tolist()] if column.dtype.kind == "O" else np.isnan(column)
    if np.any(empty):
        row = int(np.flatnonzero(empty)[0]) + 1
        raise InputError(
            f"{table.where}: column {name} must have no empty cell, got one in row {row}; fill it or drop it"
        )
    names: np.ndarray = column.astype(str) if column.dtype.kind == "O" else column
    return names


def _values(tables: Sequence[Sheet], name: str) -> np.ndarray:
    """The different values of a column of text, ascending, over all tables."""
    return np.unique(np.concatenate([_names(table, name).astype(str) for table in tables]))


def _shaped(x: np.ndarray, layout: ColumnRoles, where: str) -> np.ndarray:
    """Inputs [n, f] in the shape of samples; pixels as bytes."""
    if layout.shape is not None:
        size = int(np.prod(layout.shape))
        must = f"have {size} columns of inputs for the shape {list(layout.shape)}"
        require(x.shape[1] == size, where, must, x.shape[1])
        x = x.reshape(-1, *layout.shape)
    if not layout.pixels:
        return x
    whole = bool(((x >= 0) & (x <= 255) & (x == np.round(x))).all())
    require(whole, where, "hold pixels 0..255, whole numbers, where pixels is true", "others")
    return x.astype(np.uint8)


def _listed(name: str, names: Sequence[str]) -> str:
    """The columns there are, the nearest one first."""
    near = get_close_matches(name, names, n=1)
    more = "" if len(names) <= 8 else f", ... ({len(names)} in all)"
    guess = f"; did you mean {near[0]}?" if near else ""
    between = next((mark for mark in (";", "\t", "|") if len(names) == 1 and mark in names[0]), None)
    guess = f"; say what stands between two cells: data.delimiter={between!r}" if between else guess
    return f"the columns {', '.join(names[:8])}{more}{guess}"
