"""What a run came to, as ``fedsim.simulate`` returns it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from fedsim.errors import require
from fedsim.ground.console import headline, number, rows_of
from fedsim.ground.tree import tree_map
from fedsim.pool.jobs import Rows
from fedsim.record.run_folder import Status
from fedsim.runs.traffic import Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, repr=False)
class Result:
    """What a run came to.

    A notebook shows it as a table, ``print`` in a line.

    Attributes:
        status: ``finished``, ``stopped`` (by a callback), ``diverged`` or ``interrupted``.
        metrics: one record per round, round 0 being the initial model: every scalar by its TensorBoard tag.
        summary: last and best of each ``eval/*``, totals of ``comm/*``, ``digest``, ``cpu_capability``; as in
            summary.json.
        model: the final global model, or the mean of the peers', in evaluation mode; None for an algorithm that has
            none.
        server: the algorithm's final server state; () where there is no server.
        trajectory: [rounds + 1, d] when asked for, the initial model and that after each round, as ``metrics`` has
            them; [rounds + 1, n, d] of peers; else None.
        run_dir: the run's folder, an absolute path, or None.
        message: why the run stopped early, or "".
        stores: the clients' states, of each architecture; ``client`` reads them.
        name: what the run is called.
    """

    status: Status
    metrics: list[Record]
    summary: dict[str, Any]
    model: nn.Module | None
    server: Any
    trajectory: np.ndarray | None = None
    run_dir: Path | None = None
    message: str = ""
    stores: tuple[Rows, ...] = ()
    name: str = ""

    def client(self, number: int) -> Any:
        """The final state of one client, a tree of tensors.

        >>> from fedsim import Mean, simulate
        >>> from fedsim.algorithms.scaffold import Scaffold
        >>> from fedsim.data import Quadratic
        >>> from fedsim.models import linear_zero
        >>> from fedsim.partition import Natural
        >>> equal = Mean(weights="uniform")
        >>> parts = {"data": Quadratic(clients=3), "partition": Natural(), "model": linear_zero, "aggregate": equal}
        >>> result = simulate(Scaffold(lr=0.01), **parts, rounds=1)
        >>> result.client(2).c.shape == result.server.x.shape
        True
        """
        rows = self.stores[number % len(self.stores)].read([number])
        return tree_map(lambda array: torch.from_numpy(array)[0], rows[0])

    def frame(self) -> Any:
        """All records as a table with a row for each round and a column for each tag, ``round`` among them.

        A ``pandas.DataFrame`` where pandas is installed, else a dictionary of arrays, {tag: [rounds + 1]}. What a round
        did not measure is NaN.
        """
        if find_spec("pandas") is None:
            return self._columns()
        import pandas

        return pandas.DataFrame(self._columns())

    def plot(self, *metrics: str) -> Figure:
        """Metrics against rounds, one drawing below the other; a notebook shows the figure.

        >>> result.plot("accuracy", "train/loss").savefig("mine.pdf")  # doctest: +SKIP

        Args:
            metrics: tags, ``eval/`` may be left out; none: the first score, and the loss.

        Raises:
            InputError: one of them is not on record.
        """
        from fedsim.record.figures import over_rounds

        columns = self._columns()
        known = [tag for tag in columns if tag != "round"]
        asked = metrics or tuple(headline(dict.fromkeys(known, 0.0)))
        tags = [name if name in columns else f"eval/{name}" for name in asked]
        for name, tag in zip(asked, tags, strict=True):
            require(tag in known, "metrics", f"be tags of this run's records ({', '.join(known)})", name)
        return over_rounds(columns["round"], {tag: columns[tag] for tag in tags}, self.name)

    def _columns(self) -> dict[str, np.ndarray]:
        """{tag: [rounds + 1]}, ``round`` first and as whole numbers."""
        tags = dict.fromkeys(["round", *(tag for record in self.metrics for tag in record)])
        kinds: dict[str, Any] = {"round": np.int64}
        return {
            tag: np.array([record.get(tag, math.nan) for record in self.metrics], kinds.get(tag, np.float64))
            for tag in tags
        }

    def __repr__(self) -> str:
        last = {tag: value["last"] for tag, value in self.summary.items() if tag.startswith("eval/")}
        scores = [f"{name} {number(value)}" for name, value in headline(last).items()]
        where = [f"in {self.run_dir}"] if self.run_dir else []
        parts = [self.status, f"{self.summary['rounds']} rounds", *scores, f"digest {self.summary['digest'][:8]}"]
        return f"<Result {self.name}: {', '.join(parts + where)}>"

    def _repr_html_(self) -> str:
        where = [("folder", str(self.run_dir))] if self.run_dir else []
        cells = '<tr><th style="text-align:left">{}</th><td style="text-align:left">{}</td></tr>'
        rows = [cells.format(escape(name), escape(text)) for name, text in [*rows_of(self.summary), *where]]
        return f"<table><caption>{escape(self.name)}</caption>{''.join(rows)}</table>"
