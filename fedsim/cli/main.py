"""The command line: compose with Hydra, check everything, run. The only file that knows Hydra.

Configurations are checked before Hydra takes over: unknown keys and names before torch is imported, types and ranges
before any data is read or Ray is imported. Exit codes: 0 finished, 1 diverged, a failed job of a sweep or an
unexpected error (with its traceback), 2 a user's error (one line for each), 130 interrupted, 143 terminated.
"""

from __future__ import annotations

import argparse
import errno
import gc
import logging
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from traceback import walk_tb
from types import FrameType
from typing import Any, NoReturn

import hydra
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_automatic_config_search_path, get_args_parser
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from fedsim import __version__
from fedsim.assembly.configuration import build_run, collect, did_you_mean, unknown_key
from fedsim.cli import resume
from fedsim.cli.commands import COMMANDS, command
from fedsim.cli.folder import config_folder
from fedsim.errors import ClientError, InputError, Interrupted, JobFailed, require
from fedsim.ground.interrupts import PATIENCE_S, SIGNALS

COMPOSE_ERRORS = (HydraException, OmegaConfBaseException, YAMLError)
SHOWN = ("algorithm", "data", "partition", "model")  # choices in a run's final table
_stopped: list[tuple[int, float]] = []  # the first signal (SIGINT or SIGTERM) and when it came


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
    before = {number: signal.signal(number, _stop) for number in SIGNALS} if main_thread else {}
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
        sys.path.append(_here())  # a user's own classes by dotted path
        if sys.argv[1:] and sys.argv[1] in COMMANDS:
            return command(sys.argv[1:])
        if resume.asked(sys.argv[1:]):
            return go_on(sys.argv[1:])
        sys.argv[1:] = as_sweep(with_own_classes(sys.argv[1:]))
        check(sys.argv[1:])
        hydra.main(version_base="1.3", config_path=str(config_folder()), config_name="config")(task)()
    except InputError as error:
        return _complain(str(error), 2)
    except HydraException as error:  # a combination of a sweep's values that cannot be composed
        return _complain(_translated(error), 2)
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


def task(cfg: DictConfig) -> float:
    """One job: build, simulate, print the table; returns the last evaluation, for sweepers."""
    config: Any = OmegaConf.to_container(cfg, resolve=True)
    choices = HydraConfig.get().runtime.choices
    names = {key: str(choices.get(key) or config[key]["_target_"]) for key in SHOWN}
    return perform(config, Path(HydraConfig.get().runtime.output_dir), names)


def go_on(argv: Sequence[str]) -> int:
    """``fedsim resume=FOLDER``: what is left of a run; returns the exit code."""
    from fedsim.ground.console import note

    config, run_dir = resume.stopped(argv, config_folder())
    done = resume.finished(run_dir)
    if done is not None and config["rounds"] <= done:
        note(f"the run in {run_dir} has finished its {done} rounds; add rounds=N for more")
        return 0
    names = {key: str(config[key].get("_target_", "several")).rpartition(".")[2] for key in SHOWN}
    perform(config, run_dir, names, resume=True)
    return 0


def perform(config: dict[str, Any], run_dir: Path, names: Mapping[str, str], *, resume: bool = False) -> float:
    """Build, simulate and print the table; ``names`` are its first rows. Returns the last evaluation."""
    from fedsim.cli.replay import line
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
            result = simulate(**build_run(config), run_dir=run_dir, progress=True, config=config, resume=resume)
    except Interrupted as stop:
        result = stop.result
    except InputError as error:
        _fail(str(error), 2)
    except ClientError as error:
        if error.clients:
            error.args = (f"{error}, or: {line(run_dir, error.round, error.clients)}",)
        raise
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        _fail(f"{error.strerror}, the run in {run_dir} stopped; what it wrote is kept: fedsim resume={run_dir}", 1)
    report(result.summary, run_dir, extra=names)
    if result.status == "interrupted":
        raise KeyboardInterrupt
    if result.status == "diverged":
        _fail(f"the run diverged: {result.message}; what it recorded is kept; try a smaller algorithm.lr", 1)
    return float(result.summary.get("eval/accuracy", result.summary["eval/loss"])["last"])


