"""The loop by hand with Opacus, for DP-SGD.

python by_opacus.py WORKLOAD PROCESSES
"""

from __future__ import annotations

import sys

import torch
from by_hand import Eager, TwoProcesses
from contender import serve
from models import losses
from opacus import GradSampleModule
from opacus.optimizers import DPOptimizer
from workloads import CLIP, LR, NOISE, WORKLOADS, Workload


class Opacus(Eager):
    """Its module and its optimizer in the place of torch's."""

    def __init__(self, load: Workload, device: str):
        super().__init__(load, device)
        self.private_module = GradSampleModule(self.work)

    def train(self, i: int) -> None:
        """A client's local epoch on ``self.work``."""
        sgd = torch.optim.SGD(self.work.parameters(), lr=LR)
        how = {"noise_multiplier": NOISE, "max_grad_norm": CLIP, "expected_batch_size": self.load.size}
        optimizer = DPOptimizer(sgd, **how)
        for x, y in self.minibatches(i):
            optimizer.zero_grad()
            torch.autograd.backward(losses(self.private_module(x), y))
            optimizer.step()


def main(name: str, processes: str) -> None:
    """Race."""
    torch.set_num_threads(1)
    load = WORKLOADS[name]
    serve((Opacus(load, "cpu") if processes == "1" else TwoProcesses(load, Opacus)).step)


if __name__ == "__main__":
    main(*sys.argv[1:])
