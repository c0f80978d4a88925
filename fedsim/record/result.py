"""What a run came to, as ``fedsim.simulate`` returns it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fedsim.ground.tree import tree_map
from fedsim.pool.jobs import Rows
from fedsim.record.run_folder import Status
from fedsim.runs.traffic import Record


@dataclass(frozen=True)
class Result:
    """What a run came to.

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
        run_dir: the run's folder, or None.
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
