"""Flower's simulation on a workload, with its message API and FedAvg strategy.

    python by_flower.py WORKLOAD ACTORS

To its advantage every actor keeps all data and one model, which a user's app would load for each message.
"""

from __future__ import annotations

import sys
from functools import cache
from typing import Any

import torch
from by_hand import Eager
from contender import asked
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from models import model_of
from workloads import WORKLOADS, Workload


@cache
def here(name: str) -> Eager:
    """The client's data and model in this actor."""
    torch.set_num_threads(1)
    return Eager(WORKLOADS[name], "cpu")


def client(name: str) -> ClientApp:
    """Local training as in the loop by hand."""
    app = ClientApp()

    @app.train()  # type: ignore[untyped-decorator]
    def train(message: Message, context: Context) -> Message:
        eager = here(name)
        eager.work.load_state_dict(message.content["arrays"].to_torch_state_dict())
        if eager.load.method != "nothing":
            eager.train(int(context.node_config["partition-id"]))
        metrics = MetricRecord({"num-examples": eager.load.sizes[0]})
        content = RecordDict({"arrays": ArrayRecord(eager.work.state_dict()), "metrics": metrics})
        return Message(content=content, reply_to=message)

    return app


class Stopped(Exception):
    """No further round was asked for."""


def server(load: Workload) -> ServerApp:
    """One round for every line of the standard input."""
    app = ServerApp()

    @app.main()  # type: ignore[untyped-decorator]
    def main(grid: Grid, context: Context) -> None:
        def measured(server_round: int, arrays: ArrayRecord) -> None:
            if not asked():  # called before the first round and after every one
                raise Stopped

        strategy = FedAvg(load.cohort / load.clients, 0.0, load.cohort, 0, load.clients)
        arrays = ArrayRecord(model_of(load).state_dict())
        try:
            strategy.start(grid, arrays, num_rounds=10**6, evaluate_fn=measured)
        except Stopped:
            return

    return app


def main(name: str, actors: str) -> None:
    """Race."""
    load = WORKLOADS[name]
    resources: Any = {"client_resources": {"num_cpus": 1, "num_gpus": 0}, "init_args": {"num_cpus": int(actors)}}
    run_simulation(server(load), client(name), load.clients, backend_config=resources)


if __name__ == "__main__":
    import by_flower  # under its own name, by which Ray's actors import it

    by_flower.main(*sys.argv[1:])
