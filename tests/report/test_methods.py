"""Which runs belong together, and what they are called."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fedsim.report.command_lines import command_lines
from fedsim.report.methods import SharedSetting, settings
from fedsim.report.runs import RecordedRun, read_run
from tests.report.folders import FEDAVG, FEDPROX, TOPK, config, records, write_run


def runs(folder: Path, *configs: dict[str, Any], **how: Any) -> list[RecordedRun]:
    return [read_run(write_run(folder / str(i), one, records([0.1, 0.2]), **how)) for i, one in enumerate(configs)]


def shape(found: list[SharedSetting]) -> dict[str, dict[str, list[int]]]:
    return {s.label: {m.label: [run.seed for run in m.runs] for m in s.methods} for s in found}


def test_seeds_and_what_changes_no_bit_make_no_method(tmp_path: Path) -> None:
    other = config(FEDAVG, 1)
    other["engine"] = other["engine"] | {"backend": "ray", "actors": 8}
    found, repeats = settings(runs(tmp_path, config(FEDAVG, 2), other, config(FEDPROX, 0), config(FEDAVG, 0)))
    assert shape(found) == {"": {"FedAvg": [0, 1, 2], "FedProx": [0]}}
    assert repeats == []


def test_methods_are_named_by_what_differs_among_those_of_the_same_algorithm(tmp_path: Path) -> None:
    configs = [
        config(FEDAVG),
        config(FEDAVG, channel=TOPK),
        config(FEDPROX),
        config(FEDPROX | {"mu": 1.0}),
        config(FEDAVG, channel=TOPK | {"topk": TOPK["topk"] | {"ratio": 0.5}}),
    ]
    found, _ = settings(runs(tmp_path, *configs))
    names = [
        "FedAvg",
        "FedAvg + topk, topk.ratio=0.05",
        "FedProx, mu=0.01",
        "FedProx, mu=1",
        "FedAvg + topk, topk.ratio=0.5",
    ]
    assert [method.label for method in found[0].methods] == names


def test_what_is_not_of_the_method_is_a_setting(tmp_path: Path) -> None:
    configs = [config(algorithm, seed) for algorithm in (FEDAVG, FEDPROX) for seed in (0, 1)]
    every = [one | {"partition": one["partition"] | {"alpha": alpha}} for alpha in (0.1, 0.5) for one in configs]
    found, _ = settings(runs(tmp_path, *every))
    both = {"FedAvg": [0, 1], "FedProx": [0, 1]}
    assert shape(found) == {"partition.alpha=0.1": both, "partition.alpha=0.5": both}
    found, _ = settings([read_run(tmp_path / str(i)) for i in range(8)], ["partition.alpha"])
    assert list(shape(found)) == [""]
    assert len(found[0].methods) == 4
    assert found[0].methods[0].label == "FedAvg, partition.alpha=0.1"


def test_of_two_runs_with_the_same_configuration_and_seed_the_finished_one_counts(tmp_path: Path) -> None:
    rows = records([0.1, 0.2, 0.3])
    long = read_run(write_run(tmp_path / "long", config(), rows, status=None))
    done = read_run(write_run(tmp_path / "done", config(), rows[:2]))
    for order in ([long, done], [done, long]):
        found, repeats = settings(order)
        assert found[0].methods[0].runs == (done,)
        assert repeats == [long]


def test_runs_started_from_python_are_named_too(tmp_path: Path) -> None:
    made = {"name": "mine", "digest": "0" * 8}
    each = [config({"_target_": "m.FedAvg", "lr": lr}, data=made) for lr in (0.1, 1.0)]
    found, _ = settings(runs(tmp_path, *each))
    assert [method.label for method in found[0].methods] == ["FedAvg, lr=0.1", "FedAvg, lr=1"]
    alone = "no command: started from Python with samples of its own (seed 0)"
    assert command_lines(found[0].methods[0].runs) == [alone]


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["algorithm=fedavg", "seed=4", "channel=[topk]"], "fedsim algorithm=fedavg 'channel=[topk]' seed=0"),
        ([], "fedsim seed=0"),
        (
            ["~algorithm", "++algorithm._target_=mine.Own", "++algorithm.mu=1", "++channel.topk.fields=[x]"],
            "fedsim algorithm._target_=mine.Own algorithm.mu=1 '++channel.topk.fields=[x]' seed=0",
        ),
    ],
)
def test_the_command_is_what_was_typed(tmp_path: Path, overrides: list[str], line: str) -> None:
    assert command_lines(runs(tmp_path, config(), overrides=overrides)) == [line]


def test_seeds_share_a_command_when_everything_else_is_the_same(tmp_path: Path) -> None:
    first = runs(tmp_path / "a", config(FEDAVG, 1), config(FEDAVG, 0), overrides=["algorithm=fedavg", "seed=9"])
    other = runs(tmp_path / "b", config(FEDAVG, 2), overrides=["algorithm=fedavg", "engine=serial"])
    lines = ["fedsim -m algorithm=fedavg seed=0,1", "fedsim algorithm=fedavg engine=serial seed=2"]
    assert command_lines([*first, *other]) == lines


def test_without_hydras_notes_the_command_starts_from_the_whole_configuration(tmp_path: Path) -> None:
    (run,) = runs(tmp_path, config())
    assert command_lines([run]) == [f"fedsim --config-path {run.path} --config-name config seed=0"]


def test_a_resumed_run_is_run_again_with_all_its_rounds(tmp_path: Path) -> None:
    overrides = ["rounds=4", "algorithm=fedavg", "seed=0"]
    path = write_run(tmp_path / "run", config(), records([0.1, 0.2]), overrides=overrides)
    (path / "provenance.json").write_text('{"resumed": [{"after_round": 4}]}')
    assert command_lines([read_run(path)]) == ["fedsim algorithm=fedavg rounds=10 seed=0"]
