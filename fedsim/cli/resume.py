"""``fedsim resume=FOLDER``: a run that was stopped goes on as it began."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from fedsim.assembly.problems import did_you_mean
from fedsim.cli.trust import WORDS, require_trusted, word_for
from fedsim.errors import InputError, first_line, require
from fedsim.record.run_folder import summary_of

PREFIX = "resume="
GROUPS = ("algorithm", "data", "partition", "model", "engine", "checkpoint")  # what every run has


def asked(argv: Sequence[str]) -> bool:
    """Whether a command line is about a run that was stopped."""
    return any(text.startswith(PREFIX) for text in argv)


def stopped(argv: Sequence[str], configs: Path) -> tuple[dict[str, Any], Path]:
    """The configuration of a run that was stopped, with what may change, and its folder.

    Args:
        argv: ``resume=FOLDER``, and any of ``rounds=N``, ``engine=NAME`` (its backend), ``engine.KEY=VALUE``,
            ``checkpoint.KEY=VALUE``, ``callbacks=[NAME,...]``, ``callbacks.NAME.KEY=VALUE`` and ``trust=true``.
        configs: the folder of fedsim's configurations.

    Raises:
        InputError: there is no run, another word, or the folder asks for code that is not fedsim's and is not trusted;
            one line for each.
    """
    folders = [text.removeprefix(PREFIX) for text in argv if text.startswith(PREFIX)]
    others = [text for text in argv if not text.startswith(PREFIX) and text not in WORDS]
    require(len(folders) == 1, "resume", "be the folder of one run", folders)
    wrong = [text for text in others if not _may_change(text)]
    if wrong:
        words = "engine=NAME, engine.KEY=VALUE, checkpoint.KEY=VALUE, callbacks=[...], rounds=N and trust=true"
        raise InputError("\n".join(f"beside resume=FOLDER there may be {words}, got {text}" for text in wrong))
    folder = Path(folders[0]).absolute()
    config = _read(folder / "config.yaml")
    config["engine"].setdefault("tuning", "builtin")  # all that earlier versions had
    for text in sorted(others, key=lambda text: not text.startswith("callbacks=")):  # chosen before they are changed
        key, _, value = text.partition("=")
        if key == "engine":
            config["engine"]["backend"] = _backend(configs / "engine", value)
        elif key == "callbacks":
            config["callbacks"] = _callbacks(configs / "callbacks", _value(text, value), config.get("callbacks") or {})
        else:
            _set(config, key.split("."), _value(text, value))
    require_trusted(config, folder, argv)
    return config, folder


def _set(config: dict[str, Any], path: Sequence[str], value: Any) -> None:
    *inside, name = path
    node = config
    for key in inside:
        node = node.setdefault(key, {}) if path[0] == "callbacks" else node[key]
        if not isinstance(node, dict):
            raise InputError(f"{'.'.join(path)} must be a key of a callback, got one of a value")
    node[name] = value


def _callbacks(folder: Path, chosen: Any, before: Mapping[str, Any]) -> dict[str, Any]:
    """Callbacks by name: those that the run had with their keys, others with those of their files."""
    names = sorted(path.stem for path in folder.glob("*.yaml"))
    listed = [] if chosen is None else chosen
    if not isinstance(listed, list):
        raise InputError(f"callbacks must be a list of names, got {chosen!r}; for example callbacks=[csv]")
    if unknown := [name for name in listed if name not in (*before, *names)]:
        raise InputError(
            f"unknown option callbacks={unknown[0]}; {did_you_mean(str(unknown[0]), names)}"
            f"options of callbacks: {', '.join(names)}"
        )
    new = {name: yaml.safe_load((folder / f"{name}.yaml").read_text())[name] for name in listed if name not in before}
    return {name: before.get(name, new.get(name)) for name in listed}


def _value(text: str, value: str) -> Any:
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError as error:
        why = str(getattr(error, "problem", None) or error).splitlines()[0]
        raise InputError(f"an argument must be KEY=VALUE, got {text!r} ({why}); quote special characters") from error


def resume_line(what: str, run_dir: Path, config: Mapping[str, Any]) -> str:
    """The line about a run that something outside it has stopped, with the command that goes on with it."""
    again = " ".join(["fedsim", f"resume={run_dir}", *word_for(config)])
    return f"{what}, the run in {run_dir} stopped; what it wrote is kept: {again}"


def finished(folder: Path) -> int | None:
    """Rounds of a run that came to its end, else None."""
    summary = summary_of(folder) or {}
    return int(summary["rounds"]) if summary.get("status") == "finished" else None


def _may_change(text: str) -> bool:
    key, equals, _ = text.partition("=")
    group, dot, name = key.partition(".")
    inside = bool(dot) and group in ("engine", "checkpoint") and name.isidentifier() and not name.startswith("_")
    of_callback = group == "callbacks" and all(part.isidentifier() for part in name.split(".")) and "." in name
    return bool(equals) and (inside or of_callback or key in ("rounds", "engine", "callbacks"))


def _read(path: Path) -> dict[str, Any]:
    """A run's config.yaml."""
    try:
        config: Any = yaml.safe_load(path.read_text())
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or f"which is no yaml ({first_line(error)})".replace("\n", " ")
        raise InputError(f"resume must be the folder of a run, got {path}: {reason}") from error
    whole = isinstance(config, dict) and all(isinstance(config.get(key), dict) for key in GROUPS)
    if not whole or not isinstance(config.get("rounds"), int):
        raise InputError(f"resume must be the folder of a run of the command line, got {path} without its keys")
    return dict(config)


def _backend(folder: Path, name: str) -> str:
    names = sorted(path.stem for path in folder.glob("*.yaml"))
    if name not in names:
        raise InputError(
            f"unknown option engine={name}; {did_you_mean(name, names, 'engine=')}options of engine: {', '.join(names)}"
        )
    backend: str = yaml.safe_load((folder / f"{name}.yaml").read_text())["backend"]
    return backend
