"""fedsim on a workload.

python by_fedsim.py WORKLOAD KEY=VALUE ...    settings of fedsim.Engine
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import yaml
from contender import serve
from models import model_of
from workloads import CLIP, ETA, LR, NOISE, RATIO, RHO, SLOW, WORKLOADS, Workload, samples

from fedsim import Engine, Evaluate, Local
from fedsim.aggregate import Mean
from fedsim.algorithms.dfedsam import DFedSAM
from fedsim.algorithms.dp_sgd import PrivateSGD
from fedsim.algorithms.dpsgd import DPSGD
from fedsim.algorithms.fedavg import FedAvg
from fedsim.algorithms.fedprox import FedProx
from fedsim.assembly.assemble import assemble
from fedsim.assembly.parts import Parts
from fedsim.channel.channel import Channel
from fedsim.channel.econtrol import econtrol
from fedsim.channel.onion import Layer
from fedsim.channel.topk import TopK
from fedsim.data import Dataset, Split
from fedsim.ground.process import claim
from fedsim.models import linear_zero
from fedsim.objective import Objective
from fedsim.partition import Natural
from fedsim.runs.run import Run
from fedsim.schedule import All, Uniform
from fedsim.topology import Ring
from fedsim.types import Message, Round


@dataclass(frozen=True)
class NoOp(FedAvg):
    """Clients that send back a zero update: what is left is the engine."""

    def local(self, obj: Objective, client: tuple[()], got: Message, rnd: Round) -> tuple[Message, tuple[()]]:
        """No work."""
        return {"update": torch.zeros_like(got["x"]) * obj.steps}, client


RULES: dict[str, Any] = {
    "fedavg": FedAvg(lr=LR),
    "nothing": NoOp(lr=LR),
    "dfedsam": DFedSAM(lr=LR, rho=RHO),
    "dpsgd": DPSGD(lr=SLOW),
    "econtrol": FedAvg(lr=LR),
    "dp_sgd": PrivateSGD(lr=LR, clip=CLIP, noise_multiplier=NOISE),
}


def parts_of(load: Workload, engine: Engine) -> Parts:
    """The run of a workload."""
    x, y = samples(load)
    task = "next_token" if load.tokens else "least_squares" if load.classes == 1 else "classification"
    owners = np.repeat(np.arange(load.clients), load.sizes)
    data = Dataset("samples", Split(x, y, owners), None, task, load.classes)
    torch.manual_seed(0)
    model: Any = model_of(load) if load.model else linear_zero
    local = Local(batch_size=load.batch, epochs=load.epochs)
    rule = FedProx(lr=load.lr, mu=load.mu) if load.mu else RULES[load.method]
    parts = Parts(rule, data, Natural(), model, 10**9, local=local)
    parts = replace(parts, engine=engine, schedule=All() if load.peers else Uniform(cohort=load.cohort))
    if load.method == "econtrol":
        return replace(parts, channel=Channel((Layer("econtrol", econtrol(eta=ETA)), Layer("topk", TopK(ratio=RATIO)))))
    if load.method == "dp_sgd":
        return replace(parts, aggregate=Mean(weights="uniform"))
    return replace(parts, topology=Ring()) if load.peers else parts


def ahead(run: Run, rounds: int) -> None:
    """So many rounds, as a run of fedsim makes them where nobody looks at those between."""
    while rounds:
        rounds -= len(run.go(rounds))


def main(name: str, *settings: str) -> None:
    """Race."""
    torch.set_num_threads(1)
    engine = Engine(**{key: yaml.safe_load(value) for key, value in (one.split("=") for one in settings)})
    parts = parts_of(WORKLOADS[name], engine)
    assembled = assemble(parts, parts.data if isinstance(parts.data, Dataset) else None)
    backend = assembled.start()
    try:
        run, rounds = assembled.begin(backend, Evaluate(every=10**9)), WORKLOADS[name].rounds
        serve(lambda: ahead(run, rounds))
    finally:
        backend.close()


if __name__ == "__main__":
    claim()
    main(*sys.argv[1:])
