"""Jobs side by side: each starts, in order, when the resources that it declares are free; none waits for ever."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib import import_module
from multiprocessing.connection import wait
from typing import Any

from fedsim.errors import InputError, require
from fedsim.fields import check_fields
from fedsim.pool.engine import MOST_PROCESSES
from fedsim.sweep.board import Board
from fedsim.sweep.state import State, SweepFolder, now
from fedsim.sweep.workers import Process, Ray, keep_ray, serve

TICK_S = 0.5
CHOSEN = re.compile(r"\+*engine(=|\.(backend|actors|address)=)")
LAZY = ("fedsim.sweep.attempt", "fedsim.record.figures", "torch.utils.tensorboard.summary")
"""What every run imports at some time; imported before the workers are forked, it is imported once."""
GRACE_S = 60.0
"""How long jobs may take to save what they have after Ctrl-C."""


@dataclass(frozen=True)
class Limits:
    """How much of the machine a sweep may use.

    Attributes:
        cpus: CPUs of this machine, in 1..1024; None: all.
        jobs: at the same time, in 1..1024; None: as many as fit.
        jobs_per_gpu: at the same time on a GPU of this machine, in 1..1024.
    """

    cpus: int | None = None
    jobs: int | None = None
    jobs_per_gpu: int = 1

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("cpus", "jobs", "jobs_per_gpu"):
            value = getattr(self, name)
            require(value is None or value >= 1, name, "be >= 1", value)
            require(value is None or value <= MOST_PROCESSES, name, f"be <= {MOST_PROCESSES}", value)


@dataclass(frozen=True)
class QueuedJob:
    """A job to be run.

    Attributes:
        state: how it stands.
        config: its resolved configuration.
        overrides: of the command that runs it.
    """

    state: State
    config: Mapping[str, Any]
    overrides: tuple[str, ...]

    @property
    def ray(self) -> bool:
        """Whether it drives actors."""
        return bool(self.config["engine"]["backend"] == "ray")

    @property
    def address(self) -> str | None:
        """The cluster that it declares."""
        return self.config["engine"].get("address") if self.ray else None

    @property
    def cpus(self) -> int:
        """What it takes: a CPU for each actor, or its threads."""
        engine = self.config["engine"]
        return int(engine["actors"] if self.ray else engine["threads"])

    @property
    def gpu(self) -> bool:
        """Whether it computes on a GPU of this machine."""
        return bool(self.config["engine"]["device"] == "cuda" and self.address is None)


def in_one_process(tasks: Sequence[QueuedJob], limits: Limits) -> list[QueuedJob]:
    """Jobs without actors of their own where there are at least as many jobs as CPUs: same bits, less work.

    A job whose command chooses the engine keeps it.
    """
    if len(tasks) < _cpus(limits):
        return list(tasks)
    return [
        replace(task, config={**task.config, "engine": {**task.config["engine"], "backend": "serial"}})
        if task.address is None and not any(CHOSEN.match(text) for text in task.overrides)
        else task
        for task in tasks
    ]


def run_all(sweep: SweepFolder, tasks: Sequence[QueuedJob], limits: Limits, board: Board) -> None:
    """Run jobs; what became of each is in its state file, whatever happens to the others.

    Raises:
        InputError: there is no Ray where a job wants it.
        KeyboardInterrupt: after the jobs that were running have saved what they have.
    """
    waiting = list(tasks)
    for module in LAZY if len(waiting) > 1 else ():
        import_module(module)
    with _pool(sweep, limits) as pool:
        try:
            while waiting or pool.busy:
                # Only the first may start: if smaller ones overtook it, a large one might wait for ever.
                while waiting and pool.fits(waiting[0]):
                    board.started(waiting[0].state)
                    pool.start(waiting.pop(0))
                for state in pool.ended(TICK_S):
                    board.ended(state)
                board.refresh()
        except KeyboardInterrupt:
            pool.interrupt(board)
            board.stopped()
            raise


@dataclass
class _Pool:
    sweep: SweepFolder
    limits: Limits
    idle: list[Process] = field(default_factory=list)
    busy: dict[Process, QueuedJob] = field(default_factory=dict)
    rays: dict[str | None, tuple[Process, Ray]] = field(default_factory=dict)

    def fits(self, task: QueuedJob) -> bool:
        """Whether a job can start now; one that wants more than there is starts when it has everything."""
        running = list(self.busy.values())
        if not running:  # else a job that wants more than the machine has would wait for ever
            return True
        gpus = _gpus() * self.limits.jobs_per_gpu
        cpus = self._ray(task.address).cpus if task.address is not None else _cpus(self.limits)
        return (
            (self.limits.jobs is None or len(running) < self.limits.jobs)
            and sum(other.cpus for other in running if other.address == task.address) + task.cpus <= cpus
            and (not task.gpu or sum(other.gpu for other in running) < gpus)
        )

    def start(self, task: QueuedJob) -> None:
        ray = self._ray(task.address) if task.ray else None
        worker = self.idle.pop() if self.idle else Process(serve, self.sweep.path)
        worker.line.send((task.state.folder, task.config, ray))
        self.busy[worker] = task

    def ended(self, timeout: float | None) -> Iterator[State]:
        """States of the jobs that came to an end within this time."""
        lines = {worker.line: worker for worker in self.busy}
        for line in wait(list(lines), timeout):
            worker = lines[line]
            task = self.busy.pop(worker)
            try:
                stopped = worker.line.recv()
                (worker.close(GRACE_S) if stopped else self.idle.append(worker))
            except (EOFError, ConnectionError):
                self._mark(task, worker.ended())
            state = self.sweep.find(task.state.identity)
            yield state or task.state

    def interrupt(self, board: Board) -> None:
        """Tell all jobs to save what they have, and wait for them."""
        for worker in self.busy:
            worker.interrupt()
        while self.busy:
            ended = list(self.ended(GRACE_S))
            for state in ended:
                board.ended(state)
            if not ended:
                return

    def close(self) -> None:
        for worker, task in self.busy.items():
            worker.close()
            self._mark(task, "the sweep was stopped while it ran")
        for worker in self.idle:
            worker.close(GRACE_S)
        for process, _ in self.rays.values():
            process.close(GRACE_S)

    def _mark(self, task: QueuedJob, why: str) -> None:
        """A job whose process is no more: it goes on from its checkpoint when the command is given again."""
        state = self.sweep.find(task.state.identity) or task.state
        if state.status in ("pending", "running"):
            self.sweep.write(replace(state, status="interrupted", message=why, ended=now()))

    def _ray(self, address: str | None) -> Ray:
        """The Ray that jobs of this address share."""
        if address not in self.rays:
            process = Process(keep_ray, address, _cpus(self.limits))
            try:
                answer = process.line.recv()
            except EOFError:
                answer = InputError(f"a Ray for the jobs must start on this machine, got none: {process.ended()}")
            if isinstance(answer, InputError):
                process.close()
                raise answer
            self.rays[address] = (process, answer)
        return self.rays[address][1]


@contextmanager
def _pool(sweep: SweepFolder, limits: Limits) -> Iterator[_Pool]:
    pool = _Pool(sweep, limits)
    try:
        yield pool
    finally:
        pool.close()


def _cpus(limits: Limits) -> int:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return limits.cpus or usable


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()
