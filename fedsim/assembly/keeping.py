"""Where an assembled run is kept: its folder and its checkpoints, which may hold the part of it that is done."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple

from fedsim.assembly import facts
from fedsim.assembly.assemble import Assembled
from fedsim.assembly.part_roles import require_kind
from fedsim.errors import require
from fedsim.record.checkpoint import Checkpoints, Saved
from fedsim.record.drawings import network_picture, split_picture
from fedsim.record.opening import opened
from fedsim.record.run_folder import RunFolder
from fedsim.record.tensorboard import Picture


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


@contextmanager
def writing_first(assembled: Assembled, kept: Kept) -> Iterator[None]:
    """Write what the folder of a new run holds before the first round beside its configuration: names, pictures.

    The pictures are drawn while the block runs, in a thread: what it waits for when Ray begins are other processes.
    """
    if not kept.folder or kept.saved:
        yield
        return
    write_names(assembled, kept.folder)
    with ThreadPoolExecutor(1) as aside:
        drawn = aside.submit(pictures, assembled)
        yield
    for tag, picture in drawn.result().items():
        kept.folder.picture(tag, picture)


def pictures(assembled: Assembled) -> dict[str, Picture]:
    """What is known before the first round: who holds what, and the graph of peers."""
    counts, mixing = assembled.population.counts(assembled.dataset), assembled.network.mixing
    found = {"data/split": split_picture(counts)}
    if mixing is not None:
        found["topology/graph"] = network_picture(type(assembled.parts.topology).__name__, mixing, counts)
    return found


def write_names(assembled: Assembled, folder: RunFolder) -> None:
    """Keep the names of classes and clients that became numbers, where there are any."""
    dataset = assembled.dataset
    if dataset.classes or dataset.clients:
        folder.names(classes=dataset.classes, clients=dataset.clients)
