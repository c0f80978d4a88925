"""The command line's entry: what to do, signals, exit codes, and one job from its configuration to its table.

Exit codes: 0 finished, 1 diverged, a failed job of a sweep or an unexpected error (with its traceback), 2 a user's
error (one line for each), 129 hung up (its terminal was closed), 130 interrupted, 143 terminated. A disk that is full,
broken or gone, too many open files, and a Ray that is gone or out of memory, end a run with one line and 1.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from stat import S_ISCHR
from traceback import walk_tb
from types import FrameType
from typing import Any, NoReturn

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from fedsim.assembly.configuration import build_run
from fedsim.cli import completion, resume
from fedsim.cli.argv import as_sweep, with_own_classes
from fedsim.cli.commands import COMMANDS, command, command_first
from fedsim.cli.compose import Ready, start
from fedsim.cli.explain import translated
from fedsim.cli.folder import config_folder
from fedsim.cli.trust import guarded, word_for
from fedsim.errors import ClientError, InputError, Interrupted, JobFailed, NotSaved, PoolLost, first_line
from fedsim.ground.files import DISK
from fedsim.ground.interrupts import PATIENCE_S, heard_signals
from fedsim.ground.version import __version__

SHOWN = ("algorithm", "data", "partition", "model")  # choices in a run's final table
_stopped: list[tuple[int, float]] = []  # the first of SIGNALS that came, and when


def main() -> int:
    """The command line ``sys.argv``; returns the exit code, and the process as it was."""
    if "--version" in sys.argv[1:]:
        sys.stdout.write(f"fedsim {__version__}\n")
        return 0
    with _borrowed():
        return _main()


@contextmanager
def _borrowed() -> Iterator[None]:
    """The process as a command line wants it, and as it was afterwards."""
    argv, path, log = sys.argv[:], sys.path[:], logging.getLogger()
    handlers, level = log.handlers[:], log.level  # Hydra sets its own
    full, collecting, frozen = os.environ.get("HYDRA_FULL_ERROR"), gc.isenabled(), gc.get_freeze_count()
    main_thread = threading.current_thread() is threading.main_thread()
    _stopped.clear()
    before = {number: signal.signal(number, _stop) for number in heard_signals()} if main_thread else {}
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # an unexpected exception keeps its whole traceback
    gc.disable()  # importing torch makes a million objects; looking for garbage among them takes a fifth of the time
    try:
        yield
    finally:
        if not frozen:
            gc.unfreeze()
        if collecting:
            gc.enable()
        if full is None:
            del os.environ["HYDRA_FULL_ERROR"]
        log.handlers[:], sys.argv[:], sys.path[:] = handlers, argv, path
        log.setLevel(level)
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


def _main() -> int:
    """What the command line comes to, as an exit code."""
    try:
        if completion.queried(sys.argv[1:]):
            return completion.respond(sys.argv[1:])
        here = _here()
        sys.argv[1:] = command_first(sys.argv[1:])
        if not guarded(sys.argv[1:]):
            sys.path.append(here)  # a user's own classes by dotted path
        if sys.argv[1:] and sys.argv[1] in COMMANDS:
            return command(sys.argv[1:])
        if resume.asked(sys.argv[1:]):
            return go_on(sys.argv[1:])
        sys.argv[1:] = as_sweep(with_own_classes(sys.argv[1:]))
        start(sys.argv[1:], task)
    except InputError as error:
        return _complain(str(error), 2)
    except HydraException as error:  # a combination of a sweep's values that cannot be composed
        return _complain(translated(error), 2)
    except BrokenPipeError:  # `fedsim --info | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if any(frame.f_code is perform.__code__ for frame, _ in walk_tb(error.__traceback__)):
            raise
        what = f"the run's folder must be writable, got {error.filename}: {error.strerror}"
        return _complain(f"{what}; choose another with hydra.run.dir=FOLDER (sweeps: hydra.sweep.dir=FOLDER)", 2)
    except JobFailed:
        return 1
    except KeyboardInterrupt:
        return 128 + (_stopped[0][0] if _stopped else signal.SIGINT)
    except SystemExit as stop:
        if stop.code == signal.SIGTERM:  # from Ray's own handler, in force while Ray starts
            return 128 + signal.SIGTERM
        raise
    return 0


def task(cfg: DictConfig, ready: Ready | None = None) -> float:
    """One job: build what is not ``ready``, simulate, print the table; returns the last evaluation, for sweepers."""
    config: Any = OmegaConf.to_container(cfg, resolve=True) if ready is None else ready.config
    parts = None if ready is None else ready.parts
    choices = HydraConfig.get().runtime.choices
    names = {key: str(choices.get(key) or config[key]["_target_"]) for key in SHOWN}
    return perform(config, Path(HydraConfig.get().runtime.output_dir), names, parts)


def go_on(argv: Sequence[str]) -> int:
    """``fedsim resume=FOLDER``: what is left of a run; returns the exit code."""
    from fedsim.ground.console import note

    config, run_dir = resume.stopped(argv, config_folder())
    parts = build_run(config)  # what was typed is checked, whether or not anything is left to do
    done = resume.finished(run_dir)
    if done is not None and parts["rounds"] <= done:
        note(f"the run in {run_dir} has finished its {done} rounds; add rounds=N for more")
        return 0
    names = {key: str(config[key].get("_target_", "several")).rpartition(".")[2] for key in SHOWN}
    perform(config, run_dir, names, parts, resume=True)
    return 0


def perform(
    config: dict[str, Any],
    run_dir: Path,
    names: Mapping[str, str],
    parts: Mapping[str, Any] | None,
    *,
    resume: bool = False,
) -> float:
    """Simulate and print the table.

    Args:
        config: for config.yaml.
        run_dir: where the run is kept.
        names: first rows of the table.
        parts: what ``build_run`` makes of ``config``; None: it is made here.
        resume: go on with the run in the folder.

    Returns:
        The last evaluation.
    """
    from fedsim.cli.replay import line
    from fedsim.cli.resume import resume_line
    from fedsim.ground.console import report
    from fedsim.simulation import simulate

    gc.freeze()  # what is imported stays; the run's own garbage is collected as ever
    gc.enable()
    try:
        if _sweeping():
            from fedsim.sweep.attempt import attempt
            from fedsim.sweep.state import SweepFolder

            result = attempt(SweepFolder(HydraConfig.get().sweep.dir), config, progress=True)
        else:
            result = simulate(
                **(parts or build_run(config)), run_dir=run_dir, progress=True, config=config, resume=resume
            )
    except Interrupted as stop:
        result = stop.result
    except InputError as error:
        _fail(str(error), 2)
    except PoolLost as error:
        _fail(resume_line(str(error), run_dir, config), 1)
    except ClientError as error:
        if error.clients:
            error.args = (f"{error}, or: {line(run_dir, error.round, error.clients, word_for(config))}",)
        raise
    except OSError as error:
        if not _about(error, run_dir):
            raise
        _fail(resume_line(error.strerror or first_line(error), run_dir, config), 1)
    report(result.summary, run_dir, extra=names, words=word_for(config))
    if result.status == "interrupted":
        raise KeyboardInterrupt
    if result.status == "diverged":
        _fail(f"the run diverged: {result.message}; what it recorded is kept; try a smaller algorithm.lr", 1)
    return float(result.summary.get("eval/accuracy", result.summary["eval/loss"])["last"])


def _about(error: OSError, run_dir: Path) -> bool:
    """Whether an error is the disk's, or about a file of the run's folder; others come from a user's own code."""
    return isinstance(error, NotSaved) or error.errno in DISK or str(error.filename).startswith(str(run_dir))


