"""How a metric is distributed over clients at the last evaluation, from the runs' ``clients.parquet``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np

from fedsim.errors import first_line
from fedsim.ground.files import is_own_file
from fedsim.record.clients_file import CLIENTS
from fedsim.report.runs import RecordedRun

NO_PYARROW = f"{CLIENTS} is there, but not read: it needs pyarrow; pip install 'fedsim-ray[report]'"
QUANTILES = {"worst tenth up to": 0.1, "median": 0.5, "best tenth from": 0.9}


@dataclass(frozen=True)
class ClientSpread:
    """A method's clients, those of all its runs together.

    Attributes:
        values: [k] ascending.
        runs: how many runs they are of.
    """

    values: np.ndarray
    runs: int

    @property
    def shares(self) -> np.ndarray:
        """[k] the share of clients with at most each value: an empirical distribution function."""
        return np.arange(1, len(self.values) + 1) / len(self.values)


def spread_over_clients(
    runs: Sequence[tuple[RecordedRun, int]], metric: str
) -> tuple[ClientSpread | None, dict[str, None]]:
    """A metric's distribution over the clients of a method, and why runs were left out, a line each.

    Args:
        runs: each with the round whose evaluation counts.
        metric: a column, such as ``accuracy``.
    """
    found: list[np.ndarray] = []
    problems: dict[str, None] = {}
    for run, at in runs:
        values, problem = _values(run, at, metric)
        if problem:
            problems[problem] = None
        elif len(values):
            found.append(values)
    return ClientSpread(np.sort(np.concatenate(found)), len(found)) if found else None, problems


def _values(run: RecordedRun, at: int, metric: str) -> tuple[np.ndarray, str]:
    """Each client's value in a round, those that have one; and why there are none, if that is worth a word."""
    none, path = np.array([]), run.path / CLIENTS
    if not is_own_file(path):
        return none, ""
    if find_spec("pyarrow") is None:
        return none, NO_PYARROW
    from pyarrow import ArrowException, parquet

    try:
        with parquet.ParquetFile(path) as file:
            if not {"round", metric} <= set(file.schema_arrow.names):
                return none, ""
            groups = (file.read_row_group(i, ["round", metric], use_threads=False) for i in range(file.num_row_groups))
            parts = [_at(group["round"].to_numpy(), group[metric].to_numpy(), at) for group in groups]
    except (OSError, ArrowException, ValueError, TypeError) as error:
        return none, f"{path} cannot be read: {first_line(error)}"
    return np.concatenate([none, *parts]), ""


def _at(rounds: np.ndarray, values: np.ndarray, at: int) -> np.ndarray:
    mine: np.ndarray = values[rounds == at].astype(np.float64)
    finite: np.ndarray = mine[np.isfinite(mine)]
    return finite
