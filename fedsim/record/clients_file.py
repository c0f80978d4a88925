"""``clients.parquet`` in a run's folder: every client's own values, one row for each client and evaluation.

    round, client, samples    when, who, and on how many test samples (peers: on all of them)
    loss, accuracy, ...       the loss and each shared metric; null where a client's samples give it no value

Parquet cannot be appended to in place, so the file is written anew, whole, beside each checkpoint and when the run
ends. A run that goes on keeps the rows of its rounds: the content is that of a run that was never interrupted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.errors import first_line
from fedsim.ground.console import warning
from fedsim.ground.files import atomic_file, is_own_file

CLIENTS = "clients.parquet"
KEYS = ("round", "client", "samples")
"""Columns that are no metrics."""
ABSENT = f"{CLIENTS} is not written: it needs pyarrow; pip install 'fedsim-ray[tables]'"


class ClientsFile:
    """Writes the file of one run.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / CLIENTS
        self._new: list[dict[str, np.ndarray]] = []  # evaluations that are not in the file yet

    @classmethod
    def wanted(cls, folder: Path) -> ClientsFile | None:
        """The file of a run that evaluates its clients; None, and a line, without pyarrow."""
        if find_spec("pyarrow") is None:
            warning(ABSENT)
            return None
        return cls(folder)

    def resume(self, records: Sequence[Mapping[str, float]]) -> None:
        """Keep the rows of these rounds; rows that are missing are lost, and said to be."""
        last = int(records[-1]["round"]) if records else -1
        groups = [group.filter(_until(group, last)) for group in self._groups()]
        have = {number for group in groups for number in group["round"].unique().to_pylist()}
        evaluated = [int(record["round"]) for record in records if "eval/loss" in record]
        if missing := [number for number in evaluated if number not in have]:
            warning(f"{self.path} has no rows of round {missing[0]} and {len(missing) - 1} others: they are left out")
        self._write([group for group in groups if len(group)])

    def heard(self, round_: int, values: Mapping[str, np.ndarray]) -> None:
        """An evaluation is on record: ``client`` [k], ``samples`` [k], and [k] values of each metric."""
        self._new.append({"round": np.full(len(values["client"]), round_), **values})

    def save(self) -> None:
        """Write what is new; a disk that is full costs the file and a line."""
        if not self._new:
            return
        columns = {name: np.concatenate([one[name] for one in self._new]) for name in self._new[0]}
        new, old = _table(columns), self._groups()
        if old and old[0].schema.names != new.schema.names:
            warning(f"{self.path} has columns of another run: it begins anew")
            old = []
        if self._write([*old, new]):
            self._new = []

    def _groups(self) -> list[Any]:
        """What the file holds, in the pieces in which it was written; nothing where there is no whole file."""
        from pyarrow import ArrowException, parquet

        if not is_own_file(self.path):
            return []
        try:
            with parquet.ParquetFile(self.path) as file:
                groups = [file.read_row_group(i, use_threads=False) for i in range(file.num_row_groups)]
            return [group for group in groups if _is_ours(group)]
        except (OSError, ArrowException) as error:
            warning(f"{self.path} cannot be read: {first_line(error)}")
            return []

    def _write(self, groups: Sequence[Any]) -> bool:
        """Write these pieces; whether that went well."""
        from pyarrow import parquet

        try:
            if not groups:
                self.path.unlink(missing_ok=True)
                return True
            with atomic_file(self.path) as file, parquet.ParquetWriter(file, groups[0].schema) as writer:
                for group in groups:
                    writer.write_table(group)
        except OSError as error:
            warning(f"{self.path} is not written: {first_line(error)}")
            return False
        return True


def _is_ours(group: Any) -> bool:
    """Whether a piece has the columns of this file, of numbers."""
    from pyarrow import types

    whole = [types.is_integer(group.schema.field(name).type) for name in KEYS if name in group.schema.names]
    return len(whole) == len(KEYS) and all(whole)


def _until(group: Any, last: int) -> Any:
    from pyarrow import compute

    return compute.less_equal(group["round"], last)


def _table(columns: Mapping[str, np.ndarray]) -> Any:
    """A table; NaN is null, as in metrics.jsonl."""
    import pyarrow

    arrays = {}
    for name, values in columns.items():
        kind = np.int64 if name in KEYS else np.float64
        mask = None if name in KEYS else ~np.isfinite(values)
        arrays[name] = pyarrow.array(values.astype(kind), mask=mask)
    return pyarrow.table(arrays)
