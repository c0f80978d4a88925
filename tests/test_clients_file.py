"""``clients.parquet``: what each client had, whatever happened to the run on its way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedsim import Engine, Evaluate, simulate
from fedsim.algorithms.dpsgd import DPSGD
from fedsim.algorithms.fedavg import FedAvg
from fedsim.algorithms.fedper import FedPer
from fedsim.data import Digits, Metric
from fedsim.errors import InputError, Interrupted
from fedsim.models import mlp
from fedsim.partition import Dirichlet
from fedsim.record.checkpoint import Checkpointing
from fedsim.record.clients_file import CLIENTS
from fedsim.record.result import Result
from fedsim.topology import Ring
from tests.stopped import Stopped

parquet: Any = pytest.importorskip("pyarrow.parquet")

PARTS: dict[str, Any] = {
    "data": Digits(),
    "partition": Dirichlet(clients=5, alpha=0.3),
    "model": lambda input_shape, outputs: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, outputs)),
    "rounds": 5,
    "evaluate": Evaluate(every=2, clients=True),
    "checkpoint": Checkpointing(seconds=0),
}


def run(folder: Path | None, algorithm: Any = None, **changes: Any) -> Result:
    return simulate(algorithm or FedAvg(lr=0.5), **(PARTS | changes), run_dir=folder)


def table(folder: Path) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = parquet.read_table(folder / CLIENTS).to_pydict()
    return found


def test_a_row_for_each_client_and_evaluation_agrees_with_the_metrics(tmp_path: Path) -> None:
    result = run(tmp_path / "run")
    rows = table(tmp_path / "run")
    assert list(rows) == ["round", "client", "samples", "loss", "accuracy"]
    assert rows["round"] == [r for r in (0, 2, 4, 5) for _ in range(5)]
    assert rows["client"] == [*range(5)] * 4
    for record in result.metrics:
        if "eval/loss" in record:
            mine = np.array(rows["accuracy"])[np.array(rows["round"]) == record["round"]]
            assert mine.mean() == record["eval/client_accuracy_mean"]
            assert mine.min() == record["eval/client_accuracy_worst10"]
    last = slice(-5, None)
    samples, accuracy = np.array(rows["samples"][last]), np.array(rows["accuracy"][last])
    overall = result.metrics[-1]["eval/accuracy"]
    assert (samples * accuracy).sum() / samples.sum() == pytest.approx(overall, rel=1e-12), "every sample has an owner"


@pytest.mark.parametrize("algorithm", [FedPer(lr=0.5), DPSGD(lr=0.5)])
def test_clients_with_models_of_their_own_and_peers_have_rows_too(tmp_path: Path, algorithm: Any) -> None:
    peers = isinstance(algorithm, DPSGD)
    more: dict[str, Any] = {"topology": Ring()} if peers else {"model": mlp}
    result = run(tmp_path / "run", algorithm, rounds=2, **more)
    rows = table(tmp_path / "run")
    assert rows["client"] == [*range(5)] * 2
    who = "peer" if peers else "client"
    assert np.mean(rows["accuracy"][-5:]) == pytest.approx(result.metrics[-1][f"eval/{who}_accuracy_mean"], rel=1e-12)
    if peers:
        assert set(rows["samples"]) == {len(Digits().load(0).test.x)}


@pytest.mark.parametrize("round_", [1, 2, 3])
def test_an_interrupted_run_goes_on_to_the_same_rows(tmp_path: Path, round_: int) -> None:
    run(tmp_path / "whole", schedule=Stopped(cohort=5))
    Stopped.rounds.add(round_)
    with pytest.raises(Interrupted):
        run(tmp_path / "cut", schedule=Stopped(cohort=5))
    assert max(table(tmp_path / "cut")["round"]) <= round_
    run(tmp_path / "cut", schedule=Stopped(cohort=5), resume=True)
    assert table(tmp_path / "cut") == table(tmp_path / "whole")


def test_a_killed_run_goes_on_to_the_same_rows(tmp_path: Path) -> None:
    """Killed at any time there are the rows of the last checkpoint, and perhaps some more, which are computed again."""
    run(tmp_path / "long")
    whole = table(tmp_path / "long")
    folder = tmp_path / "cut"
    run(folder, rounds=2)
    more = parquet.read_table(tmp_path / "long" / CLIENTS)
    parquet.write_table(more, folder / CLIENTS)  # rows of rounds that no checkpoint knows
    (folder / f".{CLIENTS}.12345.tmp").write_bytes(b"half")
    (folder / "summary.json").unlink()
    run(folder, resume=True)
    assert table(folder) == whole
    assert not list(folder.glob("*.tmp")) + list(folder.glob(".*.tmp"))


@pytest.mark.parametrize("left", [b"", b"no parquet", None])
def test_a_damaged_file_costs_its_rows_and_a_line(
    tmp_path: Path, left: bytes | None, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path / "run", rounds=2)
    file = tmp_path / "run" / CLIENTS
    file.unlink() if left is None else file.write_bytes(left)
    result = run(tmp_path / "run", resume=True)
    said = capsys.readouterr().err
    assert f"{CLIENTS} has no rows of round 0 and 1 others" in said
    assert (left is None) == ("cannot be read" not in said)
    assert result.status == "finished"
    assert sorted(set(table(tmp_path / "run")["round"])) == [4, 5]


def test_another_runs_columns_are_not_mixed_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path / "run", rounds=2)
    old = parquet.read_table(tmp_path / "run" / CLIENTS)
    parquet.write_table(old.drop_columns(["accuracy"]), tmp_path / "run" / CLIENTS)
    run(tmp_path / "run", resume=True)
    assert "has columns of another run" in capsys.readouterr().err
    assert sorted(set(table(tmp_path / "run")["round"])) == [4, 5]


def test_a_link_is_neither_read_nor_written_through(tmp_path: Path) -> None:
    run(tmp_path / "run", rounds=2)
    elsewhere = tmp_path / "elsewhere.parquet"
    (tmp_path / "run" / CLIENTS).rename(elsewhere)
    (tmp_path / "run" / CLIENTS).symlink_to(elsewhere)
    before = elsewhere.read_bytes()
    run(tmp_path / "run", resume=True)
    assert elsewhere.read_bytes() == before
    assert not (tmp_path / "run" / CLIENTS).is_symlink()


def test_without_pyarrow_a_line_says_what_to_install_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("fedsim.record.clients_file.find_spec", lambda name: None)
    assert run(tmp_path / "run", rounds=1).status == "finished"
    line = "warning: clients.parquet is not written: it needs pyarrow; pip install 'fedsim-ray[tables]'\n"
    assert capsys.readouterr().err == line
    assert not (tmp_path / "run" / CLIENTS).exists()
    run(tmp_path / "other", rounds=1, evaluate=Evaluate())
    assert capsys.readouterr().err == ""
    assert not (tmp_path / "other" / CLIENTS).exists()


def some_class(predictions: torch.Tensor, y: torch.Tensor) -> float:
    """No value where there is no sample of class 3."""
    return float("nan") if not (y == 3).any() else float((predictions == y).double().mean())


def test_no_value_is_null_and_counts_for_nothing(tmp_path: Path) -> None:
    evaluate = Evaluate(clients=True, metrics=(Metric(some_class, of="classes"),))
    result = run(tmp_path / "run", rounds=1, evaluate=evaluate, partition=Dirichlet(clients=20, alpha=0.05))
    values = table(tmp_path / "run")["some_class"]
    half = len(values) // 2
    there = [value for value in values[half:] if value is not None]
    assert 0 < len(there) < half
    assert result.metrics[-1]["eval/client_some_class_mean"] == pytest.approx(np.mean(there), rel=1e-12)


def samples(predictions: torch.Tensor, y: torch.Tensor) -> float:
    return 0.0


def test_a_metric_cannot_have_the_name_of_a_column() -> None:
    evaluate = Evaluate(clients=True, metrics=(Metric(samples, of="classes"),))
    with pytest.raises(InputError, match=r"must have other names than round, client, samples, .* got 'samples'"):
        run(None, evaluate=evaluate)


def test_a_full_disk_costs_the_file_and_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from fedsim.record import clients_file

    def full(path: Path) -> Callable[..., Any]:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(clients_file, "atomic_file", full)
    result = run(tmp_path / "run", rounds=1, engine=Engine(backend="serial"))
    assert result.status == "finished"
    assert f"{CLIENTS} is not written: [Errno 28]" in capsys.readouterr().err
