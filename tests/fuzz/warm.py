"""One process that has imported everything, and forks for every case: limits, what was said, what was done beside."""

from __future__ import annotations

import gc
import os
import pickle
import platform
import resource
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages
from typing import Any, NamedTuple, NoReturn

import numpy as np
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.plugins import Plugins
from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.figure import Figure
from matplotlib.image import imsave

from fedsim.cli.folder import config_folder
from fedsim.record import figures
from tests.fuzz import watch

CPU_S, WALL_S = 60, 240  # a case takes half a second of CPU; the machine may be shared
MEMORY, FILE = 6 * 2**30, 2**28  # bytes


class Outcome(NamedTuple):
    """What became of one command line."""

    code: int | None  # None: it hung, or a signal ended it
    out: str
    err: str
    noted: list[str]
    seconds: float


def warm(folder: Path) -> None:
    """Import what runs need, and read every file of the configuration once."""
    import torch

    import fedsim
    from fedsim.ground.process import claim

    for module in walk_packages(fedsim.__path__, "fedsim."):
        if module.name not in ("fedsim.pool.ray_pool", "fedsim.pool.ray_start", "fedsim.pool.ray_home"):
            import_module(module.name)
    import_module("torch._dynamo")  # as torch does when vmap first needs it; it makes an empty folder for itself
    claim()
    torch.set_num_threads(1)
    platform.processor()  # begins a process, once
    os.environ |= {"FEDSIM_DATA": str(folder / "no-data"), "NO_COLOR": "1", "COLUMNS": "300", "HOME": str(folder)}
    os.environ["PATH"] = str(folder)  # no git: a run asks it three times where its code comes from
    sys.dont_write_bytecode = True
    sys.modules["ray"] = None  # type: ignore[assignment]  # as on a machine without Ray
    Figure.savefig = lambda self, file, **options: imsave(file, np.zeros((1, 1, 3)))  # type: ignore[method-assign]
    PdfPages.savefig = lambda self, figure: None  # type: ignore[assignment, method-assign, misc]
    for picture in ("split_by_client", "confusion"):  # a third of the time of a run of two rounds
        setattr(figures, picture, lambda *facts: Figure())
    _read_once()


def _read_once() -> None:
    """Hydra reads some twenty files for every composition: read all of them now, for the forked processes."""
    known: dict[str, Any] = {}
    Plugins.instance()
    kind: Any = SourcesRegistry.instance().resolve("file")
    read = kind.load_config

    def once(source: Any, config_path: str) -> Any:
        key = f"{source.path}/{source._normalize_file_name(config_path)}"
        if key not in known:
            known[key] = pickle.dumps(read(source, config_path))
        return pickle.loads(known[key])

    kind.load_config = once
    root = config_folder()
    source = kind(provider="main", path=f"file://{root}")
    for path in root.rglob("*.yaml"):
        source.load_config(str(path.relative_to(root)))


def here(argv: Sequence[str], folder: Path) -> None:
    """Run one command line in this process: what is made at first use (parsers, imports) is there afterwards."""
    before = os.getcwd()
    os.chdir(folder)
    try:
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
            code = _command(argv)
    finally:
        os.chdir(before)
    if code:
        raise AssertionError(f"{argv} ended with {code}")


def forked(argv: Sequence[str], folder: Path, *, killed_in: int = 0) -> Outcome:
    """Run one command line in a process of its own.

    Args:
        argv: ``fedsim``'s; one that begins with ``report`` is ``fedsim-report``'s.
        folder: where it runs, and the only place that it may write to.
        killed_in: the round in which the process dies as by ``kill -9``; 0: in none.
    """
    files = {name: folder.parent / f"{folder.name}.{name}" for name in ("out", "err", "noted")}
    gc.freeze()  # what is there is no garbage of the child's; looking through it would copy it
    begun = time.monotonic()
    child = os.fork()
    if child == 0:
        _child(argv, folder, files, killed_in)
    status = _waited(child, begun + WALL_S)
    said = {name: path.read_text(errors="replace") for name, path in files.items()}
    for path in files.values():
        path.unlink()
    code = os.waitstatus_to_exitcode(status)
    noted = [*said["noted"].splitlines(), *([f"ended by signal {-code}"] if code < 0 and not killed_in else [])]
    return Outcome(code if code >= 0 else None, said["out"], said["err"], noted, time.monotonic() - begun)


def _waited(child: int, until: float) -> int:
    """The status of a process that has ended, or was ended because it was late, with all that it began."""
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status
        if time.monotonic() > until:
            os.killpg(child, signal.SIGKILL)
            return os.waitpid(child, 0)[1]
        time.sleep(0.003)


def _child(argv: Sequence[str], folder: Path, files: dict[str, Path], killed_in: int) -> NoReturn:
    """Become the command; never returns."""
    code = 70
    try:
        os.setpgid(0, 0)
        os.chdir(folder)
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(files[name], os.O_WRONLY | os.O_CREAT), number)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
        noted = os.open(files["noted"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for what, most in ((resource.RLIMIT_CPU, CPU_S), (resource.RLIMIT_AS, MEMORY), (resource.RLIMIT_FSIZE, FILE)):
            resource.setrlimit(what, (most, most))
        if killed_in:
            _dies_in(killed_in)
        watch.begin(noted, folder)
        code = _command(argv)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _command(argv: Sequence[str]) -> int:
    if argv[0] == "report":
        from fedsim.report.__main__ import main as report

        return report(argv[1:])
    from fedsim.cli.main import main

    sys.argv = ["fedsim", *argv]
    return main()


def _dies_in(round_: int) -> None:
    from fedsim.record.run_folder import RunFolder

    write = RunFolder.write

    def then(self: RunFolder, record: Any) -> None:
        write(self, record)
        if record["round"] >= round_:
            os.kill(os.getpid(), signal.SIGKILL)

    RunFolder.write = then  # type: ignore[method-assign]
