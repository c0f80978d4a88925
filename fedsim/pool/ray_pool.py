"""The Ray backend: a pool of actors, each hosting many virtual clients; the only file that imports ray.

Few big calls: a round's broadcast is put into the object store once, as numpy, and every actor gets one call with its
share of the jobs. The data set lies in the object store once per node and is read in place. Jobs are pure, so the share
of a lost actor is simply computed again, by a new one; Ray's own task retries stay off (they can execute twice).
"""

from __future__ import annotations

import math
import os
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from fedsim.errors import ClientError, InputError, PoolLost, first_line, require
from fedsim.ground.process import claim, given_back
from fedsim.pool import ray_home, ray_watch
from fedsim.pool.engine import Engine
from fedsim.pool.worker import Setup, Worker, torch_given_back

VARIABLES = ("RAY_", "PYTHONBREAKPOINT")
"""How the environment variables begin that fedsim and Ray set while Ray runs."""


def _told() -> None:
    """Tell Ray what fedsim wants of it, unless the user has said otherwise."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # a local Ray listens on loopback only


# Ray reads some of them when it is imported, and sets a hook and a filter of its own.
with given_back(*VARIABLES), warnings.catch_warnings():
    _told()
    import ray
    import torch
    from ray._private import worker as ray_worker
    from ray.exceptions import OutOfMemoryError, RayActorError, RayError, RayTaskError
    from ray.util.placement_group import placement_group, remove_placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

STORE_BYTES = 256 * 2**20
"""Object store room beyond the data sets, the messages of two rounds and the clients' states."""

PATIENCE_S = 30
"""How long to wait for CPUs that others use."""

LOOK_S = 0.25
"""Seconds between looks whether Ray is still there."""

PAUSE_S = 5.0
"""How long to wait after the first actor that the memory monitor ended, twice as long after the second, and so on."""

DEADLINE_S = 20.0
"""How long Ray may take to end before it is ended by force."""

MOST_NAMED = 20
"""Clients that a message names."""


class _Actor:
    """A worker inside an actor process."""

    def __init__(self, path: list[str], setup: list[Any]):
        sys.path += [folder for folder in path if folder not in sys.path]  # the user's own modules
        claim()
        self.worker = Worker(ray.get(setup[0]))

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
        self._ray: _Started | None = None  # by this pool
        self._borrowed = ExitStack()
        self._borrowed.enter_context(torch_given_back())
        self._borrowed.enter_context(given_back(*VARIABLES))
        try:
            torch.set_num_threads(setup.threads)  # the server's step rounds as it does on the serial backend
            if not self._owner:
                _require_same(engine.address)
            else:
                self._ray = _start(engine, _room(setup, engine, message_bytes, row_bytes))
            self._watch = self._borrowed.enter_context(closing(_watch()))
            gpus = 1 / engine.actors if engine.device == "cuda" else 0
            self._places = _reserve(engine, gpus)
            where = PlacementGroupSchedulingStrategy(self._places)
            remote = ray.remote(
                num_cpus=1, num_gpus=gpus, max_restarts=0, max_task_retries=0, scheduling_strategy=where
            )
            # Neither restarts nor retries by Ray: a lost actor is replaced, and its jobs sent again, in ``map``.
            self._class = remote(_Actor)
            self._setup = [_put(setup)]  # in a list, so that the actor itself fetches it, with the user's path set
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
            if self._ray is not None:
                self._ray.close()
            elif self._places is not None:
                remove_placement_group(self._places)  # ends its actors