def _here() -> str:
    """The working directory."""
    try:
        return os.getcwd()
    except OSError as error:
        raise InputError(f"the working directory must exist, got {error.strerror}; change to another") from error


def _stop(number: int, frame: FrameType | None) -> None:
    """On Ctrl-C, SIGTERM and a closed terminal: the run saves what it has and its actors go."""
    now = time.monotonic()
    if _stopped and now - _stopped[0][1] < PATIENCE_S:
        return
    _stopped[:1] = [(number, now)]
    if number == signal.SIGHUP:
        _leave_lost_terminal()
    raise KeyboardInterrupt


def _leave_lost_terminal() -> None:
    """Send output to the null device where it went to a terminal that is gone: writing there would cut the saving."""
    for stream in (1, 2):
        with suppress(OSError), open(os.devnull, "w") as null:
            if S_ISCHR(os.fstat(stream).st_mode) and not os.isatty(stream):
                os.dup2(null.fileno(), stream)


def _complain(problems: str, code: int) -> int:
    from fedsim.ground.console import error

    for line in problems.splitlines():
        error(line)
    return code


def _fail(message: str, code: int) -> NoReturn:
    """End the run with this exit code; in a sweep, only this job."""
    _complain(message, code)
    if _sweeping():
        raise JobFailed(message)
    raise SystemExit(code)


def _sweeping() -> bool:
    """Whether this is a job of ``hydra/launcher=basic``, which runs them in this process."""
    return HydraConfig.initialized() and bool(HydraConfig.get().mode == RunMode.MULTIRUN)
