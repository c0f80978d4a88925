"""One table of a run's records, which any program opens."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fedsim.callbacks.base import Callback, RunView
from fedsim.errors import require
from fedsim.fields import check_fields
from fedsim.ground.files import atomic_file


@dataclass
class CsvFile(Callback):
    """Writes ``metrics.csv``: a line for each round, a column for each tag, empty where a round did not measure it.

    A resumed run has every round once: the file is made anew from the rounds that were kept.

    Attributes:
        path: of the file; null: ``metrics.csv`` in the run's folder.
    """

    path: str | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        require(self.path != "", "path", "be a file or null", self.path)

    def begin(self, run: RunView) -> None:
        """Write the rounds before; a file that somebody else wrote is left alone."""
        self._file = run.file(self.path, "metrics.csv", "csv.path")
        mine = run.records and self._file.is_file() and self._file.read_text().startswith("round,")
        require(bool(mine) or not self._file.exists(), "csv.path", "be a new file", str(self._file))
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._rows = [dict(record) for record in run.records]
        self._columns: list[str] = []
        if self._rows:
            self._write()

    def record(self, record: Mapping[str, float]) -> None:
        """Append a line; a round with a tag that none before it had makes the columns anew."""
        self._rows.append(dict(record))
        if not {*record} <= {*self._columns}:
            self._write()
            return
        with self._file.open("a", newline="") as file:
            csv.DictWriter(file, self._columns).writerow(record)

    def _write(self) -> None:
        self._columns = list(dict.fromkeys(tag for row in self._rows for tag in row))
        text = io.StringIO(newline="")
        table = csv.DictWriter(text, self._columns)
        table.writeheader()
        table.writerows(self._rows)
        with atomic_file(Path(self._file)) as file:
            file.write(text.getvalue().encode())
