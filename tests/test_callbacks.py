"""Callbacks: told of every round once, may stop a run, and cost it nothing when they fail."""

from __future__ import annotations

import csv
import json
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from fedsim import Engine, simulate
from fedsim.algorithms.fedavg import FedAvg
from fedsim.assembly.parts import Parts
from fedsim.callbacks import Callback, CsvFile, EarlyStopping, MLflow, RunView, SaveModels, WandB, wandb_run
from fedsim.errors import InputError, Interrupted
from fedsim.record.checkpoint import Checkpointing
from fedsim.record.result import Result
from tests.conftest import Quadratics
from tests.stopped import Stopped

PARTS = {"model": "fedsim.models.linear_zero", "partition": "fedsim.partition.Natural"}


def run(rounds: int = 6, **changes: Any) -> Result:
    """A least-squares problem in a few milliseconds."""
    from fedsim.models import linear_zero
    from fedsim.partition import Natural

    parts: dict[str, Any] = {
        "data": Quadratics().dataset(),
        "partition": Natural(),
        "model": linear_zero,
        "rounds": rounds,
        "engine": Engine(backend="serial", dtype="float64"),
        "checkpoint": Checkpointing(seconds=0),
    }
    return simulate(changes.pop("algorithm", FedAvg(lr=0.05)), **(parts | changes))


class Listener(Callback):
    """Notes what it is told, and answers from a table."""

    def __init__(self, stops: Mapping[int, str] | None = None):
        self.stops = stops or {}
        self.before: list[int] = []
        self.heard: list[int] = []
        self.ends: list[str] = []

    def begin(self, run: RunView) -> None:
        self.view = run
        self.before = [int(record["round"]) for record in run.records]

    def record(self, record: Mapping[str, float]) -> str | None:
        self.heard.append(int(record["round"]))
        return self.stops.get(int(record["round"]))

    def end(self, summary: Mapping[str, Any]) -> None:
        self.ends.append(str(summary["status"]))


def test_it_is_told_of_every_round_once_and_of_the_end(tmp_path: Path) -> None:
    told = Listener()
    result = run(callbacks=[told], run_dir=tmp_path / "run", name="mine")
    assert (told.before, told.heard, told.ends) == ([], [*range(7)], ["finished"])
    assert (told.view.name, told.view.folder, told.view.rounds) == ("mine", tmp_path / "run", 6)
    assert told.view.config["algorithm"]["lr"] == 0.05
    assert result.summary["digest"] == run().summary["digest"], "who listens changes nothing"


def test_a_record_cannot_be_changed() -> None:
    class Writer(Callback):
        def record(self, record: Any) -> None:
            record["eval/loss"] = 0.0

    result = run(callbacks=[Writer()])
    assert result.metrics[-1]["eval/loss"] == run().metrics[-1]["eval/loss"]


def test_a_run_that_a_callback_stops_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    first, other = Listener({3: "that will do"}), Listener()
    stopped = run(callbacks=[first, other], run_dir=folder)
    assert (stopped.status, stopped.message) == ("stopped", "Listener: that will do")
    assert first.heard == other.heard == [0, 1, 2, 3]
    assert (first.ends, other.ends) == (["stopped"], ["stopped"])
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["status"], summary["rounds"], summary["message"]) == ("stopped", 3, stopped.message)
    second = Listener()
    result = run(callbacks=[second], run_dir=folder, resume=True)
    assert (second.before, second.heard) == ([0, 1, 2, 3], [4, 5, 6])
    assert (result.status, result.summary["digest"]) == ("finished", run().summary["digest"])
    assert [record["round"] for record in result.metrics] == [*range(7)]


def test_a_stop_in_the_last_round_is_its_end() -> None:
    assert run(callbacks=[Listener({6: "enough"})]).status == "finished"


def test_a_round_that_lacked_its_evaluation_is_told_once(tmp_path: Path) -> None:
    told, again = Listener(), Listener()
    Stopped.rounds.add(3)
    with pytest.raises(Interrupted):
        run(callbacks=[told], run_dir=tmp_path / "run", schedule=Stopped(cohort=5))
    assert told.ends == ["interrupted"]
    run(callbacks=[again], run_dir=tmp_path / "run", schedule=Stopped(cohort=5), resume=True)
    assert again.before == told.heard == [0, 1, 2, 3]
    assert again.heard == [4, 5, 6]