def with_own_classes(argv: Sequence[str]) -> list[str]:
    """Let ``GROUP._target_=a.B`` replace the group's whole node, whose former keys do not apply.

    ``algorithm._target_=a.B algorithm.mu=1`` becomes ``~algorithm ++algorithm._target_=a.B ++algorithm.mu=1``; a
    command line that also chooses ``algorithm=NAME`` keeps the keys of that choice. Every layer of a channel may be
    given its ``fields``, which no layer's own keys include.
    """
    argv = [f"channel@{text}" if text.startswith("downlink=") else text for text in argv]  # one group of layers
    keys = [text.lstrip("+").partition("=")[0] for text in argv]
    replaced = {key.removesuffix("._target_") for key in keys if key.endswith("._target_")} - set(keys)
    out: list[str] = []
    for text, key in zip(argv, keys, strict=True):
        group, _, rest = key.partition(".")
        own = (group in replaced and rest) or (group in ("channel", "downlink") and rest.endswith(".fields"))
        out += [f"~{group}"] if own and rest == "_target_" else []
        out += [f"++{text.lstrip('+')}" if own else text]
    return out


def as_sweep(argv: Sequence[str]) -> list[str]:
    """Let ``sweep=NAME`` mean ``-m``, ``sweep.KEY`` a key of fedsim's sweeper, and values follow each job's choices.

    Hydra would apply ``algorithm.mu=1`` before a job of ``algorithm=fedavg,fedprox`` has made its choice; in a sweep
    such keys are handed to the sweeper.
    """
    argv = [re.sub(r"^(\+*)sweep\.", r"\1hydra.sweeper.", text) for text in argv]
    flags = {"-m", "--multirun"} & set(argv)
    if not flags and not any(text.startswith("sweep=") and text != "sweep=null" for text in argv):
        return argv
    own = not any(text.startswith("hydra/sweeper=") for text in argv)
    later = [text for text in argv if own and re.match(r"\+*(?!hydra\.)[\w/]+\.[^=]*=", text)]
    quoted = ",".join("'{}'".format(text.replace("'", "\\'")) for text in later)
    handed = f"hydra.sweeper.arguments=[{quoted}]"  # where the first of them stood: argparse wants them together
    argv = [handed if text in later[:1] else text for text in argv if text not in later[1:]]
    return argv if flags else ["-m", *argv]


def check(argv: Sequence[str]) -> None:
    """Check a command line: syntax, names and keys, then (where it would run) types and ranges.

    Raises:
        InputError: one line for each problem.
    """
    args = _parse(argv)
    if args.hydra_help or args.shell_completion or args.experimental_rerun is not None:
        return
    problems: list[str] = []
    with _composer(args) as composer:
        for overrides in _jobs(composer, args):
            with collect(problems):
                config = _composed(composer, args.config_name, overrides)
                if not (args.help or args.cfg or args.info):
                    build_run(config)
    if args.multirun:
        problems = [
            re.sub(r"^unknown key (\w+\.[\w.]+) .*", r"\g<0>; for one option only: \1@OPTION=...", p) for p in problems
        ]
    if problems:  # jobs of a sweep share problems: each line once, in order
        raise InputError("\n".join(dict.fromkeys("\n".join(problems).splitlines())))


def compose(argv: Sequence[str]) -> Any:
    """The resolved configuration of one run's command line, as plain containers.

    Raises:
        InputError: one line for each problem.
    """
    args = _parse(with_own_classes(argv))
    with _composer(args) as composer:
        return _composed(composer, args.config_name, _jobs(composer, args)[0])


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = get_args_parser()

    def error(message: str) -> NoReturn:
        raise InputError(f"{message}; see fedsim --help")

    parser.error = error  # type: ignore[method-assign]
    args = parser.parse_args(argv)
    args.config_name = args.config_name or "config"
    modes = {"--run": args.run, "-m": args.multirun, "--cfg": args.cfg, "--info": args.info}
    if sum(map(bool, modes.values())) > 1:
        raise InputError(f"give one of {', '.join(modes)}, got {' and '.join(k for k, v in modes.items() if v)}")
    if args.resolve and not (args.cfg or args.help):
        raise InputError("--resolve needs --cfg, got neither --cfg nor --help; add --cfg job")
    if args.config_dir is not None and not Path(args.config_dir).is_dir():
        raise InputError(f"--config-dir must be an existing folder, got {args.config_dir!r}")
    return args


