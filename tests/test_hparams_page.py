"""TensorBoard's hyper-parameters page of several runs, asked of TensorBoard's own plugin."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams.backend_context import Context

from fedsim.record.hparams_page import experiment, varied
from fedsim.record.run_folder import RunFolder
from fedsim.record.tensorboard import EventFile
from fedsim.report.__main__ import main

FEDPROX = {"_target_": "fedsim.algorithms.fedprox.FedProx", "lr": 0.1, "mu": 0.01}
FEDAVG = {"_target_": "fedsim.algorithms.fedavg.FedAvg", "lr": 0.1}


def page(folder: Path) -> tuple[list[tuple[str, bool]], list[str]]:
    """(key, whether it varies) of each column and the metrics, from left to right."""
    runs = EventMultiplexer().AddRunsFromDirectory(str(folder))
    runs.Reload()
    context = Context(TBContext(data_provider=MultiplexerDataProvider(runs, str(folder))))
    asked = RequestContext()
    found: Any = context.experiment_from_metadata(asked, "", True, context.hparams_metadata(asked, ""), [])
    return [(i.name, i.differs) for i in found.hparam_infos], [i.name.tag for i in found.metric_infos]


def write_runs(folder: Path) -> None:
    for number, algorithm in enumerate((FEDAVG, FEDAVG, FEDPROX)):
        config = {"seed": number, "rounds": 1, "algorithm": algorithm, "data": {"_target_": "fedsim.data.Digits"}}
        with RunFolder.create(folder / str(number), config, {}) as run:
            for done in (0, 1):
                comm = {"comm/uplink_bytes": 8, "comm/uplink_total_bytes": 8} if done else {}
                run.write({"round": done, **comm, "train/loss": 1.0, "eval/loss": 2.0, "eval/accuracy": 0.5})
            run.finish({"status": "finished", "rounds": 1, "digest": "ab", "time/wall_s": 1.0})


METRICS = ["eval/accuracy", "eval/loss", "train/loss", "comm/uplink_bytes", "comm/uplink_total_bytes"]


def test_what_varies_and_accuracy_stand_first_after_a_report(tmp_path: Path) -> None:
    write_runs(tmp_path)
    keys, metrics = page(tmp_path)
    assert metrics == sorted(METRICS), "what TensorBoard does by itself"
    assert main([str(tmp_path)]) == 0
    keys, metrics = page(tmp_path)
    assert metrics == METRICS
    assert [key for key, varies in keys if varies] == ["algorithm", "seed"]
    assert [key for key, _ in keys[:2]] == ["algorithm", "seed"]
    assert {key for key, _ in keys} == {"algorithm", "algorithm.mu", "algorithm.lr", "seed", "rounds", "data"}


def test_columns_that_vary_are_those_that_a_sweep_varies() -> None:
    """TensorBoard ticks five: what only follows from the method would push the seed out of sight."""
    follows: dict[str, dict[str, bool | float | str]] = {
        "FedAvg": {"aggregate.weights": "examples", "algorithm.momentum": 0.0, "algorithm.server_lr": 1.0},
        "Scaffold": {"aggregate.weights": "uniform", "algorithm.option": 2, "algorithm.cut": False},
    }
    runs: list[dict[str, bool | float | str]] = [
        {"algorithm": name, "algorithm.lr": lr, "seed": seed, "name": f"{name}-s{seed}", "rounds": 8, **more}
        for name, more in follows.items()
        for lr in (0.05, 0.1)
        for seed in (0, 1)
    ]
    assert varied(runs) == {"algorithm", "algorithm.lr", "seed"}
    runs[-1]["algorithm.option"] = 1
    assert varied(runs) == {"algorithm", "algorithm.lr", "algorithm.option", "seed"}


def test_a_column_has_the_type_and_the_values_to_filter_by(tmp_path: Path) -> None:
    runs: list[dict[str, bool | float | str]] = [
        {"a": True, "b": 1, "c": 2.5, "d": "x"},
        {"a": True, "b": "full", "c": 1, "d": "x"},
    ]
    infos = {info.name: info for info in experiment(runs, ()).hparam_infos}
    assert {name: info.differs for name, info in infos.items()} == {"a": False, "b": True, "c": True, "d": False}
    assert list(infos["a"].domain_discrete) == [True]
    assert list(infos["b"].domain_discrete) == ["1", "full"]
    assert (infos["c"].domain_interval.min_value, infos["c"].domain_interval.max_value) == (1.0, 2.5)
    events = EventFile(tmp_path, None)
    events.columns(experiment(runs, ["eval/loss"]))
    events.close()
    assert page(tmp_path)[1] == ["eval/loss"]


@pytest.mark.slow  # a sweep of four runs in processes of their own
def test_a_sweep_has_them_by_itself(console: Callable[..., int], tmp_path: Path) -> None:
    tiny = ("engine=serial", "partition=iid", "partition.clients=4", "schedule=all", "model=linear", "rounds=1")
    line = ("-m", *tiny, "algorithm=fedavg,fedprox", "seed=0,1", "hydra.sweep.dir=many")
    assert console(*line) == 0
    keys, metrics = page(tmp_path / "many")
    assert metrics[:2] == ["eval/accuracy", "eval/loss"]
    assert [key for key, varies in keys if varies] == ["algorithm", "seed"]
    assert console(*line[:-2], "seed=0,1,2", "hydra.sweep.dir=many") == 0
    assert len(list((tmp_path / "many" / "tensorboard").iterdir())) == 1, "made anew when the sweep has grown"
