"""The Ray backend: a pool of actors, each hosting many virtual clients.

Few big calls: a round's broadcast is put into the object store once, as numpy, and every actor gets one call with its
share of the jobs. The data set lies in the object store once per node and is read in place. Jobs are pure, so the share
of a lost actor is simply computed again, by a new one; Ray's own task retries stay off (they can execute twice).
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from typing import Any, NamedTuple

import torch

from fedsim.errors import ClientError, InputError, PoolLost, first_line, require
from fedsim.ground.process import claim, given_back
from fedsim.pool.carried import Carried
from fedsim.pool.constants import frozen
from fedsim.pool.engine import Engine
from fedsim.pool.ray_start import VARIABLES, Started, begin_ray, require_same, watch
from fedsim.pool.worker import Setup, Worker, torch_given_back

# After ray_start, which imports ray as fedsim wants it to be.
import ray  # isort: skip
from ray.exceptions import OutOfMemoryError, RayActorError, RayError, RayTaskError  # isort: skip
from ray.util.placement_group import placement_group, remove_placement_group  # isort: skip
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy  # isort: skip

STORE_BYTES = 256 * 2**20
"""Object store room beyond the data sets, the messages of two rounds and the clients' states."""

PATIENCE_S = 30
"""How long to wait for CPUs that others use."""

LOOK_S = 0.25
"""Seconds between looks whether Ray is still there."""

PAUSE_S = 5.0
"""How long to wait after the first actor that the memory monitor ended, twice as long after the second, and so on."""

MOST_NAMED = 20
"""Clients that a message names."""


class _Actor:
    """A worker inside an actor process."""

    def __init__(self, path: list[str], setup: list[Any]):
        sys.path += [folder for folder in path if folder not in sys.path]  # the user's own modules
        claim()
        self.worker = Worker(ray.get(setup[0]).unpacked())

    def run(self, method: str, jobs: Sequence[Any], shared: Any) -> list[Any]:
        answers: list[Any] = getattr(self.worker, method)(jobs, shared)
        return answers


class _Call(NamedTuple):
    """A share of a round that an actor works on."""

    actor: int
    share: list[int]  # job numbers
    attempt: int  # 1 at first
    deadline: float  # when, by the monotonic clock, its actor is ended; infinity afterwards


class RayPool:
    """A pool of ``engine.actors`` actors on the local machine or on ``engine.address``.

    Args:
        setup: what every actor is given.
        engine: how many actors, where, on which device.
        message_bytes: of a broadcast, and of a partial sum.
        row_bytes: of the client states that travel in a round, one way.
    """

    def __init__(self, setup: Setup, engine: Engine, message_bytes: int, row_bytes: int):
        self._engine = engine
        self._owner = not ray.is_initialized()
        self._places: Any = None  # CPUs reserved for the actors
        self._ray: Started | None = None  # by this pool
        self._borrowed, self._lent = ExitStack(), ExitStack()
        self._borrowed.enter_context(torch_given_back())
        self._borrowed.enter_context(given_back(*VARIABLES))
        try:
            torch.set_num_threads(setup.threads)  # the server's step rounds as it does on the serial backend
            if not self._owner:
                require_same(engine.address)
            else:
                self._ray = begin_ray(engine, _room(setup, engine, message_bytes, row_bytes))
            self._watch = self._borrowed.enter_context(closing(watch()))
            gpus = share_of_gpu(engine.actors, ray.cluster_resources().get("GPU", 0)) if engine.device == "cuda" else 0
            self._places = _reserve(engine, gpus)
            where = PlacementGroupSchedulingStrategy(self._places)
            remote = ray.remote(
                num_cpus=1, num_gpus=gpus, max_restarts=0, max_task_retries=0, scheduling_strategy=where
            )
            # Neither restarts nor retries by Ray: a lost actor is replaced, and its jobs sent again, in ``map``.
            self._class = remote(_Actor)
            self._setup = [_put(setup)]  # in a list, so that the actor itself fetches it, with the user's path set
            if any(frozen(model) for model in setup.models):
                self._lent.enter_context(ray.get(self._setup[0]).lent(setup))
            self._actors = [self._spawn() for _ in range(engine.actors)]
        except BaseException:
            self.close()
            raise

    def _spawn(self) -> Any:
        return self._class.remote(sys.path, self._setup)

    def map(self, method: str, jobs: Sequence[Any], costs: Sequence[float], shared: Any) -> list[Any]:
        """Answers in job order; the share of a lost or silent actor is computed again, ``engine.retries`` times."""
        self._require_ray()
        reference = ray.put(shared)
        answers: dict[int, Any] = {}
        pending: dict[Any, _Call] = {}
        patience = math.inf if self._engine.timeout_s is None else self._engine.timeout_s

        def send(a: int, share: list[int], attempt: int) -> None:
            call = self._actors[a].run.remote(method, [jobs[j] for j in share], reference)
            pending[call] = _Call(a, share, attempt, time.monotonic() + patience)

        for a, share in enumerate(shares(costs, len(self._actors))):
            if share:
                send(a, share, 1)
        while pending:
            done = self._wait(pending)
            call = pending.pop(done)
            try:
                answers.update(zip(call.share, ray.get(done), strict=True))
            except RayTaskError as error:
                cause = error.cause
                raise (cause if isinstance(cause, ClientError) else ClientError(first_line(cause))) from error
            except RayError as error:
                self._bear(error, call, f"{method} of {_named([jobs[j] for j in call.share])}")
                self._actors[call.actor] = self._spawn()
                send(call.actor, call.share, call.attempt + 1)
        return [answers[j] for j in range(len(jobs))]

    def _bear(self, error: RayError, call: _Call, what: str) -> None:
        """Return when a lost call may be sent again; what Ray says of it may be pages, and is cut.

        Raises:
            PoolLost: Ray is gone, or has no memory for the actors.
            ClientError: too many actors were lost.
        """
        self._require_ray(stopped=True)
        if getattr(error, "actor_init_failed", False):
            raise ClientError(f"a Ray actor could not start: {first_line(error)}") from None
        memory = isinstance(error, OutOfMemoryError)
        if not memory and not isinstance(error, RayActorError):
            raise PoolLost(f"Ray failed: {first_line(error)}") from None
        if call.attempt <= self._engine.retries:
            time.sleep(PAUSE_S * call.attempt if memory else 0.0)
            return
        times = f"{what} lost their actor {call.attempt} times"
        if memory:
            do = "use fewer actors (engine.actors=...) or smaller blocks (engine.block=...)"
            raise PoolLost(f"{times}: the machine's memory is full and Ray's monitor ended it; {do}") from None
        silent = (
            f"no answer within engine.timeout_s={self._engine.timeout_s or 0:g}; raise it if a round may take so long"
        )
        timed_out = call.deadline == math.inf and self._engine.timeout_s is not None
        raise ClientError(f"{times}: {silent if timed_out else first_line(error)}") from None

    def _require_ray(self, *, stopped: bool = False) -> None:
        """Raise PoolLost unless Ray is there; another look into its object store would end this process."""
        problem = self._watch.problem(stopped=stopped)
        if problem:
            if self._ray is not None:
                self._ray.broken = True
            raise PoolLost(problem)

    def _wait(self, pending: dict[Any, _Call]) -> Any:
        """A call that has ended. An actor past its deadline (stopped, deadlocked) is ended, and with it its call."""
        while True:
            left = min(call.deadline for call in pending.values()) - time.monotonic()
            done, _ = ray.wait(list(pending), num_returns=1, timeout=min(max(left, 0.0), LOOK_S))
            self._require_ray()
            if done:
                return done[0]
            for key, call in pending.items():
                if call.deadline <= time.monotonic():
                    # Its call then fails with an error of the actor, which ``map`` takes like any lost actor. It may
                    # not be ended twice, hence no further deadline.
                    ray.kill(self._actors[call.actor])
                    pending[key] = call._replace(deadline=math.inf)

    def close(self) -> None:
        """Stop the actors, and Ray when this pool started it; give the process back what it lent."""
        with self._borrowed:
            self._lent.close()  # while the object store is there
            if self._ray is not None:
                self._ray.close()
            elif self._places is not None:
                remove_placement_group(self._places)  # ends its actors


