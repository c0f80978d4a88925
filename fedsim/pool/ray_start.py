"""Ray begun on this machine, or a cluster joined, and ended again: by force where it does not end by itself.

``ray_pool`` and this are the only files that import ray.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from fedsim.errors import InputError, first_line, require
from fedsim.ground.process import given_back
from fedsim.pool import ray_home, ray_watch
from fedsim.pool.engine import Engine

VARIABLES = ("RAY_", "PYTHONBREAKPOINT")
"""How the environment variables begin that fedsim and Ray set while Ray runs."""


def _told() -> None:
    """Tell Ray what fedsim wants of it, unless the user has said otherwise."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # a local Ray listens on loopback only
    # No record of every call, which nobody reads: Ray's control service keeps 100,000 of them, of 3 kB each.
    os.environ.setdefault("RAY_task_events_report_interval_ms", "0")
    # Room in the object store is used again at once, not after a second or 100 objects, in which a run takes more.
    os.environ.setdefault("RAY_free_objects_period_milliseconds", "0")


# Ray reads some of them when it is imported, and sets a hook and a filter of its own.
with given_back(*VARIABLES), warnings.catch_warnings():
    _told()
    import ray
    from ray._private import worker as ray_worker
    from ray.exceptions import RayError

DEADLINE_S = 20.0
"""How long Ray may take to end before it is ended by force."""


class Started:
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
        with closing(watch()) as watched:
            self._raylet, self._session = watched.raylet, watched.session

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


def watch() -> ray_watch.RayWatch:
    """A watch over the Ray that this process is connected to."""
    here = ray.get_runtime_context()
    node = next(node for node in ray.nodes() if node["NodeID"] == here.get_node_id())
    return ray_watch.RayWatch(node["RayletSocketName"], here.gcs_address)


def begin_ray(engine: Engine, room: int) -> Started:
    """Start Ray on this machine, or connect to ``engine.address``."""
    _told()
    own = None if engine.address else ray_home.folder()
    if not engine.address:
        ray_home.ensure_token()
    ray_home.require_token()
    local: dict[str, Any] = {"num_cpus": max(engine.actors, os.cpu_count() or 1), "object_store_memory": room}
    local |= {"_temp_dir": own.name} if own else {}
    handler, before = signal.getsignal(signal.SIGTERM), ray_watch.begun()
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
        return Started(own, local=not engine.address)
    except BaseException as error:
        ray.shutdown()
        for session in ray_watch.begun() - before:  # Ray leaves its processes where it gives up on one of them
            ray_watch.tell(session.name, signal.SIGKILL)
            ray_watch.remove(session)
        if own is not None:
            own.cleanup()
        if not _of_ray(error):
            raise
        if not engine.address:
            why = first_line(error)
            do = "use engine=serial, set TMPDIR or HOME to writable folders, or try again when the machine is less busy"
            raise InputError(f"engine=ray must be able to start Ray on this machine, got {why}; {do}") from error
        raise InputError(
            f"engine.address must be a running Ray cluster, got {engine.address!r} ({first_line(error)}); "
            "start one with `ray start --head`, set RAY_AUTH_MODE=token if it asks for a token, or leave "
            "engine.address=null"
        ) from error
    finally:
        if handler is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # ray.init replaces it by one that aborts the process


def _of_ray(error: BaseException) -> bool:
    """Whether it says that Ray could not begin; where that takes too long Ray raises Exception itself, of no kind."""
    kinds = (OSError, ValueError, RuntimeError, RayError)
    return type(error) is Exception or (isinstance(error, kinds) and not isinstance(error, InputError))


def require_same(address: str | None) -> None:
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
        started = begin_ray(Engine(address=address, actors=cpus), room)
        try:
            have = int(ray.cluster_resources().get("CPU", 0))
            yield Shared(address or ray.get_runtime_context().gcs_address, have, ray_home.ray_auth())
        finally:
            started.close()