@contextmanager
def _composer(args: argparse.Namespace) -> Iterator[Hydra]:
    """Hydra over the same search path as ``hydra.main`` will use, and gone afterwards."""
    path = create_automatic_config_search_path(None, __name__, args.config_path or str(config_folder()))
    if args.config_dir is not None:
        folder = f"file://{Path(args.config_dir).resolve()}"
        path.prepend(provider="command-line", path=folder, anchor=SearchPathQuery(provider="schema"))
    try:
        yield Hydra.create_main_hydra2(task_name="fedsim", config_search_path=path)
    finally:
        GlobalHydra.instance().clear()


def _jobs(composer: Hydra, args: argparse.Namespace) -> list[list[str]]:
    """The command lines to check: of a sweep, few jobs in which every value of every key occurs."""
    parsed = _parsed(composer, args.overrides)
    if args.multirun or (
        any(o.is_sweep_override() for o in parsed)
        and composer.get_mode(args.config_name, args.overrides) == RunMode.MULTIRUN
    ):
        return _sweep(composer, args)
    lines = [
        f"{o.get_key_element()} must be one value, got {o.input_line}; add -m to sweep, "
        f"or write {o.get_key_element()}=[...] for a list"
        for o in parsed
        if o.is_sweep_override()
    ]
    if lines:
        raise InputError("\n".join(lines))
    return [[o.input_line or "" for o in parsed]]


def _sweep(composer: Hydra, args: argparse.Namespace) -> list[list[str]]:
    from fedsim.sweep.expand import covering, overrides_of, params_of

    try:
        master = composer.compose_config(args.config_name, args.overrides, RunMode.MULTIRUN).hydra
    except COMPOSE_ERRORS as error:
        fixed = [o for o in _parsed(composer, args.overrides) if not o.is_sweep_override()]
        known = composer.compose_config(args.config_name, [], RunMode.MULTIRUN)
        own = [line for o in fixed if o.key_or_group.startswith("hydra.sweeper.") and (line := _unknown(known, [], o))]
        lines = own or _diagnosed(composer, args.config_name, fixed, error) or [_translated(error)]
        raise InputError("\n".join(lines).replace("hydra.sweeper", "sweep")) from error
    given: Any = OmegaConf.to_container(master.sweeper)
    texts = [*overrides_of(given.get("params") or {}), *args.overrides, *given.get("arguments", ())]
    parsed = _parsed(composer, texts)
    settings = given.get("search") or {"sampler": "grid"}
    params = params_of(o for o in parsed if not o.is_hydra_override())
    for p in params:
        if p.only is not None:
            options = composer.config_loader.get_group_options(p.group)
            key = f"{p.key}@{p.only}"
            require(p.only in options, key, f"be for an option of {p.group} ({', '.join(options)})", p.only)
        do = "or search in it: add sweep.search.sampler=tpe"
        grid = settings["sampler"] == "grid"
        require(p.interval is None or not grid, p.key, "be values to run all of", "an interval", do)
    return [list(job.overrides) for job in covering(params, master.runtime.choices)]


def _parsed(composer: Hydra, overrides: Sequence[str]) -> list[Override]:
    parser = OverridesParser.create(config_loader=composer.config_loader)
    parsed: list[Override] = []
    problems: list[str] = []
    for text in overrides:
        with collect(problems):
            parsed += _parsed_one(parser, text)
    if problems:
        raise InputError("\n".join(problems))
    return parsed


def _parsed_one(parser: OverridesParser, text: str) -> list[Override]:
    try:
        if text.startswith("="):  # Hydra's grammar lets it pass
            raise HydraException("no KEY before the =")
        return parser.parse_overrides([text])
    except HydraException as error:
        lines = [
            line for line in str(error).splitlines() if not line.startswith(("Error parsing override", "See https"))
        ]
        why = lines[0] if lines else "cannot be parsed"
        raise InputError(f"an argument must be KEY=VALUE, got {text!r} ({why}); quote special characters") from error


