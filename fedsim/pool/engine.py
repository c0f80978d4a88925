"""How a run is executed: backend, devices and blocks. Backend, actors and address never change a bit."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from fedsim.errors import require
from fedsim.fields import check_fields
from fedsim.kernels.tuning import Tuning

MOST_PROCESSES = 1024
"""Actors of a run, and threads of an actor, at most: more than the CPUs of any one machine, and each takes memory.

Fixed, and no multiple of the CPUs there are, so that a configuration is right or wrong on every machine. Where torch
cannot make its threads the process ends with a segmentation fault.
"""
MOST_PIECES = 2**20
"""Jobs of a round, and clients of a block, at most: a million clients one by one."""


OF_RAY = ("actors", "address", "retries", "timeout_s")
"""Settings that say nothing to a run in one process."""


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
        actors: Ray actors, in 1..1024; each hosts many virtual clients.
        address: ``null`` starts Ray on this machine; else the address of a running cluster.
        block: most clients computed at once, >= 2, or ``auto``: by the model's size.
        jobs: most pieces a cohort is cut into, >= 1, or ``auto``: 4, more for large cohorts, fewer for peers with
            little work (``pool.plan.pieces``); on a GPU 1, which computes what it is given at once.
            More actors than pieces stay idle: give many actors as many jobs.
        batching: ``auto`` (many clients at once where the model allows) or ``loop`` (one by one).
        kernel: ``auto`` (a fixed rule by model, shape and device), ``stacked`` or ``vmap``.
        tuning: constants of that rule: ``auto`` (those that ``fedsim tune`` measured on a processor of this
            capability, if it has run, else ``builtin``), ``builtin``, a file of ``fedsim tune``, or the constants
            themselves, as a run's config.yaml holds them.
        dtype: ``float32`` or ``float64``.
        precision: of products and convolutions: None, that of ``dtype``; else, for ``dtype=float32``, ``float32``
            itself, ``bf16`` (models compute in bfloat16 where ``torch.autocast`` does, parameters and messages stay
            float32) or, on CUDA, ``tf32``.
        device: ``cpu`` or ``cuda``.
        threads: torch threads of every worker, in 1..1024; part of a run's fingerprint.
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
    tuning: Tuning | str = "auto"
    dtype: Literal["float32", "float64"] = "float32"
    precision: Literal["float32", "bf16", "tf32"] | None = None
    device: Literal["cpu", "cuda"] = "cpu"
    threads: int = 1
    retries: int = 2
    timeout_s: float | None = 3600.0

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("actors", "threads"):
            value = getattr(self, name)
            require(value >= 1, name, "be >= 1", value)
            require(value <= MOST_PROCESSES, name, f"be <= {MOST_PROCESSES}", value)
        require(self.tuning != "", "tuning", "be auto, builtin or a file of `fedsim tune`", self.tuning)
        single = self.precision is None or self.dtype == "float32"
        require(single, "precision", f"be null for engine.dtype={self.dtype}", self.precision)
        there = self.precision != "tf32" or self.device == "cuda"
        require(there, "precision", "be float32, bf16 or null on the cpu, which has no TF32", self.precision)
        require(self.jobs == "auto" or self.jobs >= 1, "jobs", "be >= 1 or auto", self.jobs)
        require(self.retries >= 0, "retries", "be >= 0", self.retries)
        require(self.timeout_s is None or self.timeout_s > 0, "timeout_s", "be > 0 or null", self.timeout_s)
        if self.block != "auto":
            require(self.block >= 2, "block", "be >= 2 or auto", self.block, "use batching=loop for one at a time")
        for name in ("block", "jobs"):
            value = getattr(self, name)
            require(value == "auto" or value <= MOST_PIECES, name, f"be <= {MOST_PIECES} or auto", value)

    @property
    def pieces(self) -> int | Literal["auto"]:
        """Most pieces a cohort is cut into: ``jobs``, of which a GPU wants one, for every launch has its price."""
        return 1 if self.jobs == "auto" and self.device == "cuda" else self.jobs

    @property
    def without_effect(self) -> tuple[str, ...]:
        """A note for each setting of Ray's actors that does nothing: in a run without, and of actors without jobs."""
        if self.backend == "ray":
            idle = self.device == "cuda" and self.pieces == 1 and self.actors > 1
            do = f"engine.jobs={self.actors} gives each one"
            return (f"one job a round keeps one actor busy, engine.actors={self.actors}: {do}",) if idle else ()
        chosen = [f for f in fields(self) if f.name in OF_RAY and getattr(self, f.name) != f.default]
        said = [f"engine.{f.name}={getattr(self, f.name)}" for f in chosen]
        return tuple(f"{one} has no effect: engine=serial computes in this process, without actors" for one in said)
