"""How a run is executed: backend, devices and blocks. Backend, actors and address never change a bit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fedsim.errors import require
from fedsim.fields import check_fields


@dataclass(frozen=True)
class Engine:
    """Execution settings.

    >>> Engine(backend="serial", dtype="float64").batching
    'auto'
    >>> Engine(actors=0)
    Traceback (most recent call last):
    fedsim.errors.InputError: actors must be >= 1, got 0

    Attributes:
        backend: ``serial`` (in this process, no Ray) or ``ray`` (a pool of actors).
        actors: Ray actors, >= 1; each hosts many virtual clients.
        address: ``null`` starts Ray on this machine; else the address of a running cluster.
        block: most clients computed at once, >= 2, or ``auto``: by the model's size.
        jobs: most pieces a cohort is cut into, >= 1, or ``auto``: 4, more for large cohorts (``pool.plan.pieces``).
            More actors than pieces stay idle: give many actors as many jobs.
        batching: ``auto`` (many clients at once where the model allows) or ``loop`` (one by one).
        kernel: ``auto`` (a fixed rule by model, shape and device), ``stacked`` or ``vmap``.
        dtype: ``float32`` or ``float64``.
        device: ``cpu`` or ``cuda``.
        threads: torch threads of every worker, >= 1; part of a run's fingerprint.
        retries: how often the work of a lost actor is run again, >= 0.
        timeout_s: seconds after which an actor that has not answered is taken for lost, > 0; None waits for ever.
    """

    backend: Literal["serial", "ray"] = "ray"
    actors: int = 2
    address: str | None = None
    block: int | Literal["auto"] = "auto"
    jobs: int | Literal["auto"] = "auto"
    batching: Literal["auto", "loop"] = "auto"
    kernel: Literal["auto", "stacked", "vmap"] = "auto"
    dtype: Literal["float32", "float64"] = "float32"
    device: Literal["cpu", "cuda"] = "cpu"
    threads: int = 1
    retries: int = 2
    timeout_s: float | None = 3600.0

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("actors", "threads"):
            require(getattr(self, name) >= 1, name, "be >= 1", getattr(self, name))
        require(self.jobs == "auto" or self.jobs >= 1, "jobs", "be >= 1 or auto", self.jobs)
        require(self.retries >= 0, "retries", "be >= 0", self.retries)
        require(self.timeout_s is None or self.timeout_s > 0, "timeout_s", "be > 0 or null", self.timeout_s)
        if self.block != "auto":
            require(self.block >= 2, "block", "be >= 2 or auto", self.block, "use batching=loop for one at a time")
