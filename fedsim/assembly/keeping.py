"""Where an assembled run is kept: its folder and its checkpoints, which may hold the part of it that is done."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple

from fedsim.assembly import facts
from fedsim.assembly.assemble import Assembled
from fedsim.assembly.part_roles import require_kind
from fedsim.errors import require
from fedsim.record.checkpoint import Checkpoints, Saved
from fedsim.record.drawings import draw_network, draw_split
from fedsim.record.opening import opened
from fedsim.record.run_folder import RunFolder


class Kept(NamedTuple):
    """Where a run is kept; nothing of it for a run that writes nothing."""

    folder: RunFolder | None = None
    checkpoints: Checkpoints | None = None
    mark: Mapping[str, Any] = {}  # the run's fingerprint, for its checkpoints
    saved: Saved | None = None  # the checkpoint that the run goes on from


def run_place(run_dir: Any, config: Any, resume: Any) -> Path | None:
    """Where a run is kept, wherever the process goes; InputError unless it can be, or goes on, where it was told."""
    require_kind(resume, "resume", bool, "be True or False")
    require_kind(run_dir, "run_dir", (str, Path, NoneType), "be a path or None")
    require(run_dir != "", "run_dir", "be a path or None", run_dir, "for the current folder pass '.'")
    require_kind(config, "config", (Mapping, NoneType), "be a mapping or None")
    require(not resume or run_dir is not None, "run_dir", "be the folder of the run to resume", run_dir)
    return None if run_dir is None else Path(run_dir).absolute()  # a user's code may change the current folder


def keep(assembled: Assembled, run_dir: str | Path, config: Mapping[str, Any] | None, *, resume: bool) -> Kept:
    """Open a run's folder; the caller closes it.

    Args:
        assembled: the run.
        run_dir: the folder.
        config: what config.yaml shall hold; None: the parts as a configuration would name them.
        resume: go on from the folder's last checkpoint, if it has one.

    Raises:
        InputError: the folder holds another run, one that is going on, or (without ``resume``) any run.
    """
    parts = assembled.parts
    written = facts.filled_in(assembled, config)
    machine, method = facts.machine(assembled), facts.method(assembled)
    return Kept(*opened(run_dir, written, machine, method, parts.checkpoint, parts.planned_rounds, resume=resume))


def write_first(assembled: Assembled, kept: Kept) -> None:
    """Write what the folder of a new run holds before the first round beside its configuration: names, pictures."""
    if kept.folder and not kept.saved:
        write_names(assembled, kept.folder)
        draw_pictures(assembled, kept.folder)


def draw_pictures(assembled: Assembled, folder: RunFolder) -> None:
    """Draw what is known before the first round: who holds what, and the graph of peers."""
    counts, mixing = assembled.population.counts(assembled.dataset), assembled.network.mixing
    draw_split(folder, counts)
    if mixing is not None:
        draw_network(folder, type(assembled.parts.topology).__name__, mixing, counts)


def write_names(assembled: Assembled, folder: RunFolder) -> None:
    """Keep the names of classes and clients that became numbers, where there are any."""
    dataset = assembled.dataset
    if dataset.classes or dataset.clients:
        folder.names(classes=dataset.classes, clients=dataset.clients)
