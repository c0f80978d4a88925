"""A run is a guest in the process: what it changes there is as before when ``simulate`` returns or raises.

The states are read in processes of their own, which have imported nothing but fedsim: pytest and other tests change
some of them, and what a run imports must not either.
"""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import json
import logging
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from traceback import walk_stack
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from fedsim import Engine, Evaluate, Local, Result, simulate
from fedsim.aggregate import Stack
from fedsim.algorithms.ad_psgd import ADPSGD
from fedsim.algorithms.dpsgd import DPSGD
from fedsim.algorithms.fedavg import FedAvg
from fedsim.algorithms.fedbuff import FedBuff
from fedsim.data import Synthetic
from fedsim.errors import ClientError, InputError, Interrupted
from fedsim.models import linear
from fedsim.objective import Objective
from fedsim.partition import Iid
from fedsim.schedule import Asynchronous, Events
from fedsim.topology import Ring
from tests.stopped import Stopped, late_ctrl_c_ignored, signalled

SOURCE = Synthetic(clients=4, max_size=60)
ROOT = Path(__file__).parents[1]


class _Memory(ctypes.Structure):
    """``struct mallinfo2`` of glibc."""

    _fields_: ClassVar = [(name, ctypes.c_size_t) for name in ["arena", "ordblks", "smblks", "hblks", "hblkhd"]] + [
        ("rest", ctypes.c_size_t * 5)
    ]


def large_buffers_are_mapped() -> bool | None:
    """Whether malloc gets 64 MB from the kernel, as it does unless told otherwise; None where there is no glibc."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallinfo2"):
        return None
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    libc.mallinfo2.restype = _Memory
    before = libc.mallinfo2().hblkhd
    buffer = libc.malloc(2**26)
    mapped = libc.mallinfo2().hblkhd - before >= 2**26
    libc.free(buffer)
    return bool(mapped)


def loggers() -> dict[str, Any]:
    names = [None, "fedsim", "torch", "matplotlib", "hydra", "asyncio", "py.warnings"]
    known = [logging.getLogger(name) for name in names]
    return {log.name: (log.level, list(map(repr, log.handlers)), log.propagate, log.disabled) for log in known}


def wakeup() -> int:
    number = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(number)
    return number


def backend() -> Any:
    """Matplotlib's, where it has been imported; looking must not choose one."""
    found = sys.modules.get("matplotlib")
    return found and dict.__getitem__(found.rcParams, "backend").__repr__()


STATES: dict[str, Callable[[], Any]] = {
    "signal handlers": lambda: {int(n): repr(signal.getsignal(n)) for n in signal.valid_signals()},
    "signal mask": lambda: sorted(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, []))),
    "wake-up descriptor": wakeup,
    "timer": lambda: signal.getitimer(signal.ITIMER_REAL),
    "torch threads": lambda: (torch.get_num_threads(), torch.get_num_interop_threads()),
    "garbage collection": lambda: (gc.isenabled(), gc.get_threshold(), gc.get_freeze_count() > 0, gc.get_debug()),
    "malloc": large_buffers_are_mapped,
    "default dtype": lambda: (str(torch.get_default_dtype()), str(torch.get_default_device())),
    "gradients": lambda: (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_anomaly_enabled()),
    "denormals": lambda: bool(torch.tensor([1e-40]) * 0.5 != 0),
    "determinism": lambda: (torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision()),
    "cudnn": lambda: [getattr(torch.backends.cudnn, name) for name in ("allow_tf32", "deterministic", "benchmark")],
    "random numbers of Python": lambda: hash(random.getstate()),
    "random numbers of numpy": lambda: str(np.random.get_state()[1:3]),  # noqa: NPY002 - what users draw from
    "random numbers of torch": lambda: torch.get_rng_state().numpy().tobytes().hex(),
    "numpy's errors": lambda: (np.geterr(), np.get_printoptions()["precision"]),
    "warnings": lambda: (list(map(str, warnings.filters)), repr(warnings.showwarning)),
    "environment": lambda: dict(os.environ),
    "sys.path": lambda: [path for path in sys.path if f"{os.sep}ray{os.sep}" not in path],  # has libraries of its own
    "sys.argv": lambda: list(sys.argv),
    "current folder": os.getcwd,
    "hooks": lambda: list(map(repr, (sys.excepthook, sys.unraisablehook, threading.excepthook, sys.displayhook))),
    "tracing": lambda: (sys.gettrace(), sys.getprofile()),
    "limits": lambda: (sys.getrecursionlimit(), sys.getswitchinterval(), os.getpriority(os.PRIO_PROCESS, 0)),
    "streams": lambda: list(map(id, (sys.stdin, sys.stdout, sys.stderr))),
    "fault handler": faulthandler.is_enabled,
    "logging": loggers,
    "matplotlib": backend,
}
LAZY = ("matplotlib",)
"""States that are None until the library is imported, and may then have their first value."""