def _room(setup: Setup, engine: Engine, message_bytes: int, row_bytes: int) -> int:
    """Bytes of the object store: what does not fit is spilled to disk, which makes rounds several times longer."""
    data = setup.train.x.nbytes + setup.train.y.nbytes + setup.test.x.nbytes + setup.test.y.nbytes
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    rows = min(3 * row_bytes, memory // 4)  # sent, returned, and the last round's not yet collected
    return data + rows + 4 * (engine.actors + 2) * message_bytes + STORE_BYTES


class _Started:
    """A Ray that this process began, or a cluster that it joined.

    Args:
        own: the folder made for Ray's files, if any.
        local: whether Ray was begun here.

    Attributes:
        broken: whether it may not end by itself.
    """

    def __init__(self, own: TemporaryDirectory[str] | None, local: bool):
        self._own, self._local, self.broken = own, local, False
        self._hear, ray_worker.print_to_stdstream = ray_worker.print_to_stdstream, _silent
        with closing(_watch()) as watch:
            self._raylet, self._session = watch.raylet, watch.session

    def close(self) -> None:
        """End it, or leave it; by force where that takes too long."""
        if self._local and self.broken:
            ray_watch.tell(self._session.name, signal.SIGCONT)  # one that was stopped can end by itself
        timer = threading.Timer(DEADLINE_S / 4 if self.broken else DEADLINE_S, self._force)
        timer.daemon = True
        timer.start()
        ray.shutdown()
        timer.cancel()
        ray_worker.print_to_stdstream = self._hear
        if self._own is not None:
            self._own.cleanup()
        elif self._local:
            ray_watch.remove(self._session)

    def _force(self) -> None:
        if self._local:
            ray_watch.tell(self._session.name, signal.SIGKILL)
        else:
            ray_watch.let_go(self._raylet)


def _silent(*arguments: Any, **named: Any) -> None:
    """What Ray prints by itself where log_to_driver is off: state dumps and warnings of its own processes."""


def _watch() -> ray_watch.RayWatch:
    """A watch over the Ray that this process is connected to."""
    here = ray.get_runtime_context()
    node = next(node for node in ray.nodes() if node["NodeID"] == here.get_node_id())
    return ray_watch.RayWatch(node["RayletSocketName"], here.gcs_address)


def _start(engine: Engine, room: int) -> _Started:
    """Start Ray on this machine, or connect to ``engine.address``."""
    _told()
    own = None if engine.address else ray_home.folder()
    if not engine.address:
        ray_home.ensure_token()
    ray_home.require_token()
    local: dict[str, Any] = {"num_cpus": max(engine.actors, os.cpu_count() or 1), "object_store_memory": room}
    local |= {"_temp_dir": own.name} if own else {}
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray_home.knock(engine.address)
        ray_home.require_welcome(engine.address)
        ray.init(
            address=engine.address or "local",  # None would join any cluster that it finds on this machine
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            **({} if engine.address else local),
        )
        return _Started(own, local=not engine.address)
    except BaseException as error:
        ray.shutdown()
        if own is not None:
            own.cleanup()
        if not isinstance(error, (OSError, ValueError, RuntimeError, RayError)) or isinstance(error, InputError):
            raise
        if not engine.address:
            why = first_line(error)
            do = "use engine=serial, or set TMPDIR or HOME to writable folders"
            raise InputError(f"engine=ray must be able to start Ray on this machine, got {why}; {do}") from error
        raise InputError(
            f"engine.address must be a running Ray cluster, got {engine.address!r} ({first_line(error)}); "
            "start one with `ray start --head`, set RAY_AUTH_MODE=token if it asks for a token, or leave "
            "engine.address=null"
        ) from error
    finally:
        if handler is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # ray.init replaces it by one that aborts the process


def _require_same(address: str | None) -> None:
    """Raise InputError when this process is connected to another Ray than the one at ``engine.address``."""
    here = ray.get_runtime_context().gcs_address
    same = address in (None, "auto") or _resolved(str(address)) == _resolved(here)
    must = f"be null or {here!r}, the Ray that this process is connected to"
    require(same, "engine.address", must, address, "or disconnect first with ray.shutdown()")


def _resolved(address: str) -> str:
    host, _, port = address.rpartition(":")
    try:
        return f"{socket.gethostbyname(host)}:{port}"
    except OSError:
        return address


class Shared(NamedTuple):
    """A Ray that several processes use."""

    address: str
    cpus: int
    auth: dict[str, str]  # what in the environment says who may


@contextmanager
def shared(address: str | None, cpus: int) -> Iterator[Shared]:
    """A Ray for several runs, whose pools connect to it; one that ran before lives on after the block.

    Args:
        address: of a running cluster; None starts Ray on this machine.
        cpus: how many it shall have at least when it starts.
    """
    room = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4
    with given_back(*VARIABLES):
        started = _start(Engine(address=address, actors=cpus), room)
        try:
            have = int(ray.cluster_resources().get("CPU", 0))
            yield Shared(address or ray.get_runtime_context().gcs_address, have, ray_home.ray_auth())
        finally:
            started.close()


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
        return ray.put(setup)
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
