"""Command lines composed with Hydra and checked, once each: what was checked is what runs.

Unknown keys and names are found before torch is imported, types and ranges before any data is read or Ray is imported.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import hydra
from hydra._internal.hydra import Hydra
from hydra._internal.utils import run_and_report
from hydra.types import RunMode
from omegaconf import OmegaConf

from fedsim.assembly.configuration import build_run
from fedsim.assembly.problems import collect
from fedsim.cli.arguments import flags_of, parsed_overrides
from fedsim.cli.argv import with_own_classes
from fedsim.cli.composer import composer_of
from fedsim.cli.explain import COMPOSE_ERRORS, explained, require_values, unknown, without_hydra
from fedsim.cli.folder import config_folder
from fedsim.errors import InputError, require
from fedsim.ground.later import importing


class Ready(NamedTuple):
    """One run, checked."""

    overrides: list[str]
    config: Any  # resolved, as plain containers
    parts: dict[str, Any]  # what ``build_run`` made of it


def start(argv: Sequence[str], task: Callable[..., float]) -> None:
    """Check a command line, then do what it says: run, sweep or show something.

    Args:
        argv: as Hydra understands it.
        task: runs one job, given its configuration (as Hydra's) and, if it was checked as it is, the ``Ready``.

    Raises:
        InputError: one line for each problem; before anything runs.
    """
    args = flags_of(argv)
    with composer_of(args) as composer:
        ready = _checked(composer, args)
        if ready is not None:
            job = partial(task, ready=ready)
            run_and_report(lambda: composer.run(args.config_name, job, ready.overrides))
            return
    hydra.main(version_base="1.3", config_path=str(config_folder()), config_name="config")(task)()


def check(argv: Sequence[str]) -> None:
    """Check a command line: syntax, names and keys, then (where it would run) types and ranges.

    Raises:
        InputError: one line for each problem.
    """
    args = flags_of(argv)
    with composer_of(args) as composer:
        _checked(composer, args)


def compose(argv: Sequence[str]) -> Any:
    """The resolved configuration of one run's command line, as plain containers.

    Raises:
        InputError: one line for each problem.
    """
    args = flags_of(with_own_classes(argv))
    with composer_of(args) as composer:
        return _composed(composer, args.config_name, _jobs(composer, args)[0][0])


def _checked(composer: Hydra, args: argparse.Namespace) -> Ready | None:
    """The run that a command line describes; None where it describes several, or shows something."""
    if args.hydra_help or args.shell_completion or args.experimental_rerun is not None:
        return None
    problems: list[str] = []
    ready = None
    jobs, sweep = _jobs(composer, args)
    for overrides in jobs:
        with collect(problems):
            config = _composed(composer, args.config_name, overrides)
            if not (args.help or args.cfg or args.info):
                with importing("torch", "importing torch"):
                    ready = Ready(overrides, config, build_run(config))
    if args.multirun:
        problems = [
            re.sub(r"^unknown key (\w+\.[\w.]+) .*", r"\g<0>; for one option only: \1@OPTION=...", p) for p in problems
        ]
    if problems:  # jobs of a sweep share problems: each line once, in order
        raise InputError("\n".join(dict.fromkeys("\n".join(problems).splitlines())))
    return ready if ready is not None and not sweep and _alone(composer, args.config_name, ready) else None


def _alone(composer: Hydra, config_name: str, ready: Ready) -> bool:
    """Whether Hydra runs this alone; if so it is told to, and notes that in the run's folder as it always does."""
    cfg = composer.compose_config(config_name, ready.overrides, RunMode.RUN)
    require_values(cfg, ready.overrides, "hydra.run.dir")
    if cfg.hydra.mode is None:
        cfg.hydra.mode = RunMode.RUN
        cfg.hydra.overrides.hydra.append("hydra.mode=RUN")
    return bool(cfg.hydra.mode == RunMode.RUN)


def _jobs(composer: Hydra, args: argparse.Namespace) -> tuple[list[list[str]], bool]:
    """The command lines to check, and whether it is a sweep: then few jobs in which every value of every key occurs."""
    parsed = parsed_overrides(composer, args.overrides)
    if args.multirun or (
        any(o.is_sweep_override() for o in parsed)
        and composer.get_mode(args.config_name, args.overrides) == RunMode.MULTIRUN
    ):
        return _sweep(composer, args), True
    lines = [
        f"{o.get_key_element()} must be one value, got {o.input_line}; add -m to sweep, "
        f"or write {o.get_key_element()}=[...] for a list"
        for o in parsed
        if o.is_sweep_override()
    ]
    if lines:
        raise InputError("\n".join(lines))
    return [[o.input_line or "" for o in parsed]], False


def _sweep(composer: Hydra, args: argparse.Namespace) -> list[list[str]]:
    from fedsim.sweep.expand import covering, overrides_of, params_of

    try:
        composed = composer.compose_config(args.config_name, args.overrides, RunMode.MULTIRUN)
        master = composed.hydra
    except COMPOSE_ERRORS as error:
        fixed = [o for o in parsed_overrides(composer, args.overrides) if not o.is_sweep_override()]
        known = composer.compose_config(args.config_name, [], RunMode.MULTIRUN)
        own = [line for o in fixed if o.key_or_group.startswith("hydra.sweeper.") and (line := unknown(known, {}, o))]
        lines = own or explained(composer, args.config_name, fixed, error)
        raise InputError("\n".join(lines).replace("hydra.sweeper", "sweep")) from error
    require_values(composed, args.overrides, "hydra.sweep.dir")
    given: Any = OmegaConf.to_container(master.sweeper)
    texts = [*overrides_of(given.get("params") or {}), *args.overrides, *given.get("arguments", ())]
    parsed = parsed_overrides(composer, texts)
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


def _composed(composer: Hydra, config_name: str, overrides: list[str]) -> Any:
    """The resolved configuration as plain containers."""
    try:
        cfg = composer.compose_config(config_name, overrides, RunMode.RUN)
        return without_hydra(cfg, resolve=True)
    except COMPOSE_ERRORS as error:
        raise InputError(
            "\n".join(explained(composer, config_name, parsed_overrides(composer, overrides), error))
        ) from error
