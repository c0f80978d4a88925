"""A worker: it holds the models and the data and answers jobs, in this process or inside a Ray actor.

What a job gives depends on the job and the run's setup alone, and workers write no files. So a lost worker's jobs can
be given to another one, and any number of workers gives the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.aggregate import Aggregate, Mean, Parts, Sums, fold, weights_of
from fedsim.algorithms.kit.around import name_of
from fedsim.algorithms.kit.protocols import ServerAlgorithm
from fedsim.channel import message
from fedsim.channel.channel import Channel
from fedsim.channel.message import Sent
from fedsim.data.batches import Feed, Samples
from fedsim.data.losses import Loss, Task, loss_of
from fedsim.errors import ClientError
from fedsim.ground import transfer
from fedsim.ground.layout import aligned
from fedsim.ground.own_code import FAILURES, all_built_in, error_line, said
from fedsim.ground.process import keep_memory
from fedsim.ground.tree import leaves, tree_map
from fedsim.kernels.kernel import Kernel
from fedsim.kernels.oracle import ModelOracle
from fedsim.kernels.tuning import Tuning
from fedsim.local import Local
from fedsim.models import copied, moved
from fedsim.models.pure import Watch
from fedsim.pool.block import ClientSide, Job, Outcome, to_device, to_numpy
from fedsim.pool.constants import constants
from fedsim.pool.local_part import written
from fedsim.pool.scores import Found, Measures, Scores, answered, joined
from fedsim.pool.several import Came, RoundsAtOnce, Several
from fedsim.types import Batch, Message, Round, State

CHUNK = 512
"""Samples evaluated at once on the CPU; fixed, so that no bit depends on the number of workers."""


@dataclass(frozen=True)
class Setup:
    """Everything a worker needs once; what changes per round travels with the jobs."""

    algorithm: ServerAlgorithm[Any, Any]
    models: tuple[nn.Module, ...]  # the architectures: client i has number i mod their count
    measures: Measures
    train: Samples
    test: Samples
    local: Local
    aggregate: Aggregate
    uplink: Channel
    downlink: Channel
    kernels: tuple[Kernel, ...]  # of each architecture, in training mode
    by_layer: tuple[bool, ...]  # whether its clipped sums may be computed layer by layer
    predictions: tuple[Kernel, ...]  # of each architecture, in evaluation mode
    dtype: torch.dtype
    precision: str | None  # of products: None, that of dtype
    device: str
    threads: int
    seed: int
    written: tuple[str, ...] = ()  # buffers that forward writes and that have an owner, of the one architecture
    wide: int = Tuning.wide  # as of the run's ``Tuning``
    chunk: int = CHUNK  # samples evaluated at once

    @property
    def task(self) -> Task:
        """How outputs and targets make a loss."""
        return self.measures.task

    @property
    def loss(self) -> Loss:
        """The loss of each example, by the task."""
        return loss_of(self.task, int(self.train.sizes().max()))


class Done(NamedTuple):
    """The answer to a training job; the arrays per client are in block order."""

    sums: Sums  # of the clients of ``span`` jobs, as ``aggregate`` makes them
    span: int  # this job and those that follow it; 0: the sums are with an earlier job
    weight: float  # sum of the weights
    rows: State  # tree of [c, ...] arrays: new client states
    losses: np.ndarray  # [c] mean training loss over the local steps, NaN where none counts
    diverged: tuple[int, ...]  # clients whose loss or message is not finite
    sent: Sent  # the job's messages


@dataclass(frozen=True)
class EvalJob:
    """An evaluation job: samples ``first`` to ``last`` of a split."""

    first: int
    last: int


@dataclass(frozen=True)
class ObjectiveJob:
    """A job of the training objective: training samples ``first`` to ``last`` with their weights."""

    number: int
    first: int
    last: int
    weights: np.ndarray  # [rows]


@dataclass(frozen=True)
class Models:
    """An evaluation job: some models [b, d], each on all test samples."""

    x: np.ndarray


@contextmanager
def torch_given_back() -> Iterator[None]:
    """A block after which torch has the threads and the flags of CUDA that it had, whatever a worker needed."""
    cudnn, products = torch.backends.cudnn, torch.backends.cuda.matmul
    threads, flags = torch.get_num_threads(), (cudnn.allow_tf32, cudnn.deterministic, products.allow_tf32)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        cudnn.allow_tf32, cudnn.deterministic, products.allow_tf32 = flags


class Worker:
    """Holds the model and the data on one device and answers jobs."""

    def __init__(self, setup: Setup):
        keep_memory()
        self.setup = setup
        self.device = torch.device(setup.device)
        torch.set_num_threads(setup.threads)
        if self.device.type == "cuda":  # convolutions in float32, if nothing else was asked for; the same bits always
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = setup.precision == "tf32"
            torch.backends.cudnn.deterministic = True
        lower = torch.bfloat16 if setup.precision == "bf16" else None
        self.loss, fixed = setup.loss, all_built_in(setup.task)
        kinds = zip(setup.models, setup.kernels, setup.by_layer, setup.predictions, strict=True)
        self.oracles: list[ModelOracle] = []  # in training mode: local steps
        self.evaluators: list[ModelOracle] = []  # in evaluation mode: whatever is measured
        for model, kernel, by_layer, prediction in kinds:
            held = constants(model, self.device, setup.dtype)  # one for both copies, which differ in what a run leaves
            mine, measured = (moved(copied(model, held), self.device, setup.dtype) for _ in range(2))
            both: dict[str, Any] = {"lower": lower, "written": setup.written, "wide": setup.wide, "recorded": fixed}
            self.oracles.append(ModelOracle(mine, self.loss, kernel, by_layer=by_layer, **both))
            self.evaluators.append(ModelOracle(measured, self.loss, prediction, training=False, **both))
        self.training = Watch([oracle.model for oracle in self.oracles], setup.written)
        self.watched = Watch([oracle.model for oracle in (*self.oracles, *self.evaluators)], setup.written)
        self.train_feed = Feed(setup.train, self.device, setup.dtype)
        self.sizes = setup.train.sizes()
        same = setup.test is setup.train
        self.test_feed = self.train_feed if same else Feed(setup.test, self.device, setup.dtype)
        if self.device.type != "cpu":
            self._require_together()
        self.blocks = [
            ClientSide(setup.algorithm, self.oracles, k, self.train_feed, setup.local, setup.uplink, setup.seed)
            for k in range(len(self.oracles))
        ]
        self.rounds_at_once = RoundsAtOnce(self.blocks[0])

    @torch.no_grad()
    def _require_together(self) -> None:
        """Raise ClientError unless all that the models compute with is on the device."""
        sample = self.test_feed.inputs(self.test_feed.x[:1], None)
        try:
            for oracle in self.evaluators:
                oracle.predict(oracle.layout.flatten(oracle.model, self.setup.dtype), sample)
        except RuntimeError as error:
            if "same device" not in str(error):
                raise
            raise ClientError(
                f"model {type(oracle.model).__name__} computes with a tensor that is not on engine.device, for it is "
                f"none of the module's own: keep it there, as self.register_buffer(name, tensor) does ({said(error)})"
            ) from error

    def train(self, jobs: Sequence[Job], broadcast: Any) -> list[Done]:
        """Local work of the clients of some jobs of a round."""
        got = to_device(broadcast, self.device)
        parts: Parts = {}
        answers = []
        with self.training():
            for job in jobs:
                answer = self._train(job, got)
                answers.append(answer)
                # Folded here as far as jobs of this worker are siblings: fewer sums of d numbers travel to the driver.
                parts = fold({**parts, (job.number, 1): answer.sums}, self.setup.aggregate.merge)
        held = {first: (sums, count) for (first, count), sums in parts.items()}
        return [
            answer._replace(sums=sums, span=span)
            for answer, (sums, span) in ((a, held.get(j.number, ({}, 0))) for a, j in zip(answers, jobs, strict=True))
        ]

    def _train(self, job: Job, got: Message) -> Done:
        """One job on its own."""
        sums: Sums = {}
        weight, plain = 0.0, 0
        sizes: list[Tensor] = []  # of messages: one number a block, looked at when the job is done
        states, losses, fine = [], [], [torch.ones(0, dtype=torch.bool, device=self.device)]
        for clients, mine in self._blocks(job):
            with self._failing(job.round, clients):
                out = self.blocks[job.architecture].run(clients, mine, got, job.round)
            weights = weights_of(self.setup.aggregate, self.sizes[list(clients)])
            (shares,) = transfer.sent([torch.from_numpy(weights)], self.device)
            sums = self.setup.aggregate.add(sums, clients, out.messages, shares)
            weight += float(weights.sum())
            plain += message.sizes(out.messages, len(clients))
            owned = message.owned(out.messages) if self.setup.uplink else 0
            sizes.append(out.sent.sum() + owned)
            states.append(out.states)
            losses.append(torch.where(out.counted, out.losses, math.nan))
            fine.append(self._fine(out, sums, fine))
        stacked = states[0] if len(states) == 1 else tree_map(lambda *t: torch.cat(t), *states)
        found = to_numpy((sums, stacked, torch.cat(losses), torch.cat(fine), torch.stack(sizes).sum()))
        diverged = tuple(i for i, good in zip(job.clients, found[3].tolist(), strict=True) if not good)
        sent = Sent(int(found[4]) if self.setup.uplink else plain, plain)
        return Done(found[0], 1, weight, found[1], found[2], diverged, sent)

    def _fine(self, out: Outcome, sums: Sums, before: Sequence[Tensor]) -> Tensor:
        """[b] whether a block's losses and messages are finite; on the CPU seen by the sums, as long as these are."""
        if self.device.type == "cpu":  # on a GPU a look at a number would wait for all of them
            total = sum(float(t.sum()) for t in leaves(sums)) + float(out.losses.sum())
            # One bad number makes every later sum non-finite.
            if math.isfinite(total) or not all(bool(block.all()) for block in before):
                return torch.ones(len(out.losses), dtype=torch.bool)
        return out.finite()

    def rounds(self, jobs: Sequence[Several], shared: Any) -> list[Came | None]:
        """Several rounds of peers, each job; None where these cannot be made without the driver."""
        answers = []
        with self.training():
            for job in jobs:
                with self._failing(job.rounds[0], job.clients):
                    answers.append(self.rounds_at_once(job))
        return answers

    @contextmanager
    def _failing(self, rnd: Round, clients: tuple[int, ...]) -> Iterator[None]:
        """Whoever fails in here is named."""
        try:
            yield
        except FAILURES as error:
            name = name_of(written(self.setup.algorithm))
            raise ClientError(
                f"{name} failed in round {rnd.index + 1} for clients {clients}: "
                f"{error_line(error)}. To debug, add engine=serial engine.batching=loop",
                rnd.index + 1,
                clients,
            ) from error

    def _blocks(self, job: Job) -> Iterator[tuple[tuple[int, ...], State]]:
        """The blocks of a job and their clients' rows."""
        at = 0
        for clients in job.blocks:
            here = slice(at, at + len(clients))
            rows = job.rows if len(job.blocks) == 1 else tree_map(lambda a, here=here: a[here], job.rows)
            yield clients, to_device(rows, self.device)
            at = here.stop

    @torch.no_grad()
    def evaluate(self, jobs: Sequence[EvalJob], x: Any) -> list[Scores]:
        """What is measured of each of the jobs' test samples at the model x [d], or [d + q] with written buffers."""
        model: Tensor = to_device(x, self.device)
        with _evaluating(), self.watched():
            return answered([self._scores(self.evaluators[0], model, job) for job in jobs])

    @torch.no_grad()
    def evaluate_models(self, jobs: Sequence[Models], shared: Any) -> list[np.ndarray]:
        """[b, 1 + metrics that are shared] mean loss and metrics of each model over all test samples."""
        with _evaluating(), self.watched():
            return [np.array([self._overall(x) for x in to_device(job.x, self.device)]) for job in jobs]

    def _overall(self, x: Tensor) -> list[float]:
        total, chunk = len(self.test_feed.x), self.setup.chunk
        parts = [self._scores(self.evaluators[0], x, EvalJob(a, min(a + chunk, total))) for a in range(0, total, chunk)]
        found, measures = joined(answered(parts)), self.setup.measures
        values = [measures.of(metric, found, self.setup.test.y)[""] for metric in measures.shared]
        return [float(found.losses.astype(np.float64).mean()), *values]

    @torch.no_grad()
    def gradient(self, jobs: Sequence[ObjectiveJob], x: Any) -> list[tuple[Sums, int]]:
        """Weighted sums of the loss and its gradient [d] over training samples; as in ``train``, with their spans."""
        model: Tensor = to_device(x, self.device)
        parts: Parts = {}
        with _evaluating(), self.watched():
            for job in jobs:
                parts = fold({**parts, (job.number, 1): self._gradient(job, model)}, Mean().merge)
        held = {first: (sums, count) for (first, count), sums in parts.items()}
        return [held.get(job.number, ({}, 0)) for job in jobs]

    def _gradient(self, job: ObjectiveJob, x: Tensor) -> Sums:
        feed = self.train_feed
        inputs = feed.inputs(feed.x[job.first : job.last], None)
        # Weights stand in for the mask of a mean over examples. That divides by their sum, but at least by 1 (an empty
        # minibatch); with the smallest weight scaled to 1 the sum is never below.
        shares = aligned(torch.from_numpy(job.weights / job.weights.min()).to(self.setup.dtype))
        (mask,) = transfer.sent([shares], self.device)
        g, loss = self.evaluators[0].grad(
            self.evaluators[0].whole(x), Batch(inputs, feed.y[job.first : job.last], mask)
        )
        total = float(job.weights.sum())
        slope, value = to_numpy((g.double(), loss.double()))
        return {"gradient": slope * total, "loss": np.float64(float(value) * total)}

    @torch.no_grad()
    def evaluate_own(self, jobs: Sequence[Job], broadcast: Any) -> list[Scores]:
        """What is measured of each client's own test samples at its own model, the clients in block order."""
        got = to_device(broadcast, self.device)
        with _evaluating(), self.watched():
            return [
                joined(answered([s for block in self._blocks(job) for s in self._own_scores(job, *block, got)]))
                for job in jobs
            ]

    def _own_scores(self, job: Job, clients: tuple[int, ...], mine: State, got: Message) -> Iterator[Found]:
        models = self.blocks[job.architecture].models(clients, mine, got, job.round)
        for i, x in zip(clients, models, strict=True):
            first, last = (int(self.test_feed.start[j]) for j in (i, i + 1))
            for a in range(first, last, self.setup.chunk):
                here = EvalJob(a, min(a + self.setup.chunk, last))
                yield self._scores(self.evaluators[job.architecture], x, here)

    def _scores(self, oracle: ModelOracle, x: Tensor, job: EvalJob) -> Found:
        x = oracle.whole(aligned(x))  # one of several models is a row
        inputs = self.test_feed.inputs(self.test_feed.x[job.first : job.last], None)
        y = self.test_feed.y[job.first : job.last]
        return self.setup.measures.found(self.loss, oracle.predict(x, inputs), y)


@contextmanager
def _evaluating() -> Iterator[None]:
    try:
        yield
    except ClientError:
        raise
    except FAILURES as error:
        raise ClientError(f"evaluation failed: {error_line(error)}. To debug, add engine=serial") from error


class Backend(Protocol):
    """Who runs the jobs."""

    def map(self, method: str, jobs: Sequence[Any], costs: Sequence[float], shared: Any) -> list[Any]:
        """Answers of ``Worker.<method>(jobs, shared)`` in job order, whoever computed them.

        Args:
            method: ``train``, ``evaluate``, ``evaluate_own``, ``evaluate_models`` or ``gradient``.
            jobs: picklable; workers get runs of consecutive jobs.
            costs: of each job, in any unit, to balance the workers.
            shared: what every job needs, as numpy arrays.
        """
        ...

    def close(self) -> None:
        """Release everything."""
        ...
