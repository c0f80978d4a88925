"""Jobs side by side: each starts, in order, when the resources that it declares are free; none waits for ever."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from importlib import import_module
from multiprocessing.connection import wait

from fedsim.errors import InputError, SweepStopped
from fedsim.ground.console import warning
from fedsim.sweep.board import Board
from fedsim.sweep.machine import reason, sweep_stopped
from fedsim.sweep.queued import Limits, QueuedJob, gpus, usable_cpus
from fedsim.sweep.state import State, SweepFolder, now
from fedsim.sweep.workers import Answer, Process, Ray, keep_ray, serve

TICK_S = 0.5
LAZY = ("fedsim.sweep.attempt", "fedsim.record.figures", "torch.utils.tensorboard.summary")
"""What every run imports at some time; imported before the workers are forked, it is imported once."""
GRACE_S = 60.0
"""How long jobs may take to save what they have after Ctrl-C."""


def run_all(sweep: SweepFolder, tasks: Sequence[QueuedJob], limits: Limits, board: Board) -> None:
    """Run jobs; what became of each is in its state file, whatever happens to the others.

    Raises:
        InputError: there is no Ray where a job wants it.
        KeyboardInterrupt: after the jobs that were running have saved what they have.
        SweepStopped: the same, where the disk failed a job; an ``OSError``, where it failed the sweep.
    """
    waiting = list(tasks)
    for module in LAZY if len(waiting) > 1 else ():
        import_module(module)
    with _pool(sweep, limits) as pool:
        try:
            while waiting or pool.again or pool.busy:
                # Only the first may start: if smaller ones overtook it, a large one might wait for ever.
                while waiting and pool.fits(waiting[0]):
                    board.started(waiting[0].state)
                    pool.start(waiting.pop(0))
                if pool.again and not waiting and not pool.busy:  # alone: memory may have been short
                    waiting.append(pool.again.pop(0))
                    continue
                for state in pool.ended(TICK_S):
                    board.ended(state)
                if pool.broken:
                    raise sweep_stopped(pool.broken, sweep.path)
                board.refresh()
        except (KeyboardInterrupt, OSError, SweepStopped) as stop:
            pool.interrupt(board)
            if isinstance(stop, KeyboardInterrupt):
                board.stopped()
            raise


@dataclass
class _Pool:
    sweep: SweepFolder
    limits: Limits
    idle: list[Process] = field(default_factory=list)
    busy: dict[Process, QueuedJob] = field(default_factory=dict)
    rays: dict[str | None, tuple[Process, Ray]] = field(default_factory=dict)
    kills: Counter[str] = field(default_factory=Counter)
    again: list[QueuedJob] = field(default_factory=list)
    broken: str = ""  # what the disk said

    def fits(self, task: QueuedJob) -> bool:
        """Whether a job can start now; one that wants more than there is starts when it has everything."""
        running = list(self.busy.values())
        if not running:  # else a job that wants more than the machine has would wait for ever
            return True
        free = gpus() * self.limits.jobs_per_gpu
        cpus = self._ray(task.address).cpus if task.address is not None else usable_cpus(self.limits)
        return (
            (self.limits.jobs is None or len(running) < self.limits.jobs)
            and sum(other.cpus for other in running if other.address == task.address) + task.cpus <= cpus
            and (not task.gpu or sum(other.gpu for other in running) < free)
        )

    def start(self, task: QueuedJob) -> None:
        ray = self._ray(task.address) if task.ray else None
        worker = self.idle.pop() if self.idle else Process(serve, self.sweep.path)
        with suppress(ConnectionError):  # killed while it was idle: noticed like one that is killed at work
            worker.line.send((task.state.folder, task.config, ray))
        self.busy[worker] = task

    def ended(self, timeout: float | None) -> Iterator[State]:
        """States of the jobs that came to an end within this time."""
        lines = {worker.line: worker for worker in self.busy}
        for line in wait(list(lines), timeout):
            worker = lines[line]
            task = self.busy.pop(worker)
            state = task.state
            try:
                self._back(worker, task)
                state = self._standing(task)
            except OSError as error:
                self.broken = self.broken or reason(error, self.sweep.path)
            yield state

    def _back(self, worker: Process, task: QueuedJob) -> None:
        """A worker that comes back from a job, or does not."""
        try:
            answer: Answer = worker.line.recv()
        except (EOFError, ConnectionError):
            worker.line.close()
            self._lost(task, worker.ended())
            return
        self.broken = self.broken or answer.disk
        (worker.close(GRACE_S) if answer.stopped or answer.disk else self.idle.append(worker))

    def interrupt(self, board: Board) -> None:
        """Tell all jobs to save what they have, and wait for them."""
        for worker in self.busy:
            worker.interrupt()
        while self.busy:
            ended = list(self.ended(GRACE_S))
            for state in ended:
                with suppress(OSError):  # of what the board is written to
                    board.ended(state)
            if not ended:
                return

    def close(self) -> None:
        for worker, task in self.busy.items():
            worker.close()
            with suppress(OSError):  # what cannot be noted now is seen when the command is given again
                self.sweep.write(self._seen(task, "the sweep was stopped while it ran"))
        for worker in self.idle:
            worker.close(GRACE_S)
        for process, _ in self.rays.values():
            process.close(GRACE_S)

    def _standing(self, task: QueuedJob) -> State:
        return self.sweep.find(task.state.identity) or task.state

    def _seen(self, task: QueuedJob, why: str) -> State:
        """How a job stands whose process has gone without a word."""
        state = self._standing(task)
        return self.sweep.seen(replace(state, status="running"), why) if state.unfinished else state

    def _lost(self, task: QueuedJob, why: str) -> None:
        """A job whose process is no more: it goes on from its checkpoint after the others, or is given up."""
        state = self._seen(task, why)
        if state.status == "interrupted":
            self.kills[state.identity] += 1
            times = self.kills[state.identity]
            if times <= self.limits.retries:
                self.again.append(task)
                warning(f"{state.name}: {why}; it is run again after the others ({times} of {self.limits.retries})")
            else:
                hint = "; if memory was short, a smaller engine.block takes less" if "SIGKILL" in why else ""
                state = replace(state, status="failed", message=f"{why}{f', {times} times' if times > 1 else ''}{hint}")
        self.sweep.write(replace(state, ended=now()))

    def _ray(self, address: str | None) -> Ray:
        """The Ray that jobs of this address share."""
        if address not in self.rays:
            process = Process(keep_ray, address, usable_cpus(self.limits))
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
