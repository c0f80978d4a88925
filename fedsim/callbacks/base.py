"""What a callback is, what it is told of its run, and what the shipped ones share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from fedsim.errors import InputError, require


@dataclass(frozen=True)
class RunView:
    """What a callback may know of the run that it listens to; nothing of it can change the run.

    Attributes:
        name: what the run is called.
        config: the resolved configuration, as in config.yaml.
        folder: the run's folder, or None for a run that writes nothing.
        rounds: how many rounds there shall be.
        records: of the rounds that are done before this process plays any: none for a new run, those that were kept
            for a resumed one.
        model: called without arguments: a copy of the global model (of peers: their mean) as it is now, in evaluation
            mode; None for a method that has none.
    """

    name: str
    config: Mapping[str, Any]
    folder: Path | None
    rounds: int
    records: Sequence[Mapping[str, float]]
    model: Callable[[], nn.Module | None]

    def file(self, path: str | None, name: str, key: str) -> Path:
        """Where a callback writes: ``path`` if it was given one, else ``name`` in the run's folder.

        Raises:
            InputError: there is neither.
        """
        require(path is not None or self.folder is not None, key, "be given for a run without a folder", path)
        return Path(path) if path is not None else Path(self.folder or ".") / name


class Callback(Protocol):
    """Listens to a run, in the process that drives it. A subclass overrides what it needs.

    A method that raises is named in one line. In ``begin`` that ends the run before its first round; later the run
    goes on without this callback, so that no round is lost for it.
    """

    def begin(self, run: RunView) -> None:
        """The run is about to play its first round here; what an earlier run left in this object is forgotten.

        Args:
            run: what it is. Of a resumed run, ``run.records`` are the rounds before: a callback that remembers
                anything makes its memory from them, so that it is as if it had listened all along.
        """

    def record(self, record: Mapping[str, float]) -> str | None:
        """A round is done and on record, round 0 being the initial model's evaluation.

        Args:
            record: every scalar of the round by its tag, and ``round``; it cannot be changed.

        Returns:
            Why the run shall stop now, in a few words, or None.
        """
        return None

    def end(self, summary: Mapping[str, Any]) -> None:
        """The run is over, whatever its status; called once.

        Args:
            summary: the content of summary.json: ``status``, last and best of each ``eval/*``, ``digest``.
        """


def require_package(module: str, extra: str, key: str) -> None:
    """Raise InputError unless a package of an extra is installed."""
    if find_spec(module) is None:
        raise InputError(f"{key} needs the package {module}, got none; pip install 'fedsim-ray[{extra}]'")


def scalars(record: Mapping[str, float]) -> dict[str, float]:
    """The tags of a record, without its number."""
    return {tag: value for tag, value in record.items() if "/" in tag}