def failing(base: type) -> type:
    """A method of that kind which fails after forty calls of its local work."""

    @dataclass(frozen=True)
    class Failing(base):  # type: ignore[misc, valid-type]
        def local(self, obj: Objective, *rest: Any) -> Any:
            CALLS.append(1)
            if len(CALLS) > 40:
                raise RuntimeError("on purpose")
            return super().local(obj, *rest)

    return Failing


CALLS: list[int] = []
KINDS: dict[str, dict[str, Any]] = {
    "server": {"algorithm": FedAvg(lr=0.1)},
    "peers": {"algorithm": DPSGD(lr=0.1), "topology": Ring()},
    "events": {"algorithm": ADPSGD(lr=0.1), "topology": Ring(), "schedule": Events(t_end=40.0)},
    "async": {"algorithm": FedBuff(lr=0.1), "schedule": Asynchronous(concurrency=3), "aggregate": Stack()},
}
LONG = {"rounds": 50_000, "evaluate": Evaluate(every=50_000)}  # until something stops it


class Unready(nn.Linear):
    """A model that a worker cannot make its own."""

    def to(self, *args: Any, **kwargs: Any) -> Any:
        if any(type(frame.f_locals.get("self")).__name__ == "Worker" for frame, _ in walk_stack(sys._getframe(1))):
            raise RuntimeError("on purpose")
        return super().to(*args, **kwargs)