@pytest.mark.parametrize("method", ["begin", "record", "end"])
def test_one_that_raises_is_named_with_its_file_and_line(
    method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(self: Any, value: Any) -> None:
        raise ZeroDivisionError("by\nzero")

    bad = type("Bad", (Callback,), {method: fail, "__module__": __name__})()
    told = Listener()
    if method == "begin":
        with pytest.raises(
            InputError, match=r"callback Bad: tests\.test_callbacks\.Bad failed at .*test_callbacks.py:"
        ):
            run(callbacks=[bad, told], run_dir=tmp_path / "run")
        assert told.heard == []
        return
    result = run(callbacks=[bad, told], run_dir=tmp_path / "run")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: callback tests.test_callbacks.Bad failed at ")
    assert line.endswith("in fail: ZeroDivisionError: by zero; the run goes on without it")
    assert "test_callbacks.py:" in line
    assert (result.status, result.summary["digest"]) == ("finished", run().summary["digest"])
    assert (told.heard, told.ends) == ([*range(7)], ["finished"]), "the others are told all the same"


def test_a_run_that_fails_tells_those_that_had_begun() -> None:
    class Broken(Callback):
        def begin(self, run: RunView) -> None:
            raise InputError("no")

    told = Listener()
    with pytest.raises(InputError):
        run(callbacks=[told, Broken()])
    assert told.ends == ["failed"]


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ("csv", r"callbacks must be a list of callbacks such as .*, got 'csv'"),
        (["csv"], r"callbacks\[0\] must be one of .*, got 'csv'; names are for the command line"),
        ([CsvFile], r"callbacks\[0\] must be .*, got the class CsvFile; pass an object of it: CsvFile\(\.\.\.\)"),
        ([object()], r"got object without begin, record, end; begin your class with class NAME\(Callback\)"),
    ],
)
def test_what_is_none_is_refused(given: Any, line: str) -> None:
    with pytest.raises(InputError, match=line):
        run(callbacks=given)


def test_what_replays_and_verifies_takes_a_run_with_callbacks() -> None:
    told = Listener()
    parts = Parts(
        FedAvg(lr=0.1),
        Quadratics().dataset(),
        partition=__import__("fedsim.partition").partition.Natural(),
        model=__import__("fedsim.models").models.linear_zero,
        rounds=1,
        callbacks=[told],
        name="x",
    )
    assert replace(parts, rounds=2).callbacks == (told,)


# Early stopping: a pure function of the records.


def evaluations(stop: EarlyStopping, values: list[float | None], tag: str = "eval/loss", begin: int = 0) -> list[int]:
    """In which rounds it asks to stop."""

    def record(number: int) -> dict[str, float]:
        value = values[number]
        return {"round": number, "train/loss": 1.0} | ({tag: value} if value is not None else {})

    stop.begin(RunView("", {}, None, len(values), [record(i) for i in range(begin)], lambda: None))
    return [i for i in range(begin, len(values)) if stop.record(record(i))]


LOSSES = [9.0, 5.0, None, 5.0, 6.0, 5.5, 4.9, 7.0, 7.0, 7.0, 7.0]


def test_patience_counts_evaluations_without_a_better_one_and_then_anew() -> None:
    patient = EarlyStopping(metric="eval/loss", patience=3)
    assert evaluations(patient, LOSSES) == [5, 9]  # 5, 6 and 5.5 are no better than 5; the round without one waits
    for begin in range(len(LOSSES)):
        assert evaluations(patient, LOSSES, begin=begin) == [i for i in (5, 9) if i >= begin], "as if it had listened"
    assert evaluations(replace(patient, min_delta=0.2), LOSSES) == [5, 8]  # 4.9 does not count


def test_a_target_stops_once() -> None:
    for mode in ("auto", "min"):
        stop = EarlyStopping(metric="eval/loss", target=5.0, mode=mode)  # type: ignore[arg-type]
        assert evaluations(stop, LOSSES) == [1]
        assert evaluations(stop, LOSSES, begin=2) == []
    assert evaluations(EarlyStopping(metric="eval/loss", target=5.0, mode="max"), LOSSES) == [0]
    assert evaluations(EarlyStopping(target=0.9), [0.1, 0.95], "eval/accuracy") == [1]
    assert evaluations(EarlyStopping(target=0.9), [float("nan"), float("nan")], "eval/accuracy") == []


