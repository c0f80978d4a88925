"""What computes, in this process or inside a Ray actor. A job is a pure function; workers write no files."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import nn

from fedsim.aggregate import Mean, Sums
from fedsim.algorithms.base import ServerAlgorithm
from fedsim.channel import wire
from fedsim.data.base import Task
from fedsim.data.batches import Feed, Samples
from fedsim.engine.block import Blocks, Job, to_device, to_numpy
from fedsim.engine.oracle import Kernel, ModelOracle
from fedsim.errors import ClientError
from fedsim.local import Local
from fedsim.losses import loss_of, score_of
from fedsim.tree import tree_map
from fedsim.types import State


@dataclass(frozen=True)
class Setup:
    """Everything a worker needs once; what changes per round travels with the jobs."""

    algorithm: ServerAlgorithm[Any, Any]
    model: nn.Module
    task: Task
    train: Samples
    test: Samples
    local: Local
    aggregate: Mean
    kernel: Kernel
    dtype: torch.dtype
    device: str
    threads: int
    seed: int


class Done(NamedTuple):
    """The answer to a training job; the arrays per client are in block order."""

    sums: Sums  # {field: float64 weighted sum over the job's clients}
    weight: float  # sum of the weights
    rows: State  # tree of [c, ...] arrays: new client states
    losses: np.ndarray  # [c] mean training loss over the local steps
    finite: np.ndarray  # [c] whether the client's message is finite
    uplink_bytes: int  # encoded size of the job's messages


@dataclass(frozen=True)
class Rows:
    """An evaluation job: samples ``first`` to ``last`` of a split."""

    first: int
    last: int


class Scores(NamedTuple):
    """The answer to an evaluation job, per example."""

    losses: np.ndarray  # [rows]
    scores: np.ndarray  # [rows] accuracy in 0..1, empty where the task has none


def keep_memory() -> None:
    """Tell glibc to keep freed buffers instead of handing them back to the kernel, page by page, at every step.

    Stacked gradients are tens of megabytes; faulting them in afresh costs a fifth of a round of a small MLP. Costs up
    to 100 MB of resident memory. Elsewhere than on glibc nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for option, value in ((-4, 0), (-1, 2**31 - 1), (-2, 2**26)):  # M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD
            mallopt(option, value)


class Worker:
    """Holds the model and the data on one device and answers jobs."""

    def __init__(self, setup: Setup):
        keep_memory()
        torch.set_num_threads(setup.threads)
        self.setup = setup
        self.device = torch.device(setup.device)
        model = setup.model.to(self.device, setup.dtype)
        rows = int(setup.train.sizes().max()) if setup.task == "least_squares" else 1
        self.oracle = ModelOracle(model, loss_of(setup.task, rows), setup.kernel)
        self.score = score_of(setup.task)
        self.train_feed = Feed(setup.train, self.device, setup.dtype)
        same = setup.test is setup.train
        self.test_feed = self.train_feed if same else Feed(setup.test, self.device, setup.dtype)
        self.blocks = Blocks(setup.algorithm, self.oracle, self.train_feed, setup.local, setup.seed)

    def train(self, job: Job, broadcast: Any) -> Done:
        """Local work of the job's clients."""
        got = to_device(broadcast, self.device)
        rows = to_device(job.rows, self.device)
        sums: dict[str, torch.Tensor] = {}
        weight, uplink, at = 0.0, 0, 0
        states, losses, finite = [], [], []
        for clients in job.blocks:
            here = slice(at, at + len(clients))
            mine = tree_map(lambda t, here=here: t[here], rows)
            at = here.stop
            try:
                out = self.blocks.run(clients, mine, got, job.round)
            except Exception as error:
                name = type(self.setup.algorithm).__name__
                raise ClientError(
                    f"{name} failed in round {job.round.index + 1} for clients {clients}: "
                    f"{type(error).__name__}: {error}. To debug, add engine=serial engine.batching=loop"
                ) from error
            weights = self.setup.aggregate.weight(np.array([self._size(i) for i in clients]))
            self.setup.aggregate.add(sums, out.messages, weights)
            weight += float(weights.sum())
            uplink += len(clients) * wire.size(out.messages, stacked=True)
            states.append(out.states)
            losses.append(out.losses)
            finite.append(out.finite)
        stacked = to_numpy(tree_map(lambda *t: torch.cat(t), *states))
        per_client = to_numpy((torch.cat(losses), torch.cat(finite)))
        return Done(to_numpy(sums), weight, stacked, per_client[0], per_client[1], uplink)

    def _size(self, client: int) -> int:
        return int(self.train_feed.start[client + 1] - self.train_feed.start[client])

    @torch.no_grad()
    def evaluate(self, job: Rows, x: Any) -> Scores:
        """Loss and accuracy of each of the job's test samples at the model x [d]."""
        model = self.oracle.at(to_device(x, self.device).to(self.setup.dtype))
        inputs = self.test_feed.inputs(self.test_feed.x[job.first : job.last], None)
        y = self.test_feed.y[job.first : job.last]
        outputs = model(inputs)
        scores = torch.empty(0) if self.score is None else self.score(outputs, y)
        return Scores(*to_numpy((self.oracle.loss(outputs, y), scores)))


class Backend(Protocol):
    """Who runs the jobs."""

    def map(self, method: str, jobs: Sequence[Any], costs: Sequence[float], shared: Any) -> list[Any]:
        """Answers of ``Worker.<method>(job, shared)`` in job order, whoever computed them."""
        ...

    def close(self) -> None:
        """Release everything."""
        ...
