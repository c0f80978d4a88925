"""Several rounds at once of peers who are one block: what lies between two of them stays with the worker."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedsim.ground.layout import aligned
from fedsim.ground.tree import leaves, tree_map
from fedsim.pool.block import ClientSide, Outcome, to_device, to_numpy
from fedsim.pool.recurring import RoundReplay
from fedsim.types import Round, State

After = Callable[[State, Round, int], State]
"""What follows the local work of a round, for all peers: from their states [n, ...], the round and its place."""


@dataclass(frozen=True)
class Several:
    """A job: some rounds one after the other, in each of which the same peers work."""

    rounds: tuple[Round, ...]
    rows: State  # tree of [n, ...] numpy arrays, all peers' states
    after: After
    period: int  # after which ``after`` does the same again

    @property
    def clients(self) -> tuple[int, ...]:
        """Ids of the peers."""
        return self.rounds[0].clients


class Came(NamedTuple):
    """The answer to such a job."""

    rows: State  # tree of [n, ...] arrays: new states
    before: State  # likewise, after the local work of the last round
    losses: np.ndarray  # [rounds, n] mean training loss over the local steps, NaN where none counts
    fine: bool  # whether all losses and states were finite all the time; False: one of them may not have been


class RoundsAtOnce:
    """Answers such jobs, for the clients of one architecture; each kind of round is recorded as a whole."""

    def __init__(self, side: ClientSide):
        self.side = side
        self._replays: dict[tuple[tuple[int, ...], int], RoundReplay] = {}

    @torch.no_grad()
    def __call__(self, job: Several) -> Came | None:
        """What some rounds come to; None where they are not the same every time."""
        states = before = tree_map(aligned, to_device(job.rows, self.side.feed.device))
        losses: list[Tensor] = []
        sums: list[Tensor] = []
        for rnd in job.rounds:
            at = rnd.index % job.period
            work = self.side.each_round(job.clients, rnd.index)
            replay = self._replays.setdefault((job.clients, at), RoundReplay())
            if work is None or replay.refused:
                return None
            states, before, each, floats = replay(partial(_round, work, job.after, at), rnd, states)
            losses.append(each)
            sums += floats
        fine = all(math.isfinite(total.item()) for total in sums)
        return Came(to_numpy(states), to_numpy(before), torch.stack(losses).numpy(), fine)


def _round(work: Callable[[Round, State], Outcome], after: After, at: int, rnd: Round, states: State) -> Any:
    """One round: new states, those after local work alone, losses [n], and sums that show what is not finite."""
    out = work(rnd, (states, {}))
    worked = tree_map(aligned, out.states[0])
    new = tree_map(aligned, after(worked, rnd, at))
    sums = tuple(t.sum() for t in (out.losses, *leaves(new)) if t.is_floating_point())
    return new, worked, torch.where(out.counted, out.losses, math.nan), sums