@pytest.mark.parametrize(
    ("metric", "tags"),
    [("eval/f1", "eval/loss"), ("evl/loss", r"eval/loss"), ("comm/bytes", r"comm/uplink_bytes")],
)
def test_a_metric_that_is_not_measured_is_named_with_those_that_are(metric: str, tags: str) -> None:
    with pytest.raises(InputError, match=rf"metric must be one of .*{tags}.*, got '{metric}'"):
        run(callbacks=[EarlyStopping(metric=metric, target=1.0)])


def test_its_keys_are_checked() -> None:
    for keys, line in (
        ({}, "target must be given, or patience"),
        ({"patience": 0}, "patience must be >= 1"),
        ({"target": 1, "min_delta": -1}, "min_delta must be >= 0"),
        ({"target": 1, "mode": "up"}, "mode must be one of auto, min, max"),
        ({"target": 90}, "target must be at most 1, as eval/accuracy is, got 90.0; 0.9 is 90 %"),
        ({"target": 1, "metric": "accuracy"}, "metric must be a tag such as eval/accuracy"),
    ):
        with pytest.raises(InputError, match=line):
            EarlyStopping(**keys)  # type: ignore[arg-type]


# Files.


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_table_is_the_records_and_a_resume_repeats_none(tmp_path: Path) -> None:
    path = tmp_path / "run" / "metrics.csv"
    run(callbacks=[CsvFile(), Listener({2: "enough"})], run_dir=tmp_path / "run")
    with path.open("a") as file:
        file.write("3,a round that no checkpoint has\r\n")
    result = run(callbacks=[CsvFile()], run_dir=tmp_path / "run", resume=True)
    found = rows(path)
    assert [row["round"] for row in found] == [str(i) for i in range(7)]
    for row, record in zip(found, result.metrics, strict=True):
        assert {tag: float(value) for tag, value in row.items() if value} == record


def test_the_table_makes_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "new" / "mine.csv"
    run(callbacks=[CsvFile(path=str(path))])
    assert len(rows(path)) == 7


def test_a_file_of_somebody_else_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("mine")
    with pytest.raises(InputError, match=r"csv\.path must be a new file"):
        run(callbacks=[CsvFile(path=str(path))])
    assert path.read_text() == "mine"
    with pytest.raises(InputError, match=r"csv\.path must be given for a run without a folder"):
        run(callbacks=[CsvFile()])


def test_models_on_the_way_have_the_names_of_the_module(tmp_path: Path) -> None:
    result = run(callbacks=[SaveModels(every=4)], run_dir=tmp_path / "run", trajectory=True)
    files = sorted((tmp_path / "run" / "models").iterdir())
    assert [path.name for path in files] == [f"round-{i:08}.safetensors" for i in (0, 4, 6)]
    assert result.model is not None
    for path, at in zip(files, (0, 4, 6), strict=True):
        held = load_file(path)
        assert set(held) == set(result.model.state_dict())
        flat = torch.cat([held[name].reshape(-1) for name, _ in result.model.named_parameters()])
        assert torch.equal(flat, torch.from_numpy(result.trajectory[at]))  # type: ignore[index]
        with safe_open(path, framework="pt") as file:
            assert file.metadata() == {"round": str(at)}


# From the command line.


