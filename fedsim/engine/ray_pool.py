"""The Ray backend: a pool of actors, each hosting many virtual clients; the only file that imports ray.

Few big calls: a round's broadcast is put into the object store once, as numpy, and every actor gets one call with its
share of the jobs. The data set lies in the object store once per node and is read in place. Jobs are pure, so the share
of a lost actor is simply computed again, by a new one; Ray's own task retries stay off (they can execute twice).
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Sequence
from typing import Any

from fedsim.engine.config import Engine
from fedsim.engine.worker import Setup, Worker
from fedsim.errors import ClientError, InputError

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # a local Ray listens on loopback only

import ray
from ray.exceptions import OutOfMemoryError, RayActorError, RayTaskError

STORE_BYTES = 256 * 2**20
"""Object store room beyond the data sets and the messages of two rounds."""


class _Actor:
    """A worker inside an actor process."""

    def __init__(self, path: list[str], setup: list[Any]):
        sys.path += [folder for folder in path if folder not in sys.path]  # the user's own modules
        self.worker = Worker(ray.get(setup[0]))

    def run(self, method: str, jobs: Sequence[Any], shared: Any) -> list[Any]:
        answers: list[Any] = getattr(self.worker, method)(jobs, shared)
        return answers


class RayPool:
    """A pool of ``engine.actors`` actors on the local machine or on ``engine.address``."""

    def __init__(self, setup: Setup, engine: Engine, message_bytes: int):
        self._engine = engine
        self._owner = not ray.is_initialized()
        if self._owner:
            data = setup.train.x.nbytes + setup.train.y.nbytes + setup.test.x.nbytes + setup.test.y.nbytes
            room = {"object_store_memory": data + 4 * (engine.actors + 2) * message_bytes + STORE_BYTES}
            local = {} if engine.address else {"num_cpus": max(engine.actors, os.cpu_count() or 1), **room}
            handler = signal.getsignal(signal.SIGTERM)
            try:
                ray.init(
                    address=engine.address,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level="ERROR",
                    **local,
                )
            except ConnectionError as error:
                raise InputError(
                    f"engine.address must be a running Ray cluster, got {engine.address!r} ({error}); "
                    "start one with `ray start --head`, or leave engine.address=null"
                ) from error
            if handler is not None and threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, handler)  # ray.init replaces it by one that aborts the process
        free = int(ray.cluster_resources().get("CPU", 0))
        if free < engine.actors:
            raise InputError(
                f"engine.actors must be at most the {free} CPUs of the Ray cluster, got {engine.actors}; "
                "each actor takes one"
            )
        gpus = 1 / engine.actors if engine.device == "cuda" else 0
        self._class = ray.remote(num_cpus=1, num_gpus=gpus, max_restarts=0, max_task_retries=0)(_Actor)
        self._setup = [ray.put(setup)]  # in a list, so that the actor itself fetches it, with the user's path set
        self._actors = [self._spawn() for _ in range(engine.actors)]

    def _spawn(self) -> Any:
        return self._class.remote(sys.path, self._setup)

    def map(self, method: str, jobs: Sequence[Any], costs: Sequence[float], shared: Any) -> list[Any]:
        """Answers in job order; a lost actor's share is computed again, at most ``engine.retries`` times."""
        reference = ray.put(shared)
        answers: dict[int, Any] = {}
        pending: dict[Any, tuple[int, list[int], int]] = {}

        def send(a: int, share: list[int], attempt: int) -> None:
            call = self._actors[a].run.remote(method, [jobs[j] for j in share], reference)
            pending[call] = (a, share, attempt)

        for a, share in enumerate(shares(costs, len(self._actors))):
            if share:
                send(a, share, 1)
        while pending:
            (done,), _ = ray.wait(list(pending), num_returns=1)
            a, share, attempt = pending.pop(done)
            try:
                answers.update(zip(share, ray.get(done), strict=True))
            except RayTaskError as error:
                cause = error.cause
                raise (cause if isinstance(cause, ClientError) else ClientError(str(error))) from error
            except (RayActorError, OutOfMemoryError) as error:
                if getattr(error, "actor_init_failed", False):
                    raise ClientError(f"a Ray actor could not start: {error}") from error
                if attempt > self._engine.retries:
                    raise ClientError(f"jobs {share} lost their actor {attempt} times: {error}") from error
                self._actors[a] = self._spawn()
                send(a, share, attempt + 1)
        return [answers[j] for j in range(len(jobs))]

    def close(self) -> None:
        """Stop the actors, and Ray when this pool started it."""
        if self._owner:
            ray.shutdown()
            return
        for actor in self._actors:
            ray.kill(actor)


def shares(costs: Sequence[float], workers: int) -> list[list[int]]:
    """Consecutive job numbers for each worker, cut where the cumulated cost passes equal parts of the total."""
    out: list[list[int]] = [[] for _ in range(workers)]
    total, done = sum(costs), 0.0
    for j, cost in enumerate(costs):
        out[min(int((done + cost / 2) / total * workers), workers - 1)].append(j)
        done += cost
    return out
