"""The pictures of a new run are drawn beside its start: what fails is raised, and no thread stays."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsim import simulate
from fedsim.algorithms.fedavg import FedAvg
from fedsim.assembly import keeping
from fedsim.assembly.prepared import Prepared
from fedsim.data import Digits
from fedsim.errors import InputError
from fedsim.models import mlp
from fedsim.partition import Iid
from fedsim.record.tensorboard import Picture


def run(folder: Path) -> Any:
    return simulate(FedAvg(lr=0.1), data=Digits(), partition=Iid(clients=4), model=mlp, rounds=1, run_dir=folder)


def test_they_are_drawn_in_a_thread_that_has_ended_with_the_run(tmp_path: Path, monkeypatch: Any) -> None:
    before, drawn_by = threading.enumerate(), []

    def split(counts: np.ndarray) -> Picture:
        drawn_by.append(threading.current_thread())
        return Picture(b"a picture of a kind", 8, 4)

    monkeypatch.setattr(keeping, "split_picture", split)
    assert run(tmp_path / "run").status == "finished"
    assert drawn_by
    assert drawn_by[0] is not threading.main_thread()
    assert threading.enumerate() == before
    (events,) = (tmp_path / "run/tensorboard").iterdir()
    written = events.read_bytes()
    assert written.index(b"a picture of a kind") < written.index(b"eval/loss")


def test_what_fails_there_ends_the_run_as_if_it_had_failed_here(tmp_path: Path, monkeypatch: Any) -> None:
    before = threading.enumerate()

    def split(counts: np.ndarray) -> Picture:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(keeping, "split_picture", split)
    with pytest.raises(OSError, match="No space left on device"):
        run(tmp_path / "run")
    assert threading.enumerate() == before


def test_a_start_that_fails_is_what_is_said_whatever_becomes_of_the_pictures(tmp_path: Path, monkeypatch: Any) -> None:
    before = threading.enumerate()

    def no(*_: Any) -> Any:
        raise InputError("engine=ray must be able to start Ray on this machine, got none")

    def split(counts: np.ndarray) -> Picture:
        raise ValueError("no picture")

    monkeypatch.setattr(Prepared, "start", no)
    monkeypatch.setattr(keeping, "split_picture", split)
    with pytest.raises(InputError, match="got none"):
        run(tmp_path / "run")
    assert threading.enumerate() == before