def test_a_target_and_trackers_from_one_command_line(console: Callable[..., int], tmp_path: Path) -> None:
    tiny = ("engine=serial", "model=linear", "partition=iid", "partition.clients=4", "schedule=all", "rounds=40")
    picked = ("callbacks=[early_stopping,csv]", "callbacks.early_stopping.target=0.8", "name=early")
    assert console(*tiny, *picked) == 0
    (folder,) = tmp_path.glob("outputs/*/*-early")
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "stopped"
    assert summary["eval/accuracy"]["last"] >= 0.8
    assert summary["rounds"] == summary["eval/accuracy"]["best_round"] < 40
    assert len(rows(folder / "metrics.csv")) == summary["rounds"] + 1
    target = float(summary["eval/accuracy"]["last"]) + 0.02
    assert console(f"resume={folder}", f"callbacks.early_stopping.target={target}") == 0
    later = json.loads((folder / "summary.json").read_text())
    assert (later["status"], later["rounds"] > summary["rounds"]) == ("stopped", True)
    assert console(f"resume={folder}", "callbacks=[]", f"rounds={later['rounds'] + 1}") == 0
    last = json.loads((folder / "summary.json").read_text())
    assert (last["status"], last["rounds"]) == ("finished", later["rounds"] + 1)
    assert console("replay", str(folder), "round=1", "client=0") == 0


def test_a_callback_of_ones_own_is_added_to_those_that_are_chosen(
    console: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "my_hooks.py").write_text(
        "from dataclasses import dataclass\n"
        "from fedsim.callbacks import Callback\n\n"
        "@dataclass\n"
        "class After(Callback):\n"
        "    rounds: int = 2\n\n"
        "    def record(self, record):\n"
        "        return 'that was enough' if record['round'] >= self.rounds else None\n"
    )
    own = ("callbacks.after._target_=my_hooks.After", "callbacks.after.rounds=1")
    tiny = ("engine=serial", "model=linear", "partition=iid", "partition.clients=4", "schedule=all", "rounds=3")
    assert console(*tiny, "callbacks=[csv]", *own) == 0
    (folder,) = tmp_path.glob("outputs/*/*")
    assert json.loads((folder / "summary.json").read_text())["message"] == "After: that was enough"
    assert folder.name.endswith("-fedavg-digits-iid-s0")
    assert (folder / "metrics.csv").exists()
    capsys.readouterr()
    assert console(f"resume={folder}", "callbacks=[cvs]") == 2
    assert "unknown option callbacks=cvs; did you mean csv? options of callbacks: csv," in capsys.readouterr().err
    assert console(f"resume={folder}") == 2
    assert "my_hooks.After, which can run any code; add trust=true" in capsys.readouterr().err
    assert console(*tiny, "callbacks.csv.path=x") == 2
    assert "choose callbacks first: callbacks=[csv]" in capsys.readouterr().err
    assert console(*tiny, "callbacks=[wandbb]") == 2
    assert "unknown option callbacks=wandbb; did you mean wandb?" in capsys.readouterr().err


