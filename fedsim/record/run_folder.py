"""A run's folder: everything a run leaves behind, written so that nothing already written is ever lost.

    config.yaml       the resolved configuration
    provenance.json   where the numbers come from (``record.provenance``); "resumed" tells how the run went on later
    names.json        of data whose labels or clients have names: {"classes": {name: number}, "clients": ...}
    metrics.jsonl     one line per round: every TensorBoard scalar by its tag, and "round"; non-finite numbers are null
    tensorboard/      one event file, and one more for each time the run was resumed
    checkpoints/      what ``fedsim resume=FOLDER`` goes on from (``fedsim.record.checkpoint``)
    trajectory.npz    on request: x [rounds + 1, d], or [rounds + 1, n, d] for peers, a row for each line of
                      metrics.jsonl; in virtual time also t [rounds + 1]
    events.npz        on request, of a run in virtual time: what happened when
    model.safetensors, model_best.safetensors    the last model and the best one (``fedsim.record.kept_models``)
    clients.parquet   with ``evaluate.clients`` and pyarrow: every client's own values (``fedsim.record.clients_file``)
    summary.json      ``run_summary``; its presence says that the run came to an end

metrics.jsonl grows by whole lines only, each handed to the operating system before ``write`` returns; the other files
are written beside their final name, synchronised and renamed.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from itertools import islice
from pathlib import Path, PurePath
from types import TracebackType
from typing import Any, Literal

import numpy as np
import yaml

from fedsim.errors import InputError
from fedsim.evaluate import is_better
from fedsim.ground.console import warning
from fedsim.ground.files import atomic_file, is_own_file, leftovers
from fedsim.record.clients_file import CLIENTS
from fedsim.record.kept_models import BEST, LAST
from fedsim.record.papers import papers
from fedsim.record.tensorboard import EventFile, Picture, own_event_files

Status = Literal["finished", "stopped", "diverged", "failed", "interrupted"]

DONE = ("finished", "stopped")
"""How a run ends that came to what was asked of it: all rounds, or a callback's word that it is enough."""

ATOMIC = (
    r"(config\.yaml|(names|provenance|summary)\.json|(trajectory|events)\.npz|model(_best)?\.safetensors"
    r"|clients\.parquet)"
)
"""Names of files that are written under another name first, as a regular expression."""


