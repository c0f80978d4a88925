"""``hydra/launcher=fedsim``: jobs side by side in warm worker processes. Imported at every start: light."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

if TYPE_CHECKING:
    from fedsim.sweep.queued import QueuedJob
    from fedsim.sweep.state import State, SweepFolder


class FedsimLauncher(Launcher):
    """Starts each job when the CPUs that it declares are free.

    Args:
        limits: the keys of ``fedsim.sweep.queued.Limits``.
    """

    def __init__(self, **limits: Any) -> None:
        self._given = limits

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Hydra's wiring; the task itself runs in worker processes, through ``fedsim.sweep.attempt``."""
        self._loader = hydra_context.config_loader
        self._config = config

    def run_tasks(self, folder: SweepFolder, states: Sequence[State], tasks: Sequence[QueuedJob]) -> None:
        """Run jobs that are claimed; their state files say what became of them.

        Args:
            folder: the sweep's.
            states: all jobs of the sweep, for the table.
            tasks: those to run.
        """
        from fedsim.assembly.nodes import convert
        from fedsim.sweep.board import Board
        from fedsim.sweep.overview import write_overview
        from fedsim.sweep.queued import Limits, in_one_process
        from fedsim.sweep.side_by_side import run_all

        limits: Limits = convert(self._given, Limits, "hydra.launcher")
        try:
            with Board(folder.path, states) as board:
                run_all(folder, in_one_process(tasks, limits), limits, board)
        finally:
            write_overview(folder.path, states)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run jobs for a sweeper that is not fedsim's own."""
        from fedsim.errors import JobFailed
        from fedsim.record.run_folder import DONE
        from fedsim.sweep.board import last_score
        from fedsim.sweep.expand import SweepJob
        from fedsim.sweep.queued import QueuedJob
        from fedsim.sweep.state import SweepFolder

        from ._composer import Composer

        folder = SweepFolder(Path(self._config.hydra.sweep.dir))
        returns = []
        composer = Composer(self._loader, self._config)
        with folder.held([], []):
            jobs = [(SweepJob(tuple(given), tuple(given)), composer(given)) for given in job_overrides]
            claimed = folder.claim(jobs)
            tasks = [QueuedJob(s, c, j.overrides) for s, (j, c) in zip(claimed, jobs, strict=True) if s.unfinished]
            self.run_tasks(folder, claimed, tasks)
            for state in claimed:
                ended = folder.find(state.identity) or state
                done = JobReturn(overrides=ended.overrides)
                good = ended.status in DONE
                done.status = JobStatus.COMPLETED if good else JobStatus.FAILED
                done.return_value = last_score(ended.summary or {})[1] if good else JobFailed(ended.message)
                returns.append(done)
        return returns
