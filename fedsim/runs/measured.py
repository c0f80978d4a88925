"""What is measured of peers: the mean of their models, their distance from it, each model of its own."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fedsim.evaluate import Evaluate
from fedsim.pool.block import to_numpy
from fedsim.pool.worker import Backend, Models, Setup
from fedsim.runs.evaluation import Evaluation, evaluate, gradient, peer_values, peers_scores

TOGETHER = 2**15
"""Numbers of models that are looked at together where each has few."""


def measured(backend: Backend, setup: Setup, models: Tensor, evaluation: Evaluate) -> Evaluation:
    """Metrics of the mean of the peers' models [n, d], and of their own models if asked for."""
    mean = to_numpy(mean_of(models))
    found = evaluate(backend, mean, setup, clients=False)
    metrics = found.metrics | {"gossip/consensus_distance": consensus(models)}
    table: dict[str, np.ndarray] | None = None
    if evaluation.clients:
        shared, scores = setup.measures.shared, own(backend, models)
        metrics |= peers_scores(scores, shared, "peer")
        table = peer_values(scores, shared, len(setup.test.x))
    if evaluation.gradient:
        metrics |= gradient(backend, mean, setup, np.full(len(models), 1 / len(models)))
    return Evaluation(metrics, found.confusion, table)


def own(backend: Backend, models: Tensor) -> np.ndarray:
    """[n, 1 + metrics] loss and shared metrics of the peers' own models [n, d], each on all test samples."""
    jobs = [Models(models[a : a + 8].numpy()) for a in range(0, len(models), 8)]
    return np.concatenate(backend.map("evaluate_models", jobs, [len(job.x) for job in jobs], {}))


def consensus(models: Tensor) -> float:
    """Root of the mean over peers of the squared distance to their mean, from [n, d]."""
    mean = torch.from_numpy(models.numpy().mean(axis=0, dtype=np.float64))
    # Large models one by one, as torch may cut a long sum into pieces; of small ones a call each would cost the most.
    some = max(1, TOGETHER // len(mean))
    parts = torch.split(models, some) if some > 1 else models[:, None].unbind()
    total = sum(value for part in parts for value in (part.double() - mean).square().sum(1).tolist())
    return float(np.sqrt(total / len(models)))


def mean_of(models: Tensor) -> Tensor:
    """[n, d] -> [d], summed in float64."""
    return torch.from_numpy(models.numpy().mean(axis=0, dtype=np.float64)).to(models.dtype)
