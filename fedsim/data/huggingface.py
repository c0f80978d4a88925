"""Data sets of the Hugging Face hub, or saved by its library, whose columns are mapped by keys."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.data.columns import ColumnRoles, Sheet, SheetOptions, arranged
from fedsim.data.dataset import Dataset
from fedsim.data.images import CHANNELS, pixels
from fedsim.data.memory import require_memory
from fedsim.data.own import from_arrays, stem
from fedsim.errors import InputError, first_line, require
from fedsim.fields import check_fields

_NO_HF = "data=huggingface needs the library datasets, got none; pip install 'fedsim-ray[hf]'"


@dataclass(frozen=True)
class HuggingFace:
    """A data set of the Hugging Face library: a folder of its ``save_to_disk``, or a name on the hub.

    Images become uint8 [n, c, h, w] and columns of lists arrays; columns of numbers are features, one beside the other.
    Labels that the library numbers keep their numbers.

    Attributes:
        path: the folder, or the name, such as ``ylecun/mnist``.
        target: the column to predict.
        features: the columns of inputs, or the one of images or lists; None: all but target, client and unnamed index.
        client: the column that says whose sample it is; None: there are no natural clients.
        subset: the configuration of a data set that has several; None: its default.
        train: the name of the split for training.
        test: the share held out for testing, in proportion to clients and classes, 0 for none; or the name of a split.
        task: such as ``classification`` or ``regression``; None: whole numbers and text are classes, fractions are not.
        standardise: give features the mean 0 and the variance 1 of the training samples.
    """

    path: str
    target: str
    features: tuple[str, ...] | None = None
    client: str | None = None
    subset: str | None = None
    train: str = "train"
    test: float | str = 0.2
    task: str | None = None
    standardise: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        self._told(None)
        ColumnRoles(self.target, self.client, self.features)

    def load(self, seed: int) -> Dataset:
        """Read the splits; the seed decides which samples are held out where no split is for testing."""
        splits = [self._split(self.train), *([self._split(self.test)] if isinstance(self.test, str) else [])]
        layout = ColumnRoles(self.target, self.client, self.features)
        for split in splits:
            chosen = layout.inputs(Sheet(dict.fromkeys(split.column_names, np.empty(0)), self.path))
        told, name = self._told(_classes(splits[0].features[self.target])), stem(self.path)
        if len(chosen) == 1 and not _is_number(splits[0].features[chosen[0]]):
            given: dict[str, Any] = {}
            for split, suffix in zip(splits, ("", "_test"), strict=False):
                kind = _type(split.features[chosen[0]])
                given[f"x{suffix}"] = _stacked(split[chosen[0]], kind, f"{self.path}: column {chosen[0]}")
                given[f"y{suffix}"] = list(split[self.target])
                given[f"client{suffix}"] = None if self.client is None else list(split[self.client])
            return from_arrays(**given, **vars(told), name=name).load(seed)
        kept = [*chosen, self.target, *([] if self.client is None else [self.client])]
        read = [Sheet({column: _column(split[column]) for column in kept}, self.path) for split in splits]
        return arranged(read[0], read[1] if len(read) > 1 else None, layout, told, name).load(seed)

    def _told(self, outputs: int | None) -> SheetOptions:
        return SheetOptions(0.0 if isinstance(self.test, str) else self.test, self.task, outputs, self.standardise)

    def _split(self, name: str) -> Any:
        """One split: of a folder that was saved, else of the hub; a data set saved without splits is that for training.

        Raises:
            InputError: the library is not installed, or there is no such data set or split.
        """
        try:
            import datasets
        except ImportError as error:
            raise InputError(_NO_HF) from error
        folder = Path(self.path).expanduser()
        try:
            if not folder.is_dir() or not any((folder / file).is_file() for file in _SAVED):
                return datasets.load_dataset(self.path, self.subset, split=name)
            found = datasets.load_from_disk(str(folder))
        except Exception as error:  # the library and its network raise many types
            why = first_line(error)
            raise InputError(
                f"data.path must be a saved folder or a name on the hub, got {self.path} ({why})"
            ) from error
        if isinstance(found, datasets.Dataset):
            do = "say data.test=0.2 to hold out a share"
            require(name == self.train, self.path, f"have the split {name}", "a data set without splits", do)
            return found
        require(name in found, self.path, f"have the split {name}", ", ".join(found), "say data.train or data.test")
        return found[name]


_SAVED = ("dataset_dict.json", "state.json")  # of which save_to_disk writes one


def _classes(feature: Any) -> int | None:
    """How many classes a column of labels has, if the library numbers them."""
    names = getattr(feature, "names", None)
    return len(names) if isinstance(names, list) else None


def _is_number(feature: Any) -> bool:
    return str(getattr(feature, "dtype", "")).startswith(("int", "uint", "float", "bool")) and not _lists(feature)


def _lists(feature: Any) -> bool:
    return hasattr(feature, "feature") or hasattr(feature, "shape")


def _column(values: Any) -> np.ndarray:
    """A column as ``Columns`` have it."""
    cells = list(values)
    if all(isinstance(cell, (bool, int, float)) or cell is None for cell in cells):
        return np.array([np.nan if cell is None else cell for cell in cells])
    return np.array(cells, dtype=object)


def _type(feature: Any) -> np.dtype[Any] | None:
    """The type that the library says of the numbers in a column of lists or arrays, which it gives as Python's."""
    while hasattr(feature, "feature"):
        feature = feature.feature
    name = str(getattr(feature, "dtype", ""))
    return np.dtype(name) if re.fullmatch(r"u?int\d+|float\d+", name) else None


def _stacked(values: Any, kind: np.dtype[Any] | None, where: str) -> np.ndarray:
    """Images or lists of numbers as one array [n, ...], of the type that the library says."""
    rows: np.ndarray | None = None
    for number, value in enumerate(values):
        if hasattr(value, "getbands"):  # an image of PIL's
            do = "convert all to L or RGB and save them again"
            require(value.mode in CHANNELS, f"{where}: row {number + 1}", "be grey (L) or colour (RGB)", value.mode, do)
            value = pixels(value)
        array = np.asarray(value)
        do = "map text to numbers and save it with save_to_disk"
        require(array.dtype.kind in "biuf", where, "hold images or lists of numbers", type(value).__name__, do)
        if kind is not None and (array.dtype.kind in "iu") == (kind.kind in "iu"):  # an empty cell is a float
            array = array.astype(kind)
        if rows is None:
            require_memory(where, len(values) * array.nbytes)
            rows = np.empty((len(values), *array.shape), array.dtype)
        must = f"have the shape of the first, {list(rows.shape[1:])}"
        require(array.shape == rows.shape[1:], f"{where}: row {number + 1}", must, list(array.shape))
        rows[number] = array
    require(rows is not None, where, "hold samples", 0)
    assert rows is not None
    return rows