def _composed(composer: Hydra, config_name: str, overrides: list[str]) -> Any:
    """The resolved configuration as plain containers."""
    try:
        cfg = composer.compose_config(config_name, overrides, RunMode.RUN)
        return OmegaConf.to_container(OmegaConf.masked_copy(cfg, [str(k) for k in cfg if k != "hydra"]), resolve=True)
    except COMPOSE_ERRORS as error:
        lines = _diagnosed(composer, config_name, _parsed(composer, overrides), error) or [_translated(error)]
        raise InputError("\n".join(lines)) from error


def _diagnosed(composer: Hydra, config_name: str, parsed: list[Override], error: Exception) -> list[str]:
    """What is wrong with overrides that do not compose: unknown options of groups, then unknown keys."""
    lines, choices, values = [], [], []
    for o in parsed:
        group, value = o.key_or_group, o.value()
        options = composer.config_loader.get_group_options(group)
        wrong = [v for v in (value if isinstance(value, list) else [value]) if isinstance(v, str) and v not in options]
        if options and wrong:
            guess = did_you_mean(wrong[0], options, "" if isinstance(value, list) else f"{group}=")
            name = str(o.package or group)  # downlink chooses from the group of channel
            lines.append(f"unknown option {name}={wrong[0]}; {guess}options of {name}: {', '.join(options)}")
        elif o.is_add() and f"Multiple values for {group}." in str(error):
            lines.append(f"{group} has a choice already, got {o.input_line}; write {group}={value}")
        elif options or o.is_hydra_override():
            choices.append(o.input_line or "")
        elif not (o.is_add() or o.is_force_add()):
            values.append(o)
    if lines:
        return lines
    try:
        cfg = composer.compose_config(config_name, choices, RunMode.RUN)
    except COMPOSE_ERRORS:
        return []  # the caller reports the error of the whole command line
    groups = [str(name) for name in composer.config_loader.list_groups("") if name not in cfg]
    return [line for o in values if (line := _unknown(cfg, groups, o))]


def _unknown(cfg: DictConfig, groups: list[str], override: Override) -> str | None:
    """The line about an override whose key the composed configuration does not have, or None."""
    node: Any = cfg
    path: list[str] = []
    for part in override.key_or_group.split("."):
        if not isinstance(node, DictConfig):
            return f"unknown key {override.key_or_group}; {'.'.join(path)} holds a value and has no keys"
        if part not in node:
            names = [str(key) for key in node] + ([] if path else groups)
            valid = [name for name in names if name not in ("hydra", "_target_")]
            line = unknown_key(".".join(path), part, valid, override.input_line)
            layers = {"channel", "downlink"} & set(path[:1])
            return f"{line}; choose layers first: {path[0]}=[{part}]" if layers and len(path) == 1 else line
        path.append(part)
        node = OmegaConf.select(node, part)
    return None


def _translated(error: Exception) -> str:
    """An error of Hydra, OmegaConf or yaml on one line, without the search path and links it appends."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        available = (
            f"; available: {', '.join(error.options)}" if error.options else "; see fedsim --help for the options"
        )
        return f"{str(error).splitlines()[0].rstrip('.')}{available}"
    lines = [line.strip() for line in str(error).splitlines()]
    kept = [line for line in lines if line and not line.startswith(("See https://", "full_key:", "object_type="))]
    cause = [str(error.__cause__).splitlines()[0]] if isinstance(error.__cause__, OmegaConfBaseException) else []
    return ": ".join([" ".join(kept), *cause])


def _here() -> str:
    """The working directory."""
    try:
        return os.getcwd()
    except OSError as error:
        raise InputError(f"the working directory must exist, got {error.strerror}; change to another") from error


def _stop(number: int, frame: FrameType | None) -> None:
    """On Ctrl-C and SIGTERM: the run saves what it has and its actors go."""
    now = time.monotonic()
    if _stopped and now - _stopped[0][1] < PATIENCE_S:
        return
    _stopped[:1] = [(number, now)]
    raise KeyboardInterrupt


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
