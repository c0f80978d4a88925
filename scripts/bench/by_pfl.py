"""pfl-research's simulation on a workload; in several processes under torchrun.

    python by_pfl.py WORKLOAD

To its advantage its minibatches come in stored order, without the shuffle and the copy of the others.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import torch
from contender import ANSWERS, asked
from models import losses, model_of
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam import NNTrainHyperParams
from pfl.metrics import Metrics
from pfl.model.pytorch import PyTorchModel
from torch import Tensor, nn
from workloads import LR, WORKLOADS, samples

FIRST = os.environ.get("RANK", "0") == "0"


class Trained(nn.Module):
    """A module with the two methods that pfl asks for."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Outputs."""
        return self.model(x)  # type: ignore[no-any-return]

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """The mean loss of a minibatch."""
        self.train()
        return losses(self.model(x), y)

    def metrics(self, x: Tensor, y: Tensor) -> dict[str, Any]:
        """Nothing is measured."""
        return {}


class Asked(TrainingProcessCallback[Any]):  # type: ignore[misc]
    """One round for every line of the standard input, which the first process reads."""

    def on_train_begin(self, *, model: Any) -> Metrics:
        """Before the first round."""
        if "RANK" in os.environ and FIRST:  # torchrun keeps the descriptor to itself
            theirs = f"/proc/{os.getppid()}/fd/{os.environ[ANSWERS]}"
            os.environ[ANSWERS] = str(os.open(theirs, os.O_WRONLY))
        self._further()
        return Metrics()

    def after_central_iteration(self, metrics: Metrics, model: Any, *, central_iteration: int) -> tuple[bool, Metrics]:
        """After every one."""
        return not self._further(), Metrics()

    def _further(self) -> bool:
        go = torch.tensor([int(asked()) if FIRST else 0])
        if "RANK" in os.environ:
            torch.distributed.broadcast(go, 0)
        return bool(go)


def main(name: str, processes: str = "1") -> None:
    """Race; torchrun starts the processes, which this does not have to know."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    load = WORKLOADS[name]
    x, y = (torch.from_numpy(part) for part in samples(load))
    n = load.sizes[0]
    users = {i: Dataset((x[i * n : (i + 1) * n], y[i * n : (i + 1) * n]), user_id=str(i)) for i in range(load.clients)}
    data = FederatedDataset(users.__getitem__, get_user_sampler("random", list(users)))
    module = Trained(model_of(load))
    central = torch.optim.SGD(module.parameters(), lr=1.0)
    model = PyTorchModel(module, torch.optim.SGD, central)
    work = NNTrainHyperParams(
        local_batch_size=None if load.batch == "full" else load.batch, local_num_epochs=1, local_learning_rate=LR
    )
    rounds = NNAlgorithmParams(
        central_num_iterations=10**6, evaluation_frequency=10**9, train_cohort_size=load.cohort, val_cohort_size=0
    )
    backend = SimulatedBackend(training_data=data, val_data=None)
    FederatedAveraging().run(rounds, backend, model, work, None, [Asked()])


if __name__ == "__main__":
    main(*sys.argv[1:])
