"""A run's folder: everything a run leaves behind, written so that nothing already written is ever lost.

    config.yaml       the resolved configuration
    provenance.json   where the numbers come from (``fedsim.provenance``)
    metrics.jsonl     one line per round: every TensorBoard scalar by its tag, and "round"; non-finite numbers are null
    tensorboard/      one event file
    trajectory.npz    on request: x [rounds + 1, d], or [rounds + 1, n, d] for peers, and what else the run recorded
    summary.json      ``summarise``; its presence says that the run came to an end

metrics.jsonl grows by whole lines only, each handed to the operating system before ``write`` returns; the other files
are written beside their final name, synchronised and renamed.
"""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePath
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import numpy as np
import yaml

from fedsim.errors import InputError
from fedsim.tensorboard import EventFile

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Status = Literal["finished", "diverged", "failed", "interrupted"]

LOWER_IS_BETTER = frozenset({"loss", "mse", "rmse", "mae", "error", "perplexity", "distance", "gap", "std", "norm2"})


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A binary file that appears under ``path`` whole, on disk, and only if the block succeeds."""
    temp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temp.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temp, path)
    except BaseException:
        temp.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


class RunFolder:
    """Writer of one run's folder; a context manager that closes its files whatever happens.

    Attributes:
        path: the folder, absolute.
    """

    def __init__(self, path: Path, metrics: Any, events: EventFile) -> None:
        self.path = path
        self._metrics = metrics
        self._events = events

    @classmethod
    def create(cls, path: str | Path, config: Mapping[str, Any], provenance: Mapping[str, Any]) -> RunFolder:
        """Start a new run in ``path``, which may exist but must not hold a run.

        Args:
            path: the folder; parents are created.
            config: resolved configuration, for config.yaml and TensorBoard's hyper-parameters.
            provenance: ``fedsim.provenance.provenance(...)``.

        Raises:
            InputError: the folder already holds a run, or cannot be written.
        """
        path = Path(path).absolute()
        try:
            path.mkdir(parents=True, exist_ok=True)
            metrics = (path / "metrics.jsonl").open("xb", buffering=0)
        except FileExistsError:
            problem = "already holds a run (metrics.jsonl)" if path.is_dir() else "is a file"
            raise InputError(f"the run's folder must be new, got {path}, which {problem}; choose another") from None
        except OSError as e:
            raise InputError(f"the run's folder must be writable, got {path}: {e.strerror}; choose another") from e
        text = yaml.safe_dump(_plain(config), sort_keys=False, allow_unicode=True)
        with atomic_file(path / "config.yaml") as file:
            file.write(text.encode())
        _write_json(path / "provenance.json", provenance)
        events = EventFile(path / "tensorboard", config)
        events.text("config", f"```yaml\n{text}```")
        return cls(path, metrics, events)

    def write(self, record: Mapping[str, float | int]) -> None:
        """Write one round: a line of metrics.jsonl, and every tag with a "/" as a scalar at step ``record["round"]``.

        Raises:
            OSError: the disk is full or gone; metrics.jsonl still consists of whole lines.
        """
        line = json.dumps(_plain(record, null=True), allow_nan=False).encode() + b"\n"
        self._append(line)
        self._events.scalars({tag: value for tag, value in record.items() if "/" in tag}, int(record["round"]))

    def figure(self, tag: str, figure: Figure, step: int = 0) -> None:
        """Write a matplotlib figure as a TensorBoard image."""
        self._events.figure(tag, figure, step)

    def text(self, tag: str, text: str) -> None:
        """Write Markdown to TensorBoard's text page."""
        self._events.text(tag, text)

    def trajectory(self, points: np.ndarray, **arrays: np.ndarray) -> None:
        """Write trajectory.npz.

        Args:
            points: models after each round, under the key ``x``: [rounds + 1, d] or [rounds + 1, n, d].
            arrays: further arrays by name, for example ``t`` [rounds + 1].
        """
        with atomic_file(self.path / "trajectory.npz") as file:
            np.savez(file, allow_pickle=False, x=points, **arrays)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write summary.json and how the run ended, and close the folder."""
        _write_json(self.path / "summary.json", summary)
        self._events.end(success=summary["status"] == "finished")
        self.close()

    def close(self) -> None:
        """Close the files; harmless when they are closed."""
        self._metrics.close()
        self._events.close()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _append(self, line: bytes) -> None:
        end = self._metrics.tell()
        written = self._metrics.write(line)
        if written != len(line):
            self._metrics.truncate(end)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path / "metrics.jsonl"))


def summarise(
    records: Sequence[Mapping[str, float | int]], status: Status, digest: str, wall_s: float
) -> dict[str, Any]:
    """What a run came to, from its records.

    Args:
        records: what was given to ``RunFolder.write``, in order; not every record needs every tag.
        status: how the run ended.
        digest: sha256 over the final server state or all peers' models.
        wall_s: wall-clock seconds.

    Returns:
        ``status``; ``rounds`` completed; for every ``eval/*`` tag ``{"last", "best", "best_round"}``: best is the
        smallest value if a word of the tag is in ``LOWER_IS_BETTER``, else the largest, at the earliest round that
        reached it, round 0 included; non-finite values are never best (None if there is no other). For every
        ``comm/*_bytes`` tag its sum over the rounds (cumulated ``*_total_*`` tags are left out); the last
        ``comm/*_ratio`` and ``privacy/*``;
        ``time/wall_s``; ``digest``.
    """
    tags = list(dict.fromkeys(tag for record in records for tag in record))
    summary: dict[str, Any] = {"status": status, "rounds": int(records[-1]["round"]) if records else 0}
    for tag in tags:
        series = [(int(record["round"]), record[tag]) for record in records if tag in record]
        if tag.startswith("eval/"):
            sign = -1 if LOWER_IS_BETTER & set(tag.removeprefix("eval/").split("_")) else 1
            finite = [(at, value) for at, value in series if math.isfinite(value)]
            at, value = max(finite, key=lambda point: sign * point[1], default=(None, None))
            summary[tag] = {"last": series[-1][1], "best": value, "best_round": at}
        elif tag.startswith("comm/") and tag.endswith("_bytes") and "_total_" not in tag:
            summary[tag] = sum(value for _, value in series)
        elif tag.startswith("privacy/") or tag.endswith("_ratio"):
            summary[tag] = series[-1][1]
    return summary | {"time/wall_s": wall_s, "digest": digest}


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    with atomic_file(path) as file:
        file.write(json.dumps(_plain(content, null=True), indent=2, allow_nan=False).encode() + b"\n")


def _plain(value: Any, *, null: bool = False) -> Any:
    """Containers, numpy numbers and paths as JSON and YAML know them; with ``null``, non-finite numbers as None."""
    if isinstance(value, (np.generic, np.ndarray)):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _plain(item, null=null) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, null=null) for item in value]
    if isinstance(value, PurePath):
        return str(value)
    return None if null and isinstance(value, float) and not math.isfinite(value) else value
