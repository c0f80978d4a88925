"""The command line's entry: what to do, exit codes, and one job from its configuration to its table.

Exit codes: 0 finished, 1 diverged, a failed job of a sweep or an unexpected error (with its traceback), 2 a user's
error (one line for each), 129 hung up (its terminal was closed), 130 interrupted, 143 terminated. A disk that is full,
broken or gone, and too many open files, end a run or a sweep with one line and 1, as a lost Ray ends a run.
"""

from __future__ import annotations

import gc
import os
import shlex
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from traceback import walk_tb
from typing import Any, NoReturn

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from fedsim.assembly.configuration import build_run
from fedsim.cli import completion, resume
from fedsim.cli.argv import COMMANDS, as_sweep, with_own_classes
from fedsim.cli.borrowed import borrowed, heard
from fedsim.cli.commands import command, command_first
from fedsim.cli.compose import Ready, start
from fedsim.cli.explain import translated
from fedsim.cli.folder import config_folder
from fedsim.cli.trust import guarded, word_for
from fedsim.errors import ClientError, InputError, Interrupted, JobFailed, PoolLost, SweepStopped, first_line
from fedsim.ground.files import of_the_disk
from fedsim.ground.version import __version__

UNWRITABLE = "standard output must be writable, got"
SHOWN = ("algorithm", "data", "partition", "model")  # choices in a run's final table


def main() -> int:
    """The command line ``sys.argv``; returns the exit code, and the process as it was."""
    with borrowed():
        try:
            code = _version() if "--version" in sys.argv[1:] else _main()
        finally:
            lost = _lost(sys.stdout)
        return code if code or not lost else _complain(f"{UNWRITABLE} {lost}", 1)


def _version() -> int:
    try:
        sys.stdout.write(f"fedsim {__version__}\n")
    except OSError as error:  # where output is not buffered
        return _complain(f"{UNWRITABLE} {error.strerror or first_line(error)}", 1)
    return 0


def _lost(out: Any) -> str:
    """Why standard output, None where it is closed, cannot take what was written, or "".

    It is given up then, or Python would fail on it once more as it ends.
    """
    try:
        if out is not None:
            out.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())
        return "" if isinstance(error, BrokenPipeError) else error.strerror or first_line(error)
    return ""


def _main() -> int:
    """What the command line comes to, as an exit code."""
    typed = shlex.join(["fedsim", *sys.argv[1:]])
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
        return 0
    except OSError as error:
        if any(frame.f_code is perform.__code__ for frame, _ in walk_tb(error.__traceback__)):
            raise
        got = ": ".join(str(part) for part in (error.filename, error.strerror) if part)
        what = f"the run's folder must be writable, got {got}"
        return _complain(f"{what}; choose another with hydra.run.dir=FOLDER (sweeps: hydra.sweep.dir=FOLDER)", 2)
    except SweepStopped as stop:
        return _complain(f"{stop}: {typed}", 1)
    except JobFailed:
        return 1
    except KeyboardInterrupt:
        return 128 + (heard[0][0] if heard else signal.SIGINT)
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
        if _sweeping() or not of_the_disk(error, run_dir):
            raise
        _fail(resume_line(error.strerror or first_line(error), run_dir, config), 1)
    report(result.summary, run_dir, extra=names, words=word_for(config))
    if result.status == "interrupted":
        raise KeyboardInterrupt
    if result.status == "diverged":
        _fail(f"the run diverged: {result.message}; what it recorded is kept; try a smaller algorithm.lr", 1)
    return float(result.summary.get("eval/accuracy", result.summary["eval/loss"])["last"])


def _here() -> str:
    """The working directory."""
    try:
        return os.getcwd()
    except OSError as error:
        raise InputError(f"the working directory must exist, got {error.strerror}; change to another") from error


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
