"""BlazeFL's simulation on a workload, with the FedAvg that it brings; several processes are a pool that it forks anew
for every round.

    python by_blazefl.py WORKLOAD PROCESSES

To its advantage the data lie in memory that the forked processes share, where its examples read a file for each
client, and what torch's optimizers import at their first step is imported before the fork: each process imports it anew
in every round else, which takes seconds. Its DataLoader takes samples one by one, as in its examples.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch._dynamo
from blazefl.contrib import FedAvgBaseClientTrainer, FedAvgBaseServerHandler, FedAvgProcessPoolClientTrainer
from blazefl.core import IPCMode
from contender import serve
from models import model_of
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset
from workloads import LR, WORKLOADS, samples

SAMPLES: dict[str, TensorDataset] = {}
"""Of the workload: made before the pool forks."""


class Parts:
    """Models and clients' samples by the workload's name, so that nothing large is pickled."""

    def __init__(self, name: str):
        self.name = name

    def select_model(self, model_name: str) -> nn.Module:
        """A new network."""
        return model_of(WORKLOADS[model_name])

    def get_dataloader(self, type_: Any, cid: int, batch_size: int, generator: torch.Generator) -> DataLoader[Any]:
        """A client's minibatches in a fresh order."""
        n = WORKLOADS[self.name].sizes[0]
        mine = Subset(SAMPLES[self.name], range(cid * n, (cid + 1) * n))
        return DataLoader(mine, batch_size, shuffle=True, generator=generator)

    def set_dataset(self, type_: Any, cid: int, dataset: Any) -> None:
        """Nothing changes."""


def main(name: str, processes: str) -> None:
    """Race."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    load, parts = WORKLOADS[name], Parts(name)
    SAMPLES[name] = TensorDataset(*map(torch.from_numpy, samples(load)))
    server = FedAvgBaseServerHandler(
        parts, name, parts, 10**6, load.clients, load.cohort / load.clients, "cpu", load.size, seed=0
    )
    how = (parts, "cpu", load.clients, 1, load.size, LR, 0)
    with tempfile.TemporaryDirectory() as folder:
        trainer: Any
        if processes == "1":
            trainer = FedAvgBaseClientTrainer(parts, name, *how)
        else:
            share, state = Path(folder, "share"), Path(folder, "state")
            pool = (int(processes), IPCMode.SHARED_MEMORY)
            trainer = FedAvgProcessPoolClientTrainer(parts, name, share, state, *how, *pool)

        def step() -> None:
            trainer.local_process(server.downlink_package(), server.sample_clients())
            for package in trainer.uplink_package():
                server.load(package)

        serve(step)


if __name__ == "__main__":
    main(*sys.argv[1:])