def _room(setup: Setup, engine: Engine, message_bytes: int, row_bytes: int) -> int:
    """Bytes of the object store: what does not fit is spilled to disk, which makes rounds several times longer."""
    data = setup.train.x.nbytes + setup.train.y.nbytes + setup.test.x.nbytes + setup.test.y.nbytes
    data += sum(p.nbytes for model in setup.models for p in frozen(model).values())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    rows = min(3 * row_bytes, memory // 4)  # sent, returned, and the last round's not yet collected
    return data + rows + 4 * (engine.actors + 2) * message_bytes + STORE_BYTES


def share_of_gpu(actors: int, gpus: float) -> float:
    """The part of a GPU that each actor asks for, so that they spread over all that there are.

    Ray knows ten thousandths of a GPU and fills one after the other: a part that is rounded up would leave one actor
    without.
    """
    sharing = -(-actors // max(1, int(gpus)))  # actors of one GPU
    return 10_000 // sharing / 10_000


def _reserve(engine: Engine, gpus: float) -> Any:
    """CPUs (and shares of a GPU) for all actors; where others hold them, actors would wait for ever in silence."""
    have = ray.cluster_resources()
    cpus = int(have.get("CPU", 0))
    most = f"be at most the {cpus} CPUs of the Ray cluster"
    require(engine.actors <= cpus, "engine.actors", most, engine.actors, "each actor takes one")
    must = "be cpu on a Ray cluster without a GPU"
    require(gpus == 0 or have.get("GPU", 0) >= 1, "engine.device", must, engine.device)
    places = placement_group([{"CPU": 1} | ({"GPU": gpus} if gpus else {})] * engine.actors)
    if not places.wait(PATIENCE_S):
        remove_placement_group(places)
        must = f"be at most the free ones of the Ray cluster's {cpus} CPUs"
        do = f"others have held the rest for {PATIENCE_S} s: stop them, or lower engine.actors"
        require(False, "engine.actors", must, engine.actors, do)
    return places


def _named(jobs: Sequence[Any]) -> str:
    """Whose work these jobs are, for messages."""
    clients = sorted({i for job in jobs for i in getattr(job, "clients", ())})
    shown = ", ".join(map(str, clients[:MOST_NAMED])) + (", ..." if len(clients) > MOST_NAMED else "")
    return f"clients {shown}" if clients else f"{len(jobs)} jobs"


def _put(setup: Setup) -> Any:
    try:
        return ray.put(Carried.of(setup))
    except (TypeError, RuntimeError) as error:  # its message may hold the whole setup; the reason is in its cause
        why = first_line(error.__cause__ or error)
        raise InputError(
            f"algorithm and model must be picklable for engine=ray, got {why}; use engine=serial"
        ) from error


def shares(costs: Sequence[float], workers: int) -> list[list[int]]:
    """Consecutive job numbers for each worker, cut where the cumulated cost passes equal parts of the total."""
    out: list[list[int]] = [[] for _ in range(workers)]
    total, done = sum(costs), 0.0
    for j, cost in enumerate(costs):
        out[min(int((done + cost / 2) / total * workers), workers - 1)].append(j)
        done += cost
    return out
