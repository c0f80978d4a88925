"""A run's folder opened: a new one, or one with a run that goes on from the last checkpoint that fits its records."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedsim.errors import InputError, require
from fedsim.ground.console import warning
from fedsim.ground.files import DISK
from fedsim.record.checkpoint import Checkpointing, Checkpoints, Saved
from fedsim.record.fingerprint import check_fingerprint, fingerprint
from fedsim.record.run_folder import RunFolder, rounds_recorded


def opened(
    path: str | Path,
    config: Mapping[str, Any],
    machine: Mapping[str, Any],
    method: Mapping[str, Any],
    policy: Checkpointing,
    rounds: int,
    *,
    resume: bool,
) -> tuple[RunFolder, Checkpoints, dict[str, Any], Saved | None]:
    """A run's folder, its checkpoints, its fingerprint, and the checkpoint that it goes on from.

    Raises:
        InputError: the folder holds another run, one that is going on, or (without ``resume``) any run.
    """
    path = Path(path)
    checkpoints = Checkpoints(path / "checkpoints", policy)
    mark = fingerprint(config, machine, method)
    for name in ("checkpoints", "tensorboard", "metrics.jsonl"):
        # What a link points at is not the run's: another run's folder, or whatever the sender of a folder chose.
        own = not (path / name).is_symlink()
        require(own, str(path / name), "lie in the run's folder itself", "a link", "put what it names in its place")
        folder = name != "metrics.jsonl" and (path / name).exists()
        require(not folder or (path / name).is_dir(), str(path / name), "be a folder", "a file", "move it elsewhere")
    try:
        if not resume:
            if checkpoints.files() and not (path / "metrics.jsonl").exists():  # they would be taken for the new run's
                what = f"{path}, which already holds a run (checkpoints)"
                raise InputError(f"the run's folder must be new, got {what}; choose another")
            return RunFolder.create(path, config, machine), checkpoints, mark, None
        saved = _fitting(checkpoints, path)
        if saved is not None:
            check_fingerprint(saved.notes["fingerprint"], mark, path)
            require(rounds >= saved.done, "rounds", f"be >= {saved.done}, which are done", rounds)
        done = None if saved is None else saved.notes["recorded"]
        return RunFolder.reopen(path, config, machine, done), checkpoints, mark, saved
    except OSError as error:
        if error.errno in DISK:
            raise
        what = f"got {error.filename or path}: {error.strerror}"
        raise InputError(f"the run's folder must be one that can be read and written, {what}") from error


def _fitting(checkpoints: Checkpoints, path: Path) -> Saved | None:
    """The last good checkpoint whose rounds metrics.jsonl holds; if it lacks rounds of every one, the last good one.

    None where there is no good one.
    """
    have, last = rounds_recorded(path), None
    for saved in checkpoints.good():
        if not _is_of_a_run(saved.notes):
            warning(f"the checkpoint after round {saved.done} is passed over: it is not of a run")
        elif saved.notes["recorded"] < have:
            if last is not None:
                warning(f"{path / 'metrics.jsonl'} holds {have} whole lines: the run goes on after round {saved.done}")
            return saved
        else:
            last = last or saved
    return last


def _is_of_a_run(notes: Mapping[str, Any]) -> bool:
    """Whether a checkpoint's notes are those that ``History.save`` writes."""
    mark, opened = notes.get("fingerprint"), notes.get("open", 0)
    return (
        isinstance(notes.get("recorded"), int)
        and notes["recorded"] >= 0
        and isinstance(notes.get("wall_s"), float)
        and (opened is None or isinstance(opened, dict))
        and isinstance(mark, dict)
        and all(isinstance(mark.get(part), dict) for part in ("method", "rounding"))
    )
