"""What is wrong with a command line that does not compose, in one line for each problem.

Knows what was composed and what Hydra raised; composes without the overrides in question, and runs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra._internal.hydra import Hydra
from hydra.core.override_parser.types import ChoiceSweep, Glob, Override, QuotedString
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError, OmegaConfBaseException
from yaml import YAMLError

from fedsim.assembly.factory import MODEL_KEYS
from fedsim.assembly.problems import nearest, unknown_key
from fedsim.cli.folder import config_folder
from fedsim.cli.guesses import LISTS, WORDS, first_guess, of_another, unknown_option
from fedsim.errors import InputError, require

COMPOSE_ERRORS = (HydraException, OmegaConfBaseException, YAMLError)


def explained(composer: Hydra, config_name: str, overrides: Sequence[Override], error: Exception) -> list[str]:
    """Why these overrides do not compose: what is wrong with one of them, or else what Hydra says of all."""
    return _wrong(composer, config_name, overrides, error) or [translated(error)]


def _wrong(composer: Hydra, config_name: str, overrides: Sequence[Override], error: Exception) -> list[str]:
    """Unknown options of groups and doubled choices; where there are none, unknown keys."""
    lines = [line for o in overrides if (line := _choice(composer, o, error))]
    if lines:
        return lines
    chosen = [o for o in overrides if o.is_hydra_override() or _options(composer, o)]
    values = [o for o in overrides if o not in chosen and not (o.is_add() or o.is_force_add())]
    try:
        cfg = composer.compose_config(config_name, [o.input_line or "" for o in chosen], RunMode.RUN)
    except COMPOSE_ERRORS:
        return []  # the error of the whole command line says more
    return [line for o in values if (line := unknown(cfg, groups_of(composer), o))]


def without_hydra(cfg: DictConfig, resolve: bool = False) -> Any:
    """The configuration of a run alone, as plain containers; a value that must be given stands there as ``???``."""
    run = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    return OmegaConf.to_container(run, resolve=resolve)


def groups_of(composer: Hydra) -> dict[str, list[str]]:
    """The options of every group."""
    loader = composer.config_loader
    return {str(name): loader.get_group_options(name) for name in loader.list_groups("")}


def _options(composer: Hydra, override: Override) -> list[str]:
    """The options of the group that an override chooses from; none where it sets a value."""
    return composer.config_loader.get_group_options(override.key_or_group)


def _choice(composer: Hydra, override: Override, error: Exception) -> str | None:
    """The line about an option that there is not, or a second choice of a group that has one, or None."""
    group, value, options = override.key_or_group, override.value(), _options(composer, override)
    named = value if isinstance(value, list) else [value]
    wrong = [one for one in named if isinstance(one, str) and one not in options]
    if options and wrong:
        name = override.package or group  # downlink chooses from the group of channel
        return unknown_option(name, wrong[0], options, "" if isinstance(value, list) else f"{name}=")
    if override.is_add() and f"Multiple values for {group}." in str(error):
        return f"{group} has a choice already, got {override.input_line}; write {group}={value}"
    return None


def no_word(composer: Hydra, override: Override) -> str | None:
    """The line about a choice of a group that is no option's name, such as ``algorithm=null``, or None."""
    options = _options(composer, override)
    if not options or override.is_delete():
        return None
    value = override.value()
    values = value.list if isinstance(value, ChoiceSweep) else [value]
    named = [one for v in values for one in (v if isinstance(v, list) else [v])]
    if all(isinstance(one, (str, QuotedString, Glob)) for one in named):
        return None
    name = override.package or override.key_or_group
    return f"{name} must be one of its options, got {override.input_line}; options of {name}: {', '.join(options)}"


def unknown(cfg: DictConfig, groups: Mapping[str, Sequence[str]], override: Override) -> str | None:
    """The line about an override whose key the composed configuration does not have, or None.

    Args:
        cfg: what composes without it.
        groups: the options of every group.
        override: KEY=VALUE.
    """
    node: Any = cfg
    known = without_hydra(cfg)
    path: list[str] = []
    for part in override.key_or_group.split("."):
        if not isinstance(node, DictConfig):
            meant = _of_another(path, part, override, groups)
            return f"unknown key {override.key_or_group}; {meant}{'.'.join(path)} holds a value and has no keys"
        if part not in list(node):  # "in" denies a key that must be given still
            names = [str(key) for key in node] + ([] if path else [name for name in groups if name not in cfg])
            valid = [name for name in names if name not in ("hydra", "_target_")]
            close = [*valid, *MODEL_KEYS] if path == ["model"] else valid
            last = override.key_or_group.rpartition(".")[2]
            hint = "" if override.is_delete() else first_guess(last, _value(override), known, groups)
            near = _of_another(path, part, override, groups)
            if not path and part in MODEL_KEYS and part not in WORDS:
                near = f"did you mean model.{(override.input_line or part).lstrip('+')}? "
            near = near or ("" if hint and last in WORDS else _near(override, path, part, close))
            line = unknown_key(".".join(path), part, valid, override.input_line, near or hint)
            several = {"channel": "layers", "downlink": "layers", "callbacks": "callbacks"}.get("".join(path))
            return f"{line}; choose {several} first: {path[0]}=[{part}]" if several else line
        path.append(part)
        node = OmegaConf.select(node, part)
    return None


def _of_another(path: Sequence[str], part: str, override: Override, groups: Mapping[str, Sequence[str]]) -> str:
    """``did you mean GROUP=OPTION KEY=VALUE? `` for a key of another option of the group, or ""."""
    if len(path) != 1 or path[0] not in groups or path[0] in LISTS or override.is_delete():
        return ""
    return of_another(path[0], part, override.input_line or "", config_folder())


def _near(override: Override, path: Sequence[str], part: str, valid: Sequence[str]) -> str:
    """``did you mean KEY=VALUE? `` with the valid name that is closest to one part of the key, or ""."""
    key = override.key_or_group
    after = key.split(".")[len(path) + 1 :]
    meant = [".".join([*path, close, *after]) for close in nearest(part, valid)]
    return f"did you mean {(override.input_line or key).lstrip('+').replace(key, meant[0], 1)}? " if meant else ""


def require_values(cfg: DictConfig, overrides: Sequence[str], folder: str) -> None:
    """Raise InputError where a key of Hydra's that the user set has no value, or the folder no name."""
    for key in [folder, *(text.lstrip("+").partition("=")[0] for text in overrides if text.startswith("hydra."))]:
        try:
            value = OmegaConf.select(cfg, key)
        except InterpolationToMissingValueError:  # known when the job runs, such as its number
            continue
        except COMPOSE_ERRORS as error:
            raise InputError(f"{key} must have a value, got none: {translated(error)}") from error
        if key == folder:
            require(bool(str(value).strip()), key, "be a folder", value)
        if key == "hydra.output_subdir" and value is not None:
            inside = not Path(value).is_absolute() and ".." not in Path(value).parts
            require(inside, key, "be a folder inside the run's", value)


def _value(override: Override) -> str:
    """What an override gives its key, as it was written."""
    return (override.input_line or "").partition("=")[2]


def translated(error: Exception) -> str:
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
