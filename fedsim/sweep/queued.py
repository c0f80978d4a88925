"""What a job of a sweep takes of the machine, and how much of the machine a sweep may take."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fedsim.errors import require
from fedsim.fields import check_fields
from fedsim.pool.engine import MOST_PROCESSES
from fedsim.sweep.state import State

CHOSEN = re.compile(r"\+*engine(=|\.(backend|actors|address)=)")


@dataclass(frozen=True)
class Limits:
    """How much of the machine a sweep may use.

    Attributes:
        cpus: CPUs of this machine, in 1..1024; None: all.
        jobs: at the same time, in 1..1024; None: as many as fit.
        jobs_per_gpu: at the same time on a GPU of this machine, in 1..1024.
        retries: how often a job whose process was killed is run again, after the others and alone, >= 0.
    """

    cpus: int | None = None
    jobs: int | None = None
    jobs_per_gpu: int = 1
    retries: int = 2

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("cpus", "jobs", "jobs_per_gpu"):
            value = getattr(self, name)
            require(value is None or value >= 1, name, "be >= 1", value)
            require(value is None or value <= MOST_PROCESSES, name, f"be <= {MOST_PROCESSES}", value)
        require(self.retries >= 0, "retries", "be >= 0", self.retries)


@dataclass(frozen=True)
class QueuedJob:
    """A job to be run.

    Attributes:
        state: how it stands.
        config: its resolved configuration.
        overrides: of the command that runs it.
    """

    state: State
    config: Mapping[str, Any]
    overrides: tuple[str, ...]

    @property
    def ray(self) -> bool:
        """Whether it drives actors."""
        return bool(self.config["engine"]["backend"] == "ray")

    @property
    def address(self) -> str | None:
        """The cluster that it declares."""
        return self.config["engine"].get("address") if self.ray else None

    @property
    def cpus(self) -> int:
        """What it takes: a CPU for each actor, or its threads."""
        engine = self.config["engine"]
        return int(engine["actors"] if self.ray else engine["threads"])

    @property
    def gpu(self) -> bool:
        """Whether it computes on a GPU of this machine."""
        return bool(self.config["engine"]["device"] == "cuda" and self.address is None)


def in_one_process(tasks: Sequence[QueuedJob], limits: Limits) -> list[QueuedJob]:
    """Jobs without actors of their own where there are at least as many jobs as CPUs: same bits, less work.

    A job whose command chooses the engine keeps it.
    """
    if len(tasks) < usable_cpus(limits):
        return list(tasks)
    return [
        replace(task, config={**task.config, "engine": {**task.config["engine"], "backend": "serial"}})
        if task.address is None and not any(CHOSEN.match(text) for text in task.overrides)
        else task
        for task in tasks
    ]


def usable_cpus(limits: Limits) -> int:
    """CPUs of this machine that a sweep may use."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return limits.cpus or usable


def gpus() -> int:
    """GPUs of this machine."""
    import torch

    return torch.cuda.device_count()
