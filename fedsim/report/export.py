"""One row per run for other programs: CSV, and Parquet where pyarrow is installed."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.errors import InputError
from fedsim.ground.files import atomic_file
from fedsim.report.axes import spent_until
from fedsim.report.command_lines import command_lines
from fedsim.report.compare import Comparison
from fedsim.report.runs import RecordedRun

NO_PARQUET = "results.parquet is left out: it needs pyarrow; pip install 'fedsim-ray[report]'"


def rows(comparisons: Sequence[Comparison]) -> list[dict[str, Any]]:
    """A flat record of every run; all have the same keys, None where there is nothing.

    ``setting``, ``method``, ``seed``, ``status``, ``rounds``; the last measured value of every ``eval/*``,
    ``train/*``, ``gossip/*`` and ``privacy/*``; what was spent, ``spent/MB`` ...; what reaching the target took,
    ``target/MB`` ...; ``digest``, ``cpu_capability``, ``path``, ``command``; and the configuration,
    ``config/algorithm.lr`` ...
    """
    found = [
        _row(run, comparison, method.label)
        for comparison in comparisons
        for method in comparison.setting.methods
        for run in method.runs
    ]
    keys = dict.fromkeys(key for row in found for key in row if not key.startswith("config/"))
    keys |= dict.fromkeys(sorted(key for row in found for key in row if key.startswith("config/")))
    return [{key: row.get(key) for key in keys} for row in found]


def write_csv(path: Path, records: Sequence[dict[str, Any]]) -> None:
    """Comma-separated values with a heading."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(records[0]))
    writer.writeheader()
    writer.writerows(records)
    with atomic_file(path) as file:
        file.write(text.getvalue().encode())


def write_parquet(path: Path, records: Sequence[dict[str, Any]]) -> None:
    """The same as Parquet; a column of mixed types is text.

    Raises:
        InputError: pyarrow is not installed.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise InputError(NO_PARQUET) from error
    columns = {}
    for key in records[0]:
        values = [record[key] for record in records]
        kinds = {float if type(value) is int else type(value) for value in values if value is not None}
        columns[key] = [None if v is None else str(v) for v in values] if len(kinds) > 1 else values
    with atomic_file(path) as file:
        parquet.write_table(pyarrow.table(columns), file)


def _row(run: RecordedRun, comparison: Comparison, method: str) -> dict[str, Any]:
    row: dict[str, Any] = {"setting": comparison.setting.label, "method": method, "seed": run.seed}
    row |= {"status": run.status, "rounds": int(run.rounds[-1])}
    for tag, values in run.metrics.items():
        if tag.split("/")[0] in ("eval", "train", "gossip", "privacy"):
            row[tag] = _last(values)
    row |= {f"spent/{axis.name}": _last(axis.values(run)) for axis in comparison.axes if axis.name != "rounds"}
    if comparison.target is not None:
        cost = spent_until(run, *comparison.target) or {}
        row |= {f"target/{axis.name}": _finite(cost.get(axis.name)) for axis in comparison.axes}
    row |= {"digest": run.summary.get("digest"), "cpu_capability": run.summary.get("cpu_capability")}
    row |= {"path": str(run.path), "command": command_lines([run])[0]}
    return row | {f"config/{key}": value for key, value in run.flat.items()}


def _last(values: np.ndarray) -> float | None:
    finite = values[np.isfinite(values)]
    return float(finite[-1]) if len(finite) else None


def _finite(value: float | None) -> float | None:
    return None if value is None or not np.isfinite(value) else value
