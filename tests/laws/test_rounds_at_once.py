"""Every peers' method: rounds that one worker makes at once are the rounds that are made one by one."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedsim import Engine, Evaluate, Result
from fedsim.errors import Interrupted
from fedsim.pool import several
from fedsim.pool.recurring import RoundReplay
from fedsim.record.checkpoint import Checkpointing
from fedsim.runs import peers
from fedsim.runs.run import Step
from fedsim.schedule import Events
from tests.laws import test_replay_catalogue
from tests.laws.test_catalogue import PEERS, cohorts, everything, working
from tests.laws.test_replay_catalogue import run

slow = pytest.mark.slow
ROUNDS = 33
FAST = {"dpsgd", "dfedavg", "gradient_tracking"}
EACH = [
    pytest.param(name, marks=() if name in ("dpsgd", "sgp") else slow)
    for name in PEERS
    if not isinstance(cohorts(name), Events)
]


@pytest.fixture
def lengths(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rounds were made at once, each time."""
    found: list[int] = []
    ahead = peers.Peers.ahead

    def counted(self: peers.Peers, most: int) -> Sequence[Step]:
        steps = ahead(self, most)
        found.append(len(steps))
        return steps

    monkeypatch.setattr(peers.Peers, "ahead", counted)
    monkeypatch.setattr(peers, "BLINK_S", 1e9)  # as many as there may be, on any machine
    return found


def played(name: str, folder: Path, **more: Any) -> Result:
    """Evaluated every fifth round and saved every seventh."""
    policy = Checkpointing(every=7, seconds=0)
    return run(name, rounds=ROUNDS, evaluate=Evaluate(every=5), checkpoint=policy, run_dir=folder, **more)


def one_by_one(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Result:
    with monkeypatch.context() as patch:
        patch.setattr(peers.Peers, "_alike", lambda self, most: [])
        return played(name, folder)


def assert_same(found: Result, plain: Result) -> None:
    assert found.summary["digest"] == plain.summary["digest"]
    for one, other in zip(everything(found), everything(plain), strict=True):
        assert torch.equal(one, other)
    records = [
        [{tag: value for tag, value in record.items() if not tag.startswith("time/")} for record in result.metrics]
        for result in (found, plain)
    ]
    assert records[0] == records[1]


@pytest.mark.parametrize("name", EACH)
def test_rounds_at_once_are_those_made_one_by_one(
    name: str, tmp_path: Path, lengths: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = played(name, tmp_path / "at once")
    made = list(lengths)
    plain = one_by_one(name, tmp_path / "one by one", monkeypatch)
    assert_same(found, plain)
    saved = [sorted(p.name.split("-")[1] for p in tmp_path.glob(f"{how}/checkpoints/*")) for how in ("at*", "one*")]
    assert saved[0] == saved[1]
    assert sum(made) == ROUNDS
    assert max(made) == (5 if name in FAST else max(made)), "it is fast, and stops for evaluations and checkpoints"
    assert lengths[len(made) :] == [1] * ROUNDS


@slow
@pytest.mark.parametrize("actors", [1, 2])
def test_an_actor_makes_rounds_at_once_too(
    actors: int, tmp_path: Path, lengths: list[int], recwarn: pytest.WarningsRecorder
) -> None:
    plain = played("gradient_tracking", tmp_path / "serial")
    made = list(lengths)
    assert_same(
        played("gradient_tracking", tmp_path / "ray", engine=Engine(backend="ray", actors=actors, jobs=1)), plain
    )
    assert lengths == 2 * made
    assert not [w for w in recwarn if "not writable" in str(w.message)], "states are the driver's own"


@pytest.mark.parametrize(
    ("name", "call"), [("dpsgd", 9), *(pytest.param(name, 17, marks=slow) for name in sorted(FAST))]
)
def test_a_run_that_is_stopped_between_them_goes_on_to_the_same_bits(
    name: str, call: int, tmp_path: Path, lengths: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = one_by_one(name, tmp_path / "one by one", monkeypatch)
    calls = 0
    replay = RoundReplay.__call__

    def stopped(self: RoundReplay, *given: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            signal.raise_signal(signal.SIGINT)
        return replay(self, *given)

    monkeypatch.setattr(RoundReplay, "__call__", stopped)
    with pytest.raises(Interrupted) as error:
        played(name, tmp_path / "stopped")
    before = error.value.result.metrics
    assert 3 < len(before) < ROUNDS
    assert [record["round"] for record in before] == list(range(len(before)))
    assert_same(played(name, tmp_path / "stopped", resume=True), plain)


def test_what_may_have_diverged_is_looked_at_round_by_round(
    tmp_path: Path, lengths: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = several._round

    def suspected(*given: Any) -> Any:
        new, worked, losses, sums = usual(*given)
        return new, worked, losses, (*sums, torch.tensor(np.inf))

    plain = one_by_one("dpsgd", tmp_path / "one by one", monkeypatch)
    monkeypatch.setattr(several, "_round", suspected)
    assert_same(played("dpsgd", tmp_path / "suspected"), plain)
    assert lengths[ROUNDS:] == [1] * ROUNDS


def test_a_run_that_diverges_says_the_same_of_the_same_round(
    tmp_path: Path, lengths: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    growing = replace(working("dpsgd"), weight_decay=300.0)  # by a factor in each round
    monkeypatch.setattr(test_replay_catalogue, "working", lambda name: growing)
    found, plain = played("dpsgd", tmp_path / "at once"), one_by_one("dpsgd", tmp_path / "one by one", monkeypatch)
    assert found.status == plain.status == "diverged"
    assert found.message == plain.message
    assert len(found.metrics) > 8, "when rounds are made at once"
    assert_same(found, plain)
