"""Cohort -> jobs -> blocks: a function of the cohort and the configuration, never of the number of workers.

A *job* is what a worker is handed and answers with one partial sum; a *block* is what it computes at once. Clients are
sorted by local steps, so that those of one block end at about the same time or, where models are small, in turn (see
``LIGHT``), and jobs are cut to equal work.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

Block = tuple[int, ...]

PADDING = 0.7
"""A block ends before a client whose steps fall below this fraction of its first client's, unless models are light."""

LIGHT = 100
"""Where a block may hold this many clients, a step costs about as much for one of them as for a few, and steps are what
can be saved: clients of all lengths share a block, and every job has at least ``FULL`` times the work of the longest
client."""

FULL = 4
"""Clients that work from the first to the last step of a job on average; where there would be fewer, two jobs would end
little earlier on two workers than one job on one (ten silos of a9a: 365 steps one after the other instead of 209)."""

LONG = 100
"""Local steps that a client of a round must make for that: short rounds are cut as those of heavy models."""


@dataclass(frozen=True)
class Plan:
    """The jobs of one round.

    Attributes:
        jobs: each a tuple of blocks, each a tuple of client ids, in the order in which results are summed.
        costs: local steps of each job, to balance them over workers.
    """

    jobs: tuple[tuple[Block, ...], ...]
    costs: tuple[int, ...]


def pieces(cohort: int, block: int, jobs: int | Literal["auto"], worth: int | None = None) -> int:
    """Jobs for a cohort: a power of two, which divides evenly over workers and makes a whole tree of partial sums.

    ``auto`` gives every job at least 8 clients, but 4 jobs in any case (8 where clients are computed one by one, which
    means that each is expensive), and at most 16; and no more jobs than are ``worth`` it, where that is known.
    """
    fewest = 1 if block == 1 else 2  # clients that must not be alone in a block
    usual = 8 if block == 1 else min(16, max(4, cohort // 8))
    most = jobs if jobs != "auto" else usual if worth is None else min(usual, worth)
    return _power(min(most, cohort // fewest))


def _power(most: int) -> int:
    """The largest power of two that is no more, and at least 1."""
    return 1 << (max(1, most).bit_length() - 1)


def plan(clients: Sequence[int], steps: Sequence[int], block: int, jobs: int | Literal["auto"], least: int = 0) -> Plan:
    """Cut a cohort into jobs of about equal work and blocks of about equal local steps.

    Args:
        clients: [c] ids of the cohort.
        steps: [c] local steps of each.
        block: most clients in a block; 1 computes them one by one.
        jobs: see ``pieces``.
        least: local steps from which a job of its own is worth its price, where ``jobs`` is ``auto``; 0: any number.
    """
    # By steps: those who have not ended are then the first of their block, which is all that is computed.
    order = sorted(range(len(clients)), key=lambda p: (-steps[p], clients[p]))
    ids, work = [clients[p] for p in order], [steps[p] for p in order]
    fewest = 1 if block == 1 else 2
    wanted = pieces(len(ids), block, jobs, sum(work) // least if least else None)
    light = block >= LIGHT and work[0] >= LONG
    if light and jobs == "auto":
        wanted = min(wanted, _power(sum(work) // (FULL * max(work))))
    total = np.cumsum(work)
    ends: list[int] = []
    for j in range(1, wanted):
        cut = int(np.searchsorted(total, total[-1] * j / wanted, side="left")) + 1
        # Enough clients before the cut and enough left for the jobs that follow: one alone in a job would be alone in
        # its block, where kernels of one client round differently (see ``fedsim.pool.block``).
        start = ends[-1] if ends else 0
        low, high = start + fewest, len(ids) - fewest * (wanted - j)
        cut = min(max(cut, low), high)
        if block == 2 and (cut - start) % 2:  # who is alone in a block is computed twice
            cut += -1 if cut > low else 1 if cut < high else 0
        ends.append(cut)
    bounds = [0, *ends, len(ids)]
    cut_up = [(ids[a:b], work[a:b]) for a, b in pairwise(bounds)]
    return Plan(
        tuple(_blocks(i, w, block, 0.0 if light else PADDING) for i, w in cut_up), tuple(sum(w) for _, w in cut_up)
    )


def _blocks(ids: list[int], steps: list[int], block: int, padding: float) -> tuple[Block, ...]:
    cuts = [0]
    for p in range(1, len(ids)):
        length = p - cuts[-1]
        steep = length >= 2 and len(ids) - p >= 2 and steps[p] < padding * steps[cuts[-1]]
        if length == block or steep:
            cuts.append(p)
    cuts.append(len(ids))
    spans = list(pairwise(cuts))
    if block > 2 and len(spans) > 1 and spans[-1][1] - spans[-1][0] == 1:  # never leave one client alone
        (a, b), (_, end) = spans[-2], spans[-1]
        spans[-2:] = [(a, b - 1), (b - 1, end)] if b - a > 2 else [(a, b), (b, end)]
    return tuple(tuple(ids[a:b]) for a, b in spans)