def unready(input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    return Unready(input_shape[0], outputs)


def small(kind: str, folder: Path | None, **changes: Any) -> Result:
    """A run of three rounds."""
    parts = {"data": SOURCE, "partition": Iid(4), "model": linear, "rounds": 3, "local": Local(steps=1, batch_size=8)}
    return simulate(**parts | KINDS[kind] | {"run_dir": folder} | changes)


def finished(kind: str, folder: Path, **more: Any) -> None:
    assert small(kind, folder, **more).status == "finished"


def diverged(kind: str, folder: Path, **more: Any) -> None:
    parts = {"algorithm": replace(KINDS[kind]["algorithm"], lr=3e38), "rounds": 30}
    assert small(kind, folder, **parts, **more).status == "diverged"


def interrupted(kind: str, folder: Path, **more: Any) -> None:
    with signalled(folder, signal.SIGINT), pytest.raises(Interrupted):
        small(kind, folder, **LONG, **more)


def refused(kind: str, folder: Path, **more: Any) -> None:
    with pytest.raises(InputError):
        small(kind, folder, partition=Iid(10**6), **more)


def failed(kind: str, folder: Path, **more: Any) -> None:
    CALLS.clear()
    with pytest.raises(ClientError):
        small(kind, folder, algorithm=failing(type(KINDS[kind]["algorithm"]))(lr=0.1), rounds=60, **more)


def unstarted(kind: str, folder: Path, **more: Any) -> None:
    with pytest.raises(InputError, match="on purpose"):
        small(kind, folder, model=unready, **more)


def disk_full(kind: str, folder: Path, **more: Any) -> None:
    """No file may grow beyond 100 kB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            small(kind, folder, **LONG, **more)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def command(kind: str, folder: Path, code: int, *argv: str) -> None:
    from fedsim.cli.main import main

    before, sys.argv = sys.argv, sys.argv[:]
    try:
        line = ["engine=serial", "data=synthetic", f"algorithm={METHODS[kind]}", "checkpoint.every=50000"]
        sys.argv = ["fedsim", *line, f"hydra.run.dir={folder}", *argv]
        mine = list(sys.argv)
        assert main() == code
        assert sys.argv == mine
    finally:
        sys.argv = before


METHODS = {"server": "fedavg", "peers": "dpsgd", "events": "ad_psgd", "async": "fedbuff"}


def command_finished(kind: str, folder: Path) -> None:
    command(kind, folder, 0, "rounds=2")


def command_refused(kind: str, folder: Path) -> None:
    command(kind, folder, 2, "rounds=0")


def command_interrupted(kind: str, folder: Path) -> None:
    with late_ctrl_c_ignored(), signalled(folder, signal.SIGINT, signal.SIGINT):
        command(kind, folder, 130, "rounds=50000", "evaluate.every=50000")


LIBRARY = (finished, diverged, interrupted, failed, refused, unstarted, disk_full)
COMMANDS = (command_finished, command_refused, command_interrupted)
CASES = {
    "serial": [(kind, ending) for kind in KINDS for ending in (LIBRARY if kind == "server" else LIBRARY[:4])],
    "ray": [("server", interrupted), ("peers", finished), ("events", finished), ("async", finished)],
    "command": [("server", ending) for ending in COMMANDS],
}


def observe(where: str, root: str) -> None:
    """Print, for each case, the states that it left otherwise than it found them."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are started ignoring it
    torch.set_num_threads(2)  # a run computes with one
    import_module("torch._inductor.runtime.cache_dir_utils").cache_dir()
    import_module("sympy")  # torch loads its compiler where it first needs a part of it: a variable and a filter stay
    more = {"engine": Engine(backend="ray", actors=1)} if where == "ray" else {}
    found: dict[str, Any] = {}
    for kind, ending in CASES[where]:
        before = {name: read() for name, read in STATES.items()}
        came = "as expected"
        try:
            ending(kind, Path(root) / f"{kind}_{ending.__name__}", **more)
        except (AssertionError, pytest.fail.Exception) as error:
            came = repr(error)
        after = {name: read() for name, read in STATES.items()}
        found[f"{kind} {ending.__name__}"] = {
            name: [repr(before[name]), repr(after[name])]
            for name in STATES
            if before[name] != after[name] and not (name in LAZY and before[name] is None)
        } | ({} if came == "as expected" else {"ending": ["as expected", came]})
    sys.__stdout__.write("\n" + json.dumps(found))


@cache
def observed(where: str) -> dict[str, dict[str, list[str]]]:
    """What ``observe`` prints in a new process."""
    code = f"from tests.test_process import observe; import sys; observe({where!r}, sys.argv[1])"
    with TemporaryDirectory() as root:
        done = subprocess.run(
            [sys.executable, "-c", code, root],
            cwd=ROOT,
            env={name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
            | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, list[str]]] = json.loads(done.stdout.splitlines()[-1])
    return found


def slow(where: str) -> list[pytest.MarkDecorator]:
    """Four starts of Ray take a minute: the fast suite looks at processes without it."""
    return [pytest.mark.slow] if where == "ray" else []


@pytest.mark.parametrize(
    ("where", "case"),
    [
        pytest.param(
            where, f"{kind} {ending.__name__}", marks=[pytest.mark.xdist_group(f"process {where}"), *slow(where)]
        )
        for where, rows in CASES.items()
        for kind, ending in rows
    ],  # one worker for each process that is observed
)
def test_the_process_is_as_it_was(where: str, case: str) -> None:
    assert observed(where)[case] == {}


def test_every_state_can_be_seen_to_change(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Readers read: a handler, a thread count, a variable and a generator that change are seen."""
    before = {name: read() for name, read in STATES.items()}
    threads, handler = torch.get_num_threads(), signal.getsignal(signal.SIGUSR1)
    monkeypatch.setenv("FEDSIM_TEST", "1")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    try:
        torch.set_num_threads(threads + 1)
        signal.signal(signal.SIGUSR1, lambda number, frame: None)
        changed = {name for name, read in STATES.items() if read() != before[name]}
    finally:
        torch.set_num_threads(threads)
        signal.signal(signal.SIGUSR1, handler)
    assert changed == {"signal handlers", "torch threads", "environment", "current folder", "sys.path"}


@pytest.fixture(autouse=True)
def _no_stops() -> Iterator[None]:
    yield
    Stopped.rounds.clear()


def test_ctrl_c_ends_a_loop_over_seeds_and_the_run_can_go_on(tmp_path: Path) -> None:
    schedule = Stopped(2)
    whole = small("server", tmp_path / "whole", rounds=4, schedule=schedule)
    Stopped.rounds.add(2)
    with pytest.raises(Interrupted, match="after round 2") as stop:  # noqa: PT012 - the loop is the point
        for seed in range(3):
            small("server", tmp_path / str(seed), rounds=4, schedule=schedule, seed=seed)
    assert isinstance(stop.value, KeyboardInterrupt)
    result: Result = stop.value.result
    assert (result.status, result.run_dir, len(result.metrics)) == ("interrupted", tmp_path / "0", 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "whole"]
    assert json.loads((tmp_path / "0/summary.json").read_text())["status"] == "interrupted"
    resumed = small("server", tmp_path / "0", rounds=4, schedule=schedule, resume=True)
    assert resumed.summary["digest"] == whole.summary["digest"]
    assert [scores(record) for record in resumed.metrics] == [scores(record) for record in whole.metrics]


def scores(record: Mapping[str, float]) -> dict[str, float]:
    return {tag: value for tag, value in record.items() if not tag.startswith("time/")}


def test_an_impatient_second_ctrl_c_does_not_cut_the_saving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = small("server", tmp_path / "whole", rounds=4, schedule=Stopped(2))
    Stopped.rounds.add(2)
    replace_file = os.replace
    seconds: list[str] = []

    def and_again(source: Any, target: Any) -> None:
        if not Stopped.rounds:  # stopped already
            seconds.append(str(target))
            signal.raise_signal(signal.SIGINT)
        replace_file(source, target)

    monkeypatch.setattr(os, "replace", and_again)
    with pytest.raises(Interrupted):
        small("server", tmp_path / "run", rounds=4, schedule=Stopped(2))
    assert seconds, "nothing was saved: the test proves nothing"
    monkeypatch.undo()
    assert json.loads((tmp_path / "run/summary.json").read_text())["status"] == "interrupted"
    resumed = small("server", tmp_path / "run", rounds=4, schedule=Stopped(2), resume=True)
    assert resumed.summary["digest"] == whole.summary["digest"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_in_another_thread(kind: str) -> None:
    """Signal handlers belong to the main thread; a run elsewhere leaves them alone and gives the same numbers."""
    with ThreadPoolExecutor(1) as threads:
        other = threads.submit(small, kind, None).result()
    assert other.summary["digest"] == small(kind, None).summary["digest"]