@pytest.mark.slow  # two sweeps
def test_a_sweep_takes_a_stopped_job_for_done(
    console: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = ("engine=serial", "model=linear", "partition=iid", "partition.clients=4", "schedule=all", "rounds=30")
    line = ("-m", *tiny, "seed=0,1", "callbacks=[early_stopping]", "callbacks.early_stopping.target=0.5")
    sweep = ("hydra.sweep.dir=many", "hydra/launcher=basic")
    assert console(*line, *sweep) == 0
    states = [json.loads(path.read_text()) for path in (tmp_path / "many" / "jobs").glob("*.json")]
    assert [state["status"] for state in states] == ["stopped", "stopped"]
    capsys.readouterr()
    assert console(*line, *sweep) == 0
    assert "2 of 2 jobs are done: 2 stopped" in capsys.readouterr().out


# Trackers.


@pytest.mark.parametrize(("kind", "module"), [(WandB, "wandb"), (MLflow, "mlflow")])
def test_a_package_that_is_missing_is_named_before_anything_starts(
    kind: Any, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedsim.callbacks.base.find_spec", lambda name: None)
    line = rf"callbacks=\[{module}\] needs the package {module}, got none; pip install 'fedsim-ray\[{module}\]'"
    with pytest.raises(InputError, match=line):
        kind()


@dataclass
class After(Callback):
    """Stops after some rounds."""

    rounds: int

    def record(self, record: Mapping[str, float]) -> str | None:
        return "enough" if record["round"] == self.rounds else None


@pytest.mark.slow  # its store is a data base with forty versions to go through
def test_mlflow_in_a_local_store_has_every_round_once(tmp_path: Path) -> None:
    tracking = pytest.importorskip("mlflow.tracking")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    run(callbacks=[MLflow(uri=uri), After(3)], run_dir=tmp_path / "run", name="mine")
    result = run(callbacks=[MLflow(uri=uri)], run_dir=tmp_path / "run", name="mine", resume=True)
    client = tracking.MlflowClient(tracking_uri=uri)
    (found,) = client.search_runs([client.get_experiment_by_name("fedsim").experiment_id])
    assert (found.info.run_name, found.info.status) == ("mine", "FINISHED")
    assert found.data.params["algorithm.lr"] == "0.05"
    assert found.data.tags["fedsim.digest"] == result.summary["digest"]
    history = client.get_metric_history(found.info.run_id, "eval/loss")
    assert [(m.step, m.value) for m in history] == [(int(r["round"]), r["eval/loss"]) for r in result.metrics]


@pytest.mark.slow  # wandb starts a process of its own for every run
def test_wandb_offline_has_every_round_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    offline = WandB(mode="offline", project="tests")
    run(callbacks=[offline, After(3)], run_dir=tmp_path / "run", name="mine")
    result = run(callbacks=[offline], run_dir=tmp_path / "run", name="mine", resume=True)
    files = sorted((tmp_path / "run").glob("wandb/offline-run-*/run-*.wandb"))
    assert len(files) == 2, "one for each time"
    assert len({path.name for path in files}) == 1, "the same run"
    until = time.monotonic() + 60
    while True:  # what finish leaves to wandb's own process may reach the file a little later on a busy machine
        logged = [row for path in files for row in history(path)]
        if len(logged) >= 7 or time.monotonic() > until:
            break
        time.sleep(0.5)
    assert [row["_step"] for row in logged] == [*range(7)]
    assert [row["eval/loss"] for row in logged] == [record["eval/loss"] for record in result.metrics]


def test_only_a_run_that_ended_as_it_should_is_a_success_at_wandb() -> None:
    codes: dict[str, int] = {}
    for status in ("finished", "stopped", "diverged", "failed", "interrupted"):
        listener = WandB.__new__(WandB)
        told = partial(codes.setdefault, status)
        listener._run = SimpleNamespace(summary={}, finish=lambda exit_code, told=told: told(exit_code))  # type: ignore[assignment]
        listener.end({"status": status})
    assert codes == {"finished": 0, "stopped": 0, "diverged": 1, "failed": 1, "interrupted": 1}


def test_a_run_that_goes_on_at_once_has_files_of_its_own_at_wandb(tmp_path: Path) -> None:
    """wandb names them by the second: two starts within one wrote into the same file, and the first was lost."""
    pytest.importorskip("wandb")
    now = f"{datetime.now():%Y%m%d_%H%M%S}"
    (tmp_path / f"offline-run-{now}-abc").mkdir()
    wandb_run._wait_for_a_name(tmp_path, "other")
    wandb_run._wait_for_a_name(tmp_path, "abc")
    assert f"{datetime.now():%Y%m%d_%H%M%S}" > now


def history(path: Path) -> list[dict[str, Any]]:
    """The rows of an offline run's file: after a header of 7 bytes, LevelDB's log of protocol buffers."""
    from wandb.proto import wandb_internal_pb2

    found = []
    for data in log_records(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            row = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            found.append(row)
    return found


def log_records(data: bytes, block: int = 32768) -> Iterator[bytes]:
    """Pieces have a header (crc, length, kind: whole, first, middle or last) and never cross the end of a block."""
    at, parts = 7, b""
    while at + 7 <= len(data):
        if block - at % block < 7:
            at += block - at % block
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield parts
            parts = b""


@pytest.mark.parametrize("when", ["begin", "record", "end"])
def test_a_callback_that_changes_the_current_folder_does_not_move_the_run(
    when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    walker = Listener()
    method = getattr(walker, when)
    monkeypatch.setattr(walker, when, lambda told: monkeypatch.chdir(tmp_path / "elsewhere") or method(told))
    result = run(2, run_dir="mine", callbacks=[walker])
    assert result.run_dir == tmp_path / "here" / "mine"
    assert json.loads((result.run_dir / "summary.json").read_text())["status"] == "finished"
    assert not list((tmp_path / "elsewhere").iterdir())
    assert (result.run_dir / "model.safetensors").is_file()
