"""Checkpoints: everything that a run needs to go on to the same bits, in one file each, never half written.

    checkpoints/round-00000120-<sha256>.safetensors

Arrays are safetensors, which other programs read; numbers and notes are JSON in its header; nothing is pickled. The
digest in the name is that of the whole file, so that a flipped bit anywhere is noticed (``sha256sum`` agrees). A file
is written beside its name, synchronised and renamed; the last ``keep`` stay. A damaged one is passed over for the one
before it, with one line.

A state is a tree (``ground.tree``) of tensors, arrays and plain numbers. Its leaves are stored by path and restored
into the structure that a fresh run has, shapes and dtypes checked; only ``SavedRows`` may have another length.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor

from fedsim.errors import InputError, NotSaved, first_line, require
from fedsim.fields import check_fields
from fedsim.ground.console import warning
from fedsim.ground.files import is_own_file, leftovers, piece, publish
from fedsim.ground.streamed import Streamed
from fedsim.record.tensor_file import Array, open_file, save_file
from fedsim.types import SavedRows

T = TypeVar("T")
NAME = re.compile(r"round-(\d+)-([0-9a-f]{64})\.safetensors")
FORMAT = 1
PRICE = 20  # between two checkpoints passes at least this many times what one takes: 5 % of a run at most


@dataclass(frozen=True)
class Checkpointing:
    """When a run that has a folder saves what it needs to go on; its last round and an interruption always do.

    Attributes:
        every: rounds between checkpoints at least, >= 1.
        seconds: time between checkpoints at least, >= 0, and 20 times what writing one takes; 0: only ``every`` counts.
        keep: the last so many stay, >= 2.
    """

    every: int = 1
    seconds: float = 30.0
    keep: int = 2

    def __post_init__(self) -> None:
        check_fields(self)
        require(self.every >= 1, "every", "be >= 1", self.every)
        require(self.seconds >= 0, "seconds", "be >= 0", self.seconds)
        require(self.keep >= 2, "keep", "be >= 2, so that a damaged one has another before it", self.keep)


@dataclass(frozen=True)
class Saved:
    """What a checkpoint holds.

    Attributes:
        done: rounds done.
        arrays: leaves of the state that are tensors or arrays, by path; those with rows are read when they are used.
        numbers: its other leaves.
        notes: what the run wanted to remember beside its state.
    """

    done: int
    arrays: Mapping[str, Array]
    numbers: Mapping[str, Any]
    notes: Mapping[str, Any]

    def into(self, fresh: T) -> T:
        """The saved state in the structure, on the devices and of the kinds of a fresh run's state.

        Raises:
            InputError: the checkpoint is of another state.
        """
        wanted = set(self.arrays) | set(self.numbers)
        restored: T = _rebuilt(fresh, "", self, wanted)
        if wanted:
            raise InputError(f"the checkpoint must hold this run's state, got also {', '.join(sorted(wanted))}")
        return restored


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: where they lie; made by the first one. Only files of their name are ever removed, and pieces of them
            that a killed run left.
        policy: when there shall be one.
    """

    def __init__(self, folder: Path, policy: Checkpointing) -> None:
        self.folder, self.policy = folder, policy
        self._last, self._since, self._cost = 0, time.monotonic(), 0.0
        self._said = False  # that none can be written, since the last that was

    def due(self, done: int) -> bool:
        """Whether a run that has done so many rounds shall save now."""
        wait = max(self.policy.seconds, PRICE * self._cost) if self.policy.seconds else 0.0
        return done - self._last >= self.policy.every and time.monotonic() - self._since >= wait

    def left(self, done: int) -> int:
        """Rounds until a run that has done so many shall save, where rounds alone say when; else any number."""
        return sys.maxsize if self.policy.seconds else max(1, self.policy.every - (done - self._last))

    def save(self, done: int, state: Any, notes: Mapping[str, Any], *, last: bool = False) -> bool:
        """Write a checkpoint; a disk that is full costs the checkpoint and one line, not the run.

        Args:
            done: rounds done.
            state: tree of tensors, arrays, streamed ones too, and plain numbers.
            notes: JSON, whatever else is needed.
            last: no other attempt will follow.

        Returns:
            Whether there is one now. The first of several failures in a row is said in a line.

        Raises:
            NotSaved: the last one cannot be written.
        """
        begun = time.monotonic()
        arrays: dict[str, Array] = {}
        numbers: dict[str, Any] = {}
        for path, leaf in _leaves(state, ""):
            if path in arrays or path in numbers:
                raise ValueError(f"two leaves of a state are called {path}")
            (arrays if isinstance(leaf, (np.ndarray, Streamed)) else numbers)[path] = leaf
        header = json.dumps({"format": FORMAT, "round": done, "numbers": numbers, "notes": notes})
        try:
            self._write(done, arrays, header)
        except OSError as error:
            problem = f"no checkpoint after round {done}, the one before it stays: {first_line(error)}"
            if last:
                raise NotSaved(problem) from error
            if not self._said:
                warning(f"{problem}; the run goes on and tries again, silently")
            self._said = True
            return False
        finally:
            self._last, self._since = done, time.monotonic()
            self._cost = self._since - begun
        self._said = False
        return True

    def _write(self, done: int, arrays: Mapping[str, Array], header: str) -> None:
        """Write one, remove those that are too many, and whatever was begun and not finished."""
        self.folder.mkdir(exist_ok=True)
        for left in leftovers(self.folder, r"round-\d+"):
            _remove(left)
        temp = piece(self.folder / f"round-{done:08}")
        try:
            digest = save_file(arrays, temp, {"fedsim": header})
            temp.chmod(self.folder.stat().st_mode & 0o666)  # whoever may read the folder may read the file
            publish(temp, self.folder / f"round-{done:08}-{digest}.safetensors")
        finally:
            _remove(temp)
        before = [path for path in self.files() if _round(path) <= done]  # later ones were damaged and passed over
        for old in filter(is_own_file, before[self.policy.keep :]):
            old.unlink()

    def files(self) -> list[Path]:
        """The checkpoints there are, of the most rounds first, of equal ones the latest."""
        found = [path for path in self.folder.glob("round-*.safetensors") if NAME.fullmatch(path.name)]
        return sorted(found, key=lambda path: (_round(path), path.lstat().st_mtime_ns), reverse=True)

    def good(self, most: float = math.inf) -> Iterator[Saved]:
        """Good checkpoints of at most so many rounds, the latest first; damaged ones are named in a line each."""
        for path in (path for path in self.files() if _round(path) <= most):
            found = _read(path)
            if isinstance(found, Saved):
                yield found
            else:
                warning(f"{path} is passed over: {found}")

    def newest(self, most: float = math.inf) -> Saved | None:
        """The last good checkpoint of at most so many rounds, or None."""
        return next(self.good(most), None)