class RunFolder:
    """Writer of one run's folder; a context manager that closes its files whatever happens.

    Attributes:
        path: the folder, absolute.
        records: of the rounds that were there when a resumed run opened it.
    """

    def __init__(self, path: Path, metrics: Any, events: EventFile, records: Sequence[dict[str, float]] = ()) -> None:
        self.path = path
        self.records = records
        self._metrics = metrics
        self._events = events

    @classmethod
    def create(cls, path: str | Path, config: Mapping[str, Any], provenance: Mapping[str, Any]) -> RunFolder:
        """Start a new run in ``path``, which may exist but must not hold a run.

        Args:
            path: the folder; parents are created.
            config: resolved configuration, for config.yaml and TensorBoard's hyper-parameters.
            provenance: ``fedsim.record.provenance.provenance(...)``.

        Raises:
            InputError: the folder already holds a run, or cannot be written.
        """
        path = Path(path).absolute()
        try:
            path.mkdir(parents=True, exist_ok=True)
            # Exclusive: of two runs that begin in one folder at once, one gets an error. Unbuffered: a line is with the
            # system when the call returns, so that a killed process loses none.
            metrics = (path / "metrics.jsonl").open("xb", buffering=0)
        except FileExistsError:
            problem = "already holds a run (metrics.jsonl)" if path.is_dir() else "is a file"
            raise InputError(f"the run's folder must be new, got {path}, which {problem}; choose another") from None
        except OSError as e:
            raise InputError(f"the run's folder must be writable, got {path}: {e.strerror}; choose another") from e
        return cls._begin(path, metrics, config, provenance)

    @classmethod
    def reopen(
        cls, path: str | Path, config: Mapping[str, Any], provenance: Mapping[str, Any], done: int | None
    ) -> RunFolder:
        """Go on in a run's folder: rounds after ``done`` are forgotten, as is how the run ended.

        Args:
            path: the folder; one without a run begins one.
            config: resolved configuration; it may differ from the first in how the run is executed.
            provenance: of what goes on now; noted beside the first.
            done: the last round to keep; None begins the run anew.

        Raises:
            InputError: the run is still going on, or a round to keep is not in metrics.jsonl.
            OSError: a file cannot be opened or written.
        """
        path = Path(path).absolute()
        if done is None and not os.path.lexists(path / "metrics.jsonl"):
            return cls.create(path, config, provenance)
        with ExitStack() as unless_opened:
            metrics = unless_opened.enter_context(_unlinked(path / "metrics.jsonl"))
            _lock(metrics, path)
            # Rounds after the checkpoint are cut off: they are computed again, and no record must stand there twice.
            records, end = ([], 0) if done is None else _read(path / "metrics.jsonl", done)
            metrics.truncate(end)
            metrics.seek(end)
            # The model of where the run stopped stays until there is a newer one: this attempt may yet be refused.
            anew = (*(() if done else (BEST,)), *((LAST, CLIENTS) if done is None else ()))
            for name in ("summary.json", "trajectory.npz", *anew):
                (path / name).unlink(missing_ok=True)
            for left in filter(is_own_file, leftovers(path, ATOMIC)):
                left.unlink()
            if done is None:
                for file in own_event_files(path / "tensorboard"):
                    file.unlink()
                folder = cls._begin(path, metrics, config, provenance)
            else:
                _write_config(path, config)
                _write_json(path / "provenance.json", _resumed(path / "provenance.json", done, provenance))
                folder = cls(path, metrics, EventFile(path / "tensorboard", config, begin=done + 1), records)
            unless_opened.pop_all()
        return folder

    @classmethod
    def _begin(cls, path: Path, metrics: Any, config: Mapping[str, Any], provenance: Mapping[str, Any]) -> RunFolder:
        _lock(metrics, path)
        text = _write_config(path, config)
        _write_json(path / "provenance.json", provenance)
        events = EventFile(path / "tensorboard", config)
        events.text("config", f"```yaml\n{text}```")
        if cited := papers(config):
            events.text("papers", "```bibtex\n" + "\n\n".join(paper.bibtex() for paper in cited) + "\n```")
        return cls(path, metrics, events)

    def write(self, record: Mapping[str, float | int]) -> None:
        """Write one round: a line of metrics.jsonl, and every tag with a "/" as a scalar at step ``record["round"]``.

        Raises:
            OSError: the disk is full or gone; metrics.jsonl still consists of whole lines.
        """
        line = json.dumps(_plain(record, null=True), allow_nan=False).encode() + b"\n"
        self._append(line)
        self._events.scalars({tag: value for tag, value in record.items() if "/" in tag}, int(record["round"]))

    def picture(self, tag: str, picture: Picture, step: int = 0) -> None:
        """Write a picture for TensorBoard."""
        self._events.picture(tag, picture, step)

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

    def events(self, t: np.ndarray, i: np.ndarray, j: np.ndarray) -> None:
        """Write events.npz: [m] times, ascending, peers i and j of a meeting; j = -1 for a gradient event of i."""
        with atomic_file(self.path / "events.npz") as file:
            np.savez(file, allow_pickle=False, t=t, i=i, j=j)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write summary.json and how the run ended, unless it may go on, and close the folder."""
        _write_json(self.path / "summary.json", summary)
        if summary["status"] != "interrupted":  # TensorBoard believes the first end that it reads
            self._events.end(success=summary["status"] in DONE)
        self.close()

    def names(self, **named: Sequence[str]) -> None:
        """Write names.json: for each keyword {name: number} of the names of 0, 1, ..."""
        content = {key: {name: number for number, name in enumerate(names)} for key, names in named.items() if names}
        _write_json(self.path / "names.json", content)

    def sync(self) -> None:
        """See to it that every round is on disk."""
        os.fsync(self._metrics.fileno())

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
        left = line
        try:
            while left:  # a disk that becomes full takes a part, and says why when it is given the rest
                left = left[self._metrics.write(left) :]
        except OSError as error:
            with suppress(OSError):
                self._metrics.truncate(end)
            raise OSError(error.errno, error.strerror, str(self.path / "metrics.jsonl")) from error


def run_summary(
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
        smallest value of a tag that ``fedsim.evaluate.lower_is_better``, else the largest, at the earliest round that
        reached it, round 0 included; non-finite values are never best (None if there is no other). For every
        ``comm/*_bytes`` tag its sum over the rounds (cumulated ``*_total_*`` tags are left out); the last
        ``comm/*_ratio``, ``privacy/*`` and ``gossip/*``;
        ``time/wall_s``; ``digest``.
    """
    tags = list(dict.fromkeys(tag for record in records for tag in record))
    summary: dict[str, Any] = {"status": status, "rounds": int(records[-1]["round"]) if records else 0}
    for tag in tags:
        series = [(int(record["round"]), record[tag]) for record in records if tag in record]
        if tag.startswith("eval/"):
            at, best = None, None
            for number, value in series:
                if is_better(tag, value, best):
                    at, best = number, value
            summary[tag] = {"last": series[-1][1], "best": best, "best_round": at}
        elif tag.startswith("comm/") and tag.endswith("_bytes") and "_total_" not in tag:
            summary[tag] = sum(value for _, value in series)
        elif tag.startswith(("privacy/", "gossip/")) or tag.endswith("_ratio"):
            summary[tag] = series[-1][1]
    return summary | {"time/wall_s": wall_s, "digest": digest}


