"""``hydra/sweeper=fedsim``: from the command to the jobs that are still to be run. Imported at every start: light."""

from __future__ import annotations

import hashlib
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobStatus
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

if TYPE_CHECKING:
    from fedsim.sweep.expand import Param, SweepJob
    from fedsim.sweep.state import State, SweepFolder


class FedsimSweeper(Sweeper):
    """Expands or searches what varies, skips what is finished, hands the rest to the launcher.

    Args:
        params: keys and values of a sweep's file.
        arguments: keys of the command line that Hydra itself shall not apply before a job has made its choices.
        retry: run again the jobs that failed.
        search: the keys of ``fedsim.sweep.search.Search``.
    """

    def __init__(self, params: DictConfig, arguments: Sequence[str], retry: bool, search: DictConfig) -> None:
        self._params: Any = OmegaConf.to_container(params)
        self._arguments = list(arguments)
        self._retry = retry
        self._search: Any = OmegaConf.to_container(search)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Hydra's wiring."""
        self._loader = hydra_context.config_loader
        self._config = config
        self._launcher: Any = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> list[State]:
        """Run the sweep.

        Raises:
            InputError: a job cannot be run; before anything is.
            JobFailed: a job did not finish; after all others.
            SweepStopped: the disk failed; what was written is kept.
        """
        from fedsim.assembly.nodes import convert
        from fedsim.errors import JobFailed
        from fedsim.record.run_folder import DONE
        from fedsim.sweep.board import print_results
        from fedsim.sweep.expand import expand, overrides_of, params_of
        from fedsim.sweep.search import Search, search
        from fedsim.sweep.state import SweepFolder

        from ._composer import Composer

        settings: Search = convert(self._search, Search, "sweep.search")
        given = [*arguments, *self._arguments]
        parser = OverridesParser.create(config_loader=self._loader)
        params = params_of(parser.parse_overrides([*overrides_of(self._params), *given]))
        choices = self._config.hydra.runtime.choices
        if self._config.hydra.sweep.dir == "auto":
            with open_dict(self._config):
                self._config.hydra.sweep.dir = str(Path("multirun") / _name(params, given, choices.get("sweep")))
        self._composer = Composer(self._loader, self._config)
        folder = SweepFolder(self._config.hydra.sweep.dir)
        if settings.sampler == "grid":
            jobs = expand(params, choices)
            composed = self._composed(jobs)
            with folder.held(sys.argv, given):
                states = self._run(folder, jobs, composed)
        else:
            rounds = int(self._config.rounds)
            with folder.held(sys.argv, given):
                states = search(
                    settings, params, choices, rounds, lambda jobs: self._run(folder, jobs, self._composed(jobs))
                )
        unique = list({state.identity: state for state in states}.values())
        print_results(folder.path, unique)
        if any(state.status not in DONE for state in unique):
            raise JobFailed(str(folder.path))
        return unique

    def _composed(self, jobs: Sequence[SweepJob]) -> list[Mapping[str, Any]]:
        """The resolved configuration of every job.

        Raises:
            InputError: one line for each problem.
        """
        from fedsim.assembly.configuration import build_run
        from fedsim.assembly.problems import collect
        from fedsim.errors import InputError

        configs: list[Mapping[str, Any]] = []
        problems: list[str] = []
        for job in jobs:
            config = self._composer(job.overrides)
            with collect(problems):
                build_run(config)
            configs.append(config)
        if problems:
            raise InputError("\n".join(dict.fromkeys("\n".join(problems).splitlines())))
        return configs

    def _run(self, folder: SweepFolder, jobs: Sequence[SweepJob], configs: Sequence[Mapping[str, Any]]) -> list[State]:
        """Run what is not finished; the states of the jobs, in their order."""
        from fedsim.sweep.board import skipped
        from fedsim.sweep.queued import QueuedJob
        from fedsim.sweep.state import identity

        keys = [identity(config) for config in configs]
        states = folder.claim(zip(jobs, configs, strict=True))
        of = {key: (job, config) for key, job, config in zip(keys, jobs, configs, strict=True)}
        retried = ("failed",) if self._retry else ()
        todo = [state for state in states if state.unfinished or state.status in retried]
        skipped(states, todo)
        if todo and hasattr(self._launcher, "run_tasks"):
            tasks = [QueuedJob(state, of[state.identity][1], of[state.identity][0].overrides) for state in todo]
            self._launcher.run_tasks(folder, states, tasks)
        elif todo:
            dirs = (_quoted("hydra.sweep.dir", str(folder.path)),)
            asked = [[*of[s.identity][0].overrides, *dirs, _quoted("hydra.sweep.subdir", s.folder)] for s in todo]
            for done in self._launcher.launch(asked, initial_job_idx=0):
                if done.status == JobStatus.FAILED:
                    _explain(done._return_value, folder.path)
        now = {state.identity: state for state in folder.states()}
        return [now[key] for key in keys]


def _name(params: Sequence[Param], given: Sequence[str], chosen: str | None) -> str:
    """The folder of a sweep, the same for the same command: ``fedprox_mu``, ``algorithm-seed-3f2a9c``."""
    texts = sorted(text for text in given if not text.lstrip("+").startswith(("engine", "checkpoint", "sweep=")))
    digest = hashlib.sha256("\n".join(texts).encode()).hexdigest()[:6]
    words = [chosen] if chosen else [p.key.split(".")[-1].lstrip("+~") for p in params if p.varies]
    return "-".join([*words, *([digest] if texts or not chosen else [])])


def _quoted(key: str, value: str) -> str:
    escaped = value.replace("'", "\\'")
    return f"{key}='{escaped}'"


def _explain(error: Any, sweep: Path) -> None:
    """Show where an unexpected error of a job came from; the expected ones have said what they are.

    Raises:
        SweepStopped: it is of the disk.
    """
    from fedsim.errors import JobFailed
    from fedsim.sweep.machine import disk_error, reason, sweep_stopped

    if (broken := disk_error(error, sweep)) is not None:
        raise sweep_stopped(reason(broken, sweep), sweep)
    if isinstance(error, Exception) and not isinstance(error, JobFailed):
        traceback.print_exception(error)
