"""Where an assembled run is kept: its folder and its checkpoints, which may hold the part of it that is done."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fedsim.assembly import facts
from fedsim.assembly.assemble import Assembled
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
    written = facts.config(assembled) if config is None else config
    place = (run_dir, written, facts.machine(assembled), facts.method(assembled))
    return Kept(*opened(*place, parts.checkpoint, parts.planned_rounds, resume=resume))


def draw_pictures(assembled: Assembled, folder: RunFolder) -> None:
    """Draw what is known before the first round: who holds what, and the graph of peers."""
    counts, mixing = assembled.population.counts(assembled.dataset), assembled.network.mixing
    draw_split(folder, counts)
    if mixing is not None:
        draw_network(folder, type(assembled.parts.topology).__name__, mixing, counts)