def _round(path: Path) -> int:
    return int(path.name.split("-")[1])


def _remove(own: Path) -> None:
    """Remove a piece; what cannot be removed stays, for the next checkpoint to try again."""
    with suppress(OSError):
        shutil.rmtree(own) if own.is_dir() else own.unlink()  # neither follows links


def _read(path: Path) -> Saved | str:
    """What a file holds, or what is wrong with it."""
    try:
        # The digest stands in the name, outside what it is of: damage shows before any number is believed.
        if _digest(path) != path.stem.split("-")[2]:
            return "it is damaged, its bytes are not those of its sha256"
        metadata, arrays = open_file(path)
        header = json.loads(metadata["fedsim"])
        done, written = header["round"], header["format"]
        numbers, notes = dict(header["numbers"]), dict(header["notes"])
    except OSError as error:
        return f"it cannot be read, {first_line(error)}"
    except (SafetensorError, ValueError, TypeError, KeyError, RecursionError) as error:
        return f"it is no checkpoint ({type(error).__name__})"  # whoever wrote it gave it its digest
    require(written == FORMAT, str(path), f"have format {FORMAT}", written, "use its fedsim")
    return Saved(done, _today(arrays), _today(numbers), notes) if done == _round(path) else "it is of another round"


def _today(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Leaves by the paths of today: earlier runs did not name the one store, or the one link, that they had."""
    link = "edge" if "run/totals/comm/edges_total" in leaves else "uplink"
    return {
        f"run/plain/comm/{link}" if path == "run/plain" else re.sub("^run/store/", "run/stores/0/", path): leaf
        for path, leaf in leaves.items()
    }


def _digest(path: Path) -> str:
    hashed = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(2**20):
            hashed.update(piece)
    return hashed.hexdigest()


def _children(tree: Any, path: str) -> Iterator[tuple[Any, str, Any]] | None:
    """(key, path, subtree) of a node's children; None of a leaf."""
    if isinstance(tree, dict):
        return ((key, f"{path}/{key}" if path else str(key), value) for key, value in tree.items())
    if isinstance(tree, tuple):
        names = getattr(tree, "_fields", range(len(tree)))
        return ((i, f"{path}/{n}" if path else str(n), v) for i, (n, v) in enumerate(zip(names, tree, strict=True)))
    return None


def _leaves(tree: Any, path: str) -> Iterator[tuple[str, Any]]:
    children = _children(tree, path)
    if children is not None:
        for _, name, value in children:
            yield from _leaves(value, name)
    elif isinstance(tree, (Tensor, np.ndarray)):
        array = tree.detach().cpu().numpy() if isinstance(tree, Tensor) else tree
        yield path, np.asarray(array, order="C")
    elif isinstance(tree, Streamed):
        yield path, tree
    else:
        yield path, tree.item() if isinstance(tree, np.generic) else tree


def _rebuilt(fresh: Any, path: str, saved: Saved, wanted: set[str], *, rows: bool = False) -> Any:
    children = _children(fresh, path)
    if children is not None:
        rows = rows or isinstance(fresh, SavedRows)
        built = {key: _rebuilt(value, name, saved, wanted, rows=rows) for key, name, value in children}
        if isinstance(fresh, dict):
            return built
        return type(fresh)(*built.values()) if hasattr(fresh, "_fields") else tuple(built.values())
    wanted.discard(path)
    if not isinstance(fresh, (Tensor, np.ndarray, Streamed)):
        if path not in saved.numbers:
            raise InputError(f"the checkpoint must hold this run's state, got none of {path}")
        number = saved.numbers[path]
        if fresh is not None and isinstance(number, (int, float)) != isinstance(fresh, (int, float)):
            raise InputError(
                f"the checkpoint must hold {path} as a {type(fresh).__name__}, got {type(number).__name__}"
            )
        return number
    found = saved.arrays.get(path)
    empty = fresh.detach().cpu().numpy() if isinstance(fresh, Tensor) else fresh
    if found is None or found.dtype != empty.dtype or found.shape[rows:] != empty.shape[rows:]:
        got = "none" if found is None else f"{found.dtype} {list(found.shape)}"
        raise InputError(f"the checkpoint must hold {path} as {empty.dtype} {list(empty.shape)}, got {got}")
    if isinstance(fresh, Streamed):
        return found if isinstance(found, Streamed) else Streamed(found.dtype, found.shape, partial(_between, found))
    whole = np.asarray(found)
    return torch.from_numpy(whole).clone().to(fresh.device) if isinstance(fresh, Tensor) else whole  # aligned by torch


def _between(array: np.ndarray, start: int, stop: int) -> np.ndarray:
    return array[start:stop]
