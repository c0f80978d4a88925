"""The fuzzer of ``tests/fuzz``: what nobody would write ends with 0, 1 or 2 and one clear line, and touches nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.fuzz.tree import always, groups, keys_of
from tests.fuzz.verdict import broken
from tests.fuzz.warm import Outcome

ROOT = Path(__file__).resolve().parent.parent

FAULTS = {
    "": "",
    "errors are not answered": "import fedsim.cli.main as cli; cli.InputError = cli.Interrupted",
    "roles are not checked": "from fedsim.assembly import targets; targets.lacks = lambda cls, kind: []",
}
"""Statements that spoil fedsim before the fuzzer begins."""


def fuzzed(*arguments: str, fault: str = "") -> subprocess.CompletedProcess[str]:
    """The fuzzer in a process of its own, which forks for each case."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    program = f"{FAULTS[fault]}\nimport sys\nfrom tests.fuzz.__main__ import main\nsys.exit(main())"
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("count", "seed"), [pytest.param(100, 0, id="100"), pytest.param(1000, 10_000, id="1000", marks=pytest.mark.slow)]
)
def test_whatever_is_typed_or_found_in_a_folder_is_answered(count: int, seed: int) -> None:
    done = fuzzed(str(count), "--seed", str(seed))
    assert done.returncode == 0, done.stdout + done.stderr
    counts = json.loads(done.stdout.splitlines()[-1])
    assert counts["cases"] == count
    assert counts["exit 0"] >= count / 3, f"too few of them run: {counts}"
    assert counts["exit 2"] >= count / 10, f"too few of them are refused: {counts}"


def test_every_group_and_key_can_be_drawn() -> None:
    names = {key.name for key in always()}
    for group, options in groups().items():
        for option in options:
            names |= {key.name for key in keys_of(group, option)}
    for name in ("rounds", "algorithm.lr", "channel.topk.k", "downlink.encode", "schedule.cohort", "privacy.delta"):
        assert name in names
    assert len(names) > 200


ANSWERS: dict[str, tuple[Outcome, dict[str, str], list[str]]] = {
    "finished": (Outcome(0, "table", "", [], 1), {}, []),
    "refused": (Outcome(2, "", "error: rounds must be >= 1, got 0\n", [], 1), {}, []),
    "hung": (Outcome(None, "", "", [], 240), {}, ["hung, or was ended by a signal"]),
    "traceback": (
        Outcome(1, "", "Traceback (most recent call last):\n", [], 1),
        {},
        ["a traceback", "no line that says why"],
    ),
    "silent": (Outcome(2, "", "", [], 1), {}, ["no line that says why"]),
    "other code": (Outcome(70, "", "", [], 1), {}, ["exit code 70"]),
    "noise": (Outcome(0, "", "Segfault soon\n", [], 1), {}, ["a line of nobody's: Segfault soon"]),
    "called": (Outcome(0, "", "", ["os.system ('x',)"], 1), {}, ["os.system ('x',)"]),
    "elsewhere": (Outcome(0, "", "", [], 1), {"notes.txt": "other"}, ["changed notes.txt"]),
}


@pytest.mark.parametrize("answer", ANSWERS)
def test_what_is_seen(answer: str) -> None:
    """Every kind of broken promise is one for the fuzzer."""
    outcome, after, found = ANSWERS[answer]
    assert broken(outcome, {}, after) == found


def case(fault: str = "", **content: Any) -> list[str]:
    """What one case broke, as the fuzzer prints it."""
    lines = fuzzed("--case", json.dumps(content), fault=fault).stdout.splitlines()
    return lines[:-1]


def test_it_sees_a_file_elsewhere(tmp_path: Path) -> None:
    """Which is the user's own doing here."""
    written = f"hydra.run.dir={tmp_path}/elsewhere"
    lines = case(argv=["engine=serial", "rounds=1", "partition.clients=4", "schedule.cohort=2", written])
    assert any(line.startswith("os.mkdir") and str(tmp_path) in line for line in lines)


@pytest.mark.slow
def test_it_finds_a_fault_that_was_planted() -> None:
    """Among cases that it draws: a user's mistake that ends in a traceback."""
    done = fuzzed("12", fault="errors are not answered")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "\na traceback\n" in f"\n{done.stdout}"
    assert json.loads(done.stdout.splitlines()[-1])["broken"] >= 1


def test_it_finds_that_foreign_code_is_called() -> None:
    """The same case is no fault where roles are checked."""
    argv = ["engine=serial", "rounds=1", "partition._target_=tests.fuzz.foreign.Thing"]
    called = "called tests.fuzz.foreign.Thing"
    assert called in case("roles are not checked", argv=argv)
    assert called not in case(argv=argv)
