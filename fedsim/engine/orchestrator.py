"""The round loop: schedule -> plan -> jobs on workers -> aggregate -> server step -> commit -> measure."""

from __future__ import annotations

import hashlib
import time
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from fedsim.aggregate import fold
from fedsim.channel import wire
from fedsim.engine.block import Job, to_numpy
from fedsim.engine.plan import plan
from fedsim.engine.worker import Backend, Done, Setup
from fedsim.errors import Diverged
from fedsim.evaluate import Evaluate, evaluate
from fedsim.schedule import Schedule
from fedsim.store import Store
from fedsim.tree import leaves, tensors, tree_map
from fedsim.types import Round

Record = dict[str, float]


class Orchestrator:
    """A centralized run in progress: the server's state, the clients' store, and one method per round.

    Args:
        setup: what the workers were given.
        backend: who computes.
        schedule: who takes part when.
        evaluation: when and what to evaluate.
        x0: [d] initial model.
        block: most clients computed at once.
        jobs: pieces a cohort is cut into, or ``auto``.
        rounds: how many there will be.
    """

    def __init__(
        self,
        setup: Setup,
        backend: Backend,
        schedule: Schedule,
        evaluation: Evaluate,
        x0: Tensor,
        *,
        block: int,
        jobs: int | Literal["auto"],
        rounds: int,
    ):
        self.setup, self.backend, self.schedule, self.evaluation = setup, backend, schedule, evaluation
        self.block, self.jobs, self.rounds = block, jobs, rounds
        self.server: Any = setup.algorithm.init_server(x0)
        self.store = Store(setup.algorithm.init_client(x0))
        self.done = 0
        self.confusion: np.ndarray | None = None  # of the last evaluation
        self.sizes = setup.train.sizes()
        self.totals = {"comm/uplink_total_bytes": 0, "comm/downlink_total_bytes": 0}

    def evaluate(self) -> Record:
        """Metrics of the current global model."""
        start = time.perf_counter()
        found = evaluate(
            self.backend, to_numpy(self.server.x), self.setup.test, self.setup.task, clients=self.evaluation.clients
        )
        self.confusion = found.confusion
        return found.metrics | {"time/evaluate_s": time.perf_counter() - start}

    def step(self) -> Record:
        """One round.

        Returns:
            Every scalar of the round by its TensorBoard tag, and ``round``, the number of rounds done.

        Raises:
            Diverged: a loss, a message or the new model is not finite; the server keeps its last finite state.
        """
        start = time.perf_counter()
        algorithm, index = self.setup.algorithm, self.done
        clients = self.schedule.clients(index, len(self.sizes), self.setup.seed)
        rnd = Round(index, clients, len(self.sizes))
        broadcast = algorithm.broadcast(self.server, rnd)
        answers = self._train(rnd, to_numpy(broadcast))
        parts = fold({(j, a.span): a.sums for j, a in enumerate(answers) if a.span})
        weight = sum(a.weight for a in answers)
        received = self.setup.aggregate.finish(parts[0, len(answers)], weight, self.setup.dtype)
        server = algorithm.server(self.server, received, rnd)
        if not all(torch.isfinite(leaf.double().sum()) for leaf in tensors(server, "server")):
            self.store.drop()
            raise Diverged(f"the server's state is not finite after round {index + 1}")
        self.server, self.done = server, index + 1
        self.store.commit()
        uplink = sum(a.uplink_bytes for a in answers)
        downlink = len(clients) * wire.size(broadcast)
        self.totals["comm/uplink_total_bytes"] += uplink
        self.totals["comm/downlink_total_bytes"] += downlink
        record: Record = {
            "round": self.done,
            "train/loss": float(np.concatenate([a.losses for a in answers]).astype(np.float64).mean()),
            "comm/uplink_bytes": uplink,
            "comm/downlink_bytes": downlink,
            **self.totals,
            "time/round_s": time.perf_counter() - start,
        }
        return record | (self.evaluate() if self.evaluation.due(self.done, self.rounds) else {})

    def _train(self, rnd: Round, broadcast: Any) -> list[Done]:
        steps = [self.setup.local.count(int(self.sizes[i])) for i in rnd.clients]
        block = 1 if self.setup.kernel == "loop" else self.block
        cut = plan(rnd.clients, steps, block, self.jobs)
        order = [tuple(i for piece in job for i in piece) for job in cut.jobs]
        jobs = [Job(j, rnd, job, self.store.read(order[j])) for j, job in enumerate(cut.jobs)]
        answers: list[Done] = self.backend.map("train", jobs, cut.costs, broadcast)
        if bad := sorted(i for answer in answers for i in answer.diverged):
            raise Diverged(f"non-finite loss or message in round {rnd.index + 1} from clients {bad}")
        for ids, answer in zip(order, answers, strict=True):
            self.store.write(ids, answer.rows)
        return answers

    def digest(self) -> str:
        """sha256 over the server's state, field by field, as little-endian bytes."""
        hashed = hashlib.sha256()
        for leaf in leaves(tree_map(lambda t: t.detach().cpu().numpy(), self.server)):
            hashed.update(np.ascontiguousarray(leaf).astype(leaf.dtype.newbyteorder("<"), copy=False).tobytes())
        return hashed.hexdigest()
