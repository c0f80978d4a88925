"""From clients to jobs and back: what every kind of run does with its workers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, Protocol

import numpy as np

from fedsim.errors import Diverged
from fedsim.kernels.kernel import ALONE, Kernel
from fedsim.pool.block import Job
from fedsim.pool.plan import plan
from fedsim.pool.worker import Backend, Done
from fedsim.types import Round, State


class Rows(Protocol):
    """Whatever holds the states of clients that have one architecture, and can read out some of them."""

    def read(self, clients: Sequence[int]) -> State:
        """Their rows: a tree of [c, ...] arrays (copies)."""
        ...


@dataclass(frozen=True)
class Jobs:
    """How clients are cut into jobs, and who does them.

    Attributes:
        backend: who computes.
        kernels: of each architecture: client i has number i modulo their count.
        blocks: most clients of each architecture computed at once.
        pieces: jobs that clients of one architecture are cut into, or ``auto``.
        least: see ``fedsim.pool.plan.plan``.
    """

    backend: Backend
    kernels: Sequence[Kernel]
    blocks: Sequence[int]
    pieces: int | Literal["auto"]
    least: int = 0

    def cut(
        self, rnd: Round, clients: Sequence[int], costs: Sequence[int], rows: Sequence[Rows], *, first: int = 0
    ) -> tuple[list[Job], list[int]]:
        """Jobs for these clients, each of one architecture, numbered from ``first``, and what each costs."""
        jobs: list[Job] = []
        totals: list[int] = []
        for k, mine in enumerate(rows):
            some, theirs = tuple(clients), tuple(costs)
            if len(rows) > 1:
                at = [p for p, i in enumerate(clients) if i % len(rows) == k]
                some, theirs = tuple(clients[p] for p in at), tuple(costs[p] for p in at)
            if not some:
                continue
            block = 1 if self.kernels[k] in ALONE else self.blocks[k]
            made = _planned(some, theirs, block, self.pieces, self.least)
            for blocks in made.jobs:
                ids = tuple(i for piece in blocks for i in piece)
                jobs.append(Job(first + len(jobs), rnd, k, blocks, mine.read(ids)))
            totals += made.costs
        return jobs, totals

    def one_block(self, clients: Sequence[int], costs: Sequence[int]) -> bool:
        """Whether these are one block of one job, in their order."""
        if len(self.kernels) > 1 or self.kernels[0] in ALONE:
            return False
        all_of_them = tuple(clients)
        made = _planned(all_of_them, tuple(costs), self.blocks[0], self.pieces, self.least)
        return made.jobs == ((all_of_them,),)

    def train(self, jobs: Sequence[Job], costs: Sequence[int], broadcast: Any) -> list[Done]:
        """Local work; raises Diverged when a loss or message is not finite."""
        answers: list[Done] = self.backend.map("train", jobs, costs, broadcast)
        if bad := sorted(i for answer in answers for i in answer.diverged):
            raise Diverged(f"non-finite loss or message in round {jobs[0].round.index + 1} from clients {bad}")
        return answers


_planned = lru_cache(maxsize=8)(plan)
"""Cohorts are often those of the round before."""


def digest_of(arrays: Iterable[np.ndarray]) -> str:
    """sha256 over arrays as little-endian bytes."""
    hashed = hashlib.sha256()
    for array in arrays:
        hashed.update(np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
    return hashed.hexdigest()


def mean_loss(losses: Sequence[np.ndarray]) -> dict[str, float]:
    """``train/loss``: the mean over clients of their training losses [c], NaN where a client has none.

    A round in which nobody has one has no ``train/loss``: the tag is absent.
    """
    found = np.concatenate(losses).astype(np.float64) if losses else np.zeros(0)
    known = found[~np.isnan(found)]
    return {"train/loss": float(known.mean())} if len(known) else {}