def summary_of(folder: Path) -> dict[str, Any] | None:
    """The content of a run's summary.json; None where there is none, or a damaged one, and the run may go on."""
    try:
        found = json.loads((folder / "summary.json").read_text())
    except (OSError, ValueError, RecursionError):
        return None
    whole = isinstance(found, dict) and isinstance(found.get("status"), str) and isinstance(found.get("rounds"), int)
    return found if whole else None


def _lock(metrics: Any, path: Path) -> None:
    """Keep others out while this process writes; the lock ends with the file or the process."""
    try:
        fcntl.flock(metrics, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        metrics.close()
        raise InputError(f"the run in {path} must have ended, got one that is going on; wait, or stop it") from None


def _unlinked(path: Path) -> Any:
    """A file to go on writing, and not what a link of its name points at; unbuffered."""
    return os.fdopen(os.open(path, os.O_RDWR | os.O_NOFOLLOW), "r+b", buffering=0)


def rounds_recorded(path: Path) -> int:
    """How many rounds, from round 0 on, metrics.jsonl holds whole; 0 where it cannot be read."""
    try:
        return sum(1 for _ in _whole(path / "metrics.jsonl"))
    except OSError:
        return 0


def _whole(path: Path) -> Iterator[tuple[dict[str, float], int]]:
    """Rounds 0, 1, ... of metrics.jsonl up to the first damaged line, each with the length of its line."""
    for at, line in enumerate(path.read_bytes().splitlines(keepends=True)):
        try:
            record = json.loads(line) if line.endswith(b"\n") else None
        except (ValueError, RecursionError):
            return
        if not isinstance(record, dict) or record.get("round") != at:
            return
        if not all(value is None or isinstance(value, (int, float)) for value in record.values()):
            return
        yield {tag: math.nan if value is None else value for tag, value in record.items()}, len(line)


def _read(path: Path, done: int) -> tuple[list[dict[str, float]], int]:
    """Rounds 0..done of metrics.jsonl, and where their lines end; what is null there is nan."""
    found = list(islice(_whole(path), done + 1))
    records, end = [record for record, _ in found], sum(length for _, length in found)
    if len(records) != done + 1:
        raise InputError(
            f"{path} must hold rounds 0 to {done}, got a damaged line or none for round {len(records)}; "
            "restore the file, or run again in another folder"
        )
    return records, end


def _resumed(path: Path, done: int, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """provenance.json of a run that goes on; one that cannot be read begins with what goes on now."""
    try:
        first = dict(json.loads(path.read_text()))
        before = list(first.get("resumed", []))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        warning(f"{path} cannot be read ({type(error).__name__}): where the earlier rounds come from is lost")
        first, before = dict(provenance), []
    return first | {"resumed": [*before, {"after_round": done, **provenance}]}


def _write_config(path: Path, config: Mapping[str, Any]) -> str:
    text: str = yaml.safe_dump(_plain(config), sort_keys=False, allow_unicode=True)
    with atomic_file(path / "config.yaml") as file:
        file.write(text.encode())
    return text


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
