"""A sweep's folder: which jobs there are and how each stands, so that the same command goes on where it stopped.

    jobs/KEY.json   one job; KEY is the hash of its resolved configuration, so that a job is found again whatever the
                    command that describes it, and a sweep that grows keeps what it has
    sweep.json      the last command
    .lock           held by the process that runs the sweep, and by its workers: the next one waits for stragglers

A state file is replaced as a whole, by whoever runs the job; nothing else in a finished job's folder is touched again.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from fedsim.errors import InputError, first_line
from fedsim.ground.files import atomic_file, leftovers
from fedsim.record.fingerprint import FREE
from fedsim.record.run_folder import summary_of
from fedsim.sweep.expand import SweepJob, folder_name
from fedsim.sweep.machine import stopping

Standing = Literal["pending", "running", "finished", "stopped", "diverged", "failed", "interrupted"]

METHOD = ("algorithm", "aggregate", "channel", "downlink", "privacy")
"""What makes a method; the rest is the setting in which methods are compared."""
PATIENCE_S = 15.0
"""How long to wait for the workers of a sweep whose command was killed."""
FORMAT = 1
STATE = re.compile(r"[0-9a-f]{16}\.json")  # names of state files; others in their folder are somebody else's


@dataclass(frozen=True)
class State:
    """How one job of a sweep stands; the content of its state file.

    Attributes:
        identity: hash of the resolved configuration without what never changes a bit.
        pairing: hash of the setting: equal ones share data, split, cohorts, first model and batches for a seed.
        number: its place in the sweep.
        folder: its run folder, below the sweep's.
        overrides: its command line.
        varied: those in which the jobs differ.
        seed: of the run.
        status: pending, running, finished, stopped (by a callback), diverged, failed or interrupted.
        message: why it failed, diverged, stopped or was interrupted.
        rounds: done, of ``rounds_total``.
        summary: of the run's folder once it came to an end.
        started: UTC, of the last attempt.
        ended: UTC.
        attempts: how often it was started.
        code: version and commit that ran it.
    """

    identity: str
    pairing: str
    number: int
    folder: str
    overrides: tuple[str, ...]
    varied: tuple[str, ...]
    seed: int
    rounds_total: int
    status: Standing = "pending"
    message: str = ""
    rounds: int = 0
    summary: dict[str, Any] | None = None
    started: str | None = None
    ended: str | None = None
    attempts: int = 0
    code: dict[str, Any] | None = None

    @property
    def name(self) -> str:
        """What tells the job from the others, for people."""
        return " ".join(self.varied) or self.folder

    @property
    def unfinished(self) -> bool:
        """Whether the same command goes on with it."""
        return self.status in ("pending", "running", "interrupted")


def identity(config: Mapping[str, Any]) -> str:
    """sha256 of a resolved configuration without the keys that never change a bit; callbacks may end a run sooner."""
    kept = _without(config, FREE - {"rounds"})
    if config.get("callbacks"):
        kept["callbacks"] = config["callbacks"]
    return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()


def pairing(config: Mapping[str, Any]) -> str:
    """sha256 of the setting: the configuration without the method and the seed."""
    return identity({key: value for key, value in config.items() if key not in (*METHOD, "seed")})


def now() -> str:
    """UTC, ISO 8601, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


