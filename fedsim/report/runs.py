"""RecordedRun folders found and read as they are: finished, failed, or still being written."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from fedsim.errors import InputError, first_line
from fedsim.ground.flat import flat_hyperparameters

UNFINISHED = "unfinished"  # no summary.json: still running, or killed


@dataclass(frozen=True)
class RecordedRun:
    """One run's folder.

    Attributes:
        path: the folder.
        config: config.yaml.
        metrics: by tag, [rounds on record] floats, NaN where a round did not measure it or it was not finite;
            ``round`` ascends.
        summary: summary.json, or {} while there is none.
        provenance: provenance.json, or {}.
        job: the sweep's record of it, or {}.
    """

    path: Path
    config: Mapping[str, Any]
    metrics: Mapping[str, np.ndarray]
    summary: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    job: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def flat(self) -> dict[str, bool | float | str]:
        """The configuration with dotted keys; a group's own key holds the name of its class."""
        return flat_hyperparameters(self.config)

    @property
    def seed(self) -> int:
        """Of everything random in the run."""
        return int(self.config.get("seed", 0))

    @property
    def status(self) -> str:
        """``finished``, ``stopped``, ``diverged``, ``failed``, ``interrupted`` or ``unfinished``."""
        known = self.job.get("status")
        return str(self.summary.get("status", known if known in ("failed", "interrupted") else UNFINISHED))

    @property
    def rounds(self) -> np.ndarray:
        """[rounds on record] their numbers; 0 is the initial model."""
        return self.metrics["round"]

    def series(self, tag: str) -> np.ndarray:
        """[rounds on record] the values of a tag, NaN where there are none."""
        return self.metrics.get(tag, np.full(len(self.rounds), np.nan))


def find_runs(folders: Iterable[Path]) -> list[Path]:
    """The run folders in and below ``folders`` (those with config.yaml and metrics.jsonl), each once, in order.

    Raises:
        InputError: a folder does not exist, or no run was found.
    """
    found: dict[Path, None] = {}
    listed = list(folders)
    for folder in listed:
        if not folder.is_dir():
            raise InputError(f"DIR must be a folder with runs, got {str(folder)!r}, which is no folder")
        for place, below, files in os.walk(folder):
            below.sort()
            if {"config.yaml", "metrics.jsonl"} <= set(files):
                found[Path(place).resolve()] = None
    if not found:
        where = ", ".join(str(folder) for folder in listed)
        raise InputError(f"DIR must hold runs (config.yaml and metrics.jsonl), got none below {where}")
    return list(found)


def read_run(path: Path, job: Mapping[str, Any] | None = None) -> RecordedRun:
    """Read one run; ``job`` is the sweep's record of it.

    A last line of metrics.jsonl that is still being written is left out; of a round on record twice the last counts.

    Raises:
        InputError: a file is not what a run writes; the message names it.
    """
    try:
        config = load_yaml(path / "config.yaml")
        metrics = _metrics(path / "metrics.jsonl")
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path / 'config.yaml'} is not YAML ({str(error).splitlines()[0]})") from error
    except OSError as error:
        raise InputError(f"{error.filename or path} cannot be read ({error.strerror})") from error
    if not isinstance(config, dict) or not isinstance(config.get("seed", 0), int):
        raise InputError(f"{path / 'config.yaml'} holds no configuration")
    return RecordedRun(path, config, metrics, _summary(path), _provenance(path), job or {})


def load_yaml(path: Path) -> Any:
    """The content of a YAML file, by libyaml where PyYAML has it: ten times as fast."""
    return yaml.load(path.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def _metrics(path: Path) -> dict[str, np.ndarray]:
    records: dict[int, dict[str, Any]] = {}
    for record in _lines(path):
        records[int(record["round"])] = record
    if not records:
        raise InputError(f"{path} holds no round yet")
    ordered = [records[number] for number in sorted(records)]
    tags = dict.fromkeys(tag for record in ordered for tag in record)
    return {tag: np.array([_number(record.get(tag)) for record in ordered]) for tag in tags}


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            if number == len(lines):  # no newline yet
                return
            raise InputError(f"{path} is not one JSON record a line (line {number}: {first_line(error)})") from error
        if not isinstance(record, dict) or not isinstance(record.get("round"), int):
            raise InputError(f"{path} is not a run's record (line {number} has no round)")
        yield record


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else math.nan


def _summary(folder: Path) -> dict[str, Any]:
    """summary.json, or {} where there is none."""
    found = _json(folder / "summary.json")
    if not isinstance(found.get("status", ""), str) or not isinstance(found.get("rounds", 0), int):
        raise InputError(f"{folder / 'summary.json'} is no summary of a run")
    return found


def _provenance(folder: Path) -> dict[str, Any]:
    """What provenance.json says, {} where there is none; what is not of the kind that a run writes is left out."""
    found = _json(folder / "provenance.json")
    nested = ("git", "versions", "cpu", "data")
    return {key: value for key, value in found.items() if key not in nested or isinstance(value, dict)}


def _json(path: Path) -> dict[str, Any]:
    """A JSON object, or {} where there is no such file."""
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON ({first_line(error)})") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds no JSON object")
    return content
