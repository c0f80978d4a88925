"""What a sweep's own records add to its runs: how a job was started, why it failed, and jobs that left no run."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fedsim.errors import InputError
from fedsim.report.runs import RecordedRun, read_run

RECORDS = "jobs"  # folder of a sweep, with one JSON file for each job


def read_runs(paths: Iterable[Path]) -> tuple[list[RecordedRun], list[str]]:
    """Read runs, with their jobs' records where they belong to a sweep.

    Returns:
        The runs; and a line for each folder that cannot be read and for jobs that left nothing to read.
    """
    by_place: dict[Path, list[Path]] = {}
    for path in paths:
        by_place.setdefault(path.parent, []).append(path)
    runs: list[RecordedRun] = []
    notes: list[str] = []
    for place, folders in by_place.items():
        jobs = _jobs(place / RECORDS)
        read_here = set()
        for path in folders:
            try:
                runs.append(read_run(path, jobs.get(path.name, {})))
                read_here.add(path.name)
            except InputError as problem:  # noqa: PERF203 - a broken run must not hide the others
                notes.append(f"left out: {problem}")
        notes += _missing(place, {name: job for name, job in jobs.items() if name not in read_here})
    return runs, notes


def _jobs(folder: Path) -> dict[str, dict[str, Any]]:
    """Records of a sweep's jobs by the name of the run's folder; what is no record is passed over."""
    found = {}
    for path in sorted(folder.glob("*.json")) if (folder.parent / "sweep.json").exists() else []:
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, OSError):
            continue
        if isinstance(record, dict) and isinstance(record.get("folder"), str):
            found[record["folder"]] = record
    return found


def _missing(place: Path, jobs: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Lines about jobs without a readable run: why each failed, and how many have not begun."""
    failed = {name: job for name, job in jobs.items() if job.get("status") in ("failed", "diverged")}
    lines = [f"{place / name} failed before its first round: {job.get('message')}" for name, job in failed.items()]
    waiting = len(jobs) - len(failed)
    return lines + ([f"{waiting} of the jobs of {place} left no run yet"] if waiting else [])