class SweepFolder:
    """The jobs of one sweep, by the hash of their configuration.

    Attributes:
        path: the folder, absolute.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).absolute()

    @contextmanager
    def held(self, command: Sequence[str], arguments: Sequence[str]) -> Iterator[None]:
        """Make the folder, keep others out of it, and see how its jobs stand after whatever happened before.

        Raises:
            InputError: another process runs this sweep, or the folder cannot be made.
            SweepStopped: the disk failed, before or in the block.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            what = f"got {self.path}: {error.strerror}; choose another with hydra.sweep.dir=FOLDER"
            raise InputError(f"the sweep's folder must be writable, {what}") from error
        with stopping(self.path), self._locked():
            (self.path / "jobs").mkdir(exist_ok=True)
            for left in (*leftovers(self.path, r"sweep\.json"), *leftovers(self.path / "jobs", STATE.pattern)):
                left.unlink()
            self._note(command, arguments)
            for state in self.states():
                if state.status in ("running", "interrupted"):
                    self.write(self.seen(state))
            yield

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with (self.path / ".lock").open("a") as lock:
            until = time.monotonic() + PATIENCE_S
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > until:
                        raise InputError(
                            f"{self.path} is being run by another fedsim; wait for it or stop it"
                        ) from None
                    time.sleep(0.1)
            yield

    def states(self) -> list[State]:
        """All jobs in order."""
        found = [path for path in (self.path / "jobs").glob("*.json") if STATE.fullmatch(path.name)]
        return sorted(map(_read, found), key=lambda state: state.number)

    def find(self, key: str) -> State | None:
        """The job whose configuration has this identity, or None."""
        path = self._file(key)
        return _read(path) if path.exists() else None

    def write(self, state: State) -> None:
        """Replace a job's state file as a whole."""
        with atomic_file(self._file(state.identity)) as file:
            file.write(json.dumps(asdict(state), indent=1).encode() + b"\n")

    def claim(self, jobs: Iterable[tuple[SweepJob, Mapping[str, Any]]]) -> list[State]:
        """The states of jobs with their configurations, new ones written as pending; jobs of one configuration are one.

        Returns:
            In the order of the jobs.
        """
        known = {state.identity: state for state in self.states()}
        folders = {state.folder for state in known.values()}
        claimed: dict[str, State] = {}
        for job, config in jobs:
            key = identity(config)
            if key not in known:
                # A job of more rounds goes on in the folder of one of fewer, from its checkpoint; unless the run is
                # private.
                name = job.folder if config.get("privacy") is None else None  # noise depends on the number of rounds
                if name is None:
                    name = folder_name(job.varied)
                    name = f"{name}-{key[:6]}" if name in (*folders, "jobs") else name
                known[key] = State(
                    identity=key,
                    pairing=pairing(config),
                    number=len(known),
                    folder=name,
                    overrides=job.overrides,
                    varied=job.varied,
                    seed=config["seed"],
                    rounds_total=config["rounds"],
                )
                folders.add(name)
                self.write(known[key])
            claimed[key] = known[key]
        return list(claimed.values())

    def _file(self, key: str) -> Path:
        return self.path / "jobs" / f"{key[:16]}.json"

    def _note(self, command: Sequence[str], arguments: Sequence[str]) -> None:
        with atomic_file(self.path / "sweep.json") as file:
            content = {"format": FORMAT, "command": list(command), "arguments": list(arguments)}
            file.write(json.dumps(content, indent=1).encode() + b"\n")

    def seen(self, state: State, why: str = "the sweep was killed while it ran") -> State:
        """A job that did not see its end: it may just have come to it, or have gone on by ``fedsim resume=``.

        Args:
            state: how it stood.
            why: it was interrupted, if it ran.
        """
        summary = summary_of(self.path / state.folder)
        done = summary is not None and summary["rounds"] >= state.rounds_total
        if summary is not None and (
            summary["status"] in ("stopped", "diverged") or (summary["status"] == "finished" and done)
        ):
            message = summary.get("message", "")
            return replace(state, status=summary["status"], message=message, rounds=summary["rounds"], summary=summary)
        return replace(state, status="interrupted", message=why if state.status == "running" else state.message)


def _without(node: Mapping[str, Any], names: Iterable[str], prefix: str = "") -> dict[str, Any]:
    return {
        key: _without(value, names, f"{prefix}{key}.") if isinstance(value, Mapping) else value
        for key, value in node.items()
        if prefix + key not in names
    }


def _read(path: Path) -> State:
    known = {field.name for field in fields(State)}
    try:
        content = {key: value for key, value in json.loads(path.read_text()).items() if key in known}
        for key in ("overrides", "varied"):
            content[key] = tuple(content[key])
        return State(**content)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(
            f"{path} must be a job's state, got {first_line(error)}; remove it to run the job anew"
        ) from error
