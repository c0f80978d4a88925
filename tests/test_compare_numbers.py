"""The script that compares two checkouts sees one bit, and nothing where there is nothing."""

from __future__ import annotations

import copy
import json
import math
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts/compare_numbers.py"
RECORD = {"round": 1, "train/loss": 0.1, "comm/uplink_bytes": 400, "eval/loss": math.nan}
NUMBERS = {
    "status": "finished",
    "summary": {"digest": "ab", "privacy/epsilon": 1.5},
    "rounds": [RECORD],
    "clients": "c",
}


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(SCRIPT))


@pytest.mark.parametrize(
    ("where", "name", "value", "line"),
    [
        ("summary", "digest", "ba", "summary/digest: 'ba', was 'ab'"),
        ("summary", "privacy/epsilon", math.nextafter(1.5, 2), "summary/privacy/epsilon: 1.5000000000000002, was 1.5"),
        ("rounds", "train/loss", math.nextafter(0.1, 1), "rounds[0]/train/loss: 0.10000000000000002, was 0.1"),
        ("rounds", "comm/uplink_bytes", 401, "rounds[0]/comm/uplink_bytes: 401, was 400"),
        ("rounds", "eval/accuracy", 0.5, "rounds[0]/eval/accuracy: 0.5, was None"),
    ],
)
def test_a_difference_is_found_and_named(script: dict[str, Any], where: str, name: str, value: Any, line: str) -> None:
    changed: Any = copy.deepcopy(NUMBERS)
    (changed["rounds"][0] if where == "rounds" else changed[where])[name] = value
    assert script["comparison"]({"run": changed}, {"run": NUMBERS}) == {"run": [line]}


def test_equal_numbers_are_equal_nan_included(script: dict[str, Any]) -> None:
    assert script["comparison"]({"run": copy.deepcopy(NUMBERS)}, {"run": NUMBERS}) == {}


def test_a_run_of_one_side_and_a_run_that_is_refused_now_differ(script: dict[str, Any]) -> None:
    refused = {"refused": "lr must be > 0"}
    found = script["comparison"]({"a": NUMBERS, "b": refused, "c": refused}, {"b": NUMBERS, "c": {"refused": "lr"}})
    assert sorted(found) == ["a", "b"]


def test_the_command_exits_with_1_where_something_differs(script: dict[str, Any], tmp_path: Path) -> None:
    """A real run, which the other side does not have."""
    now, none = tmp_path / "now.json", tmp_path / "none.json"
    none.write_text("{}")
    command = [sys.executable, str(SCRIPT), "--only", "more seed", "--json", str(now), "--against", str(none)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, "1 runs compared, 1 differ" in done.stdout) == (1, True), done.stderr
    numbers = json.loads(now.read_text())
    assert [record["round"] for record in numbers["more seed"]["rounds"]] == [0, 1, 2, 3]
    assert {"comm/uplink_bytes", "train/loss", "eval/loss"} <= set(numbers["more seed"]["rounds"][1])
    assert script["comparison"](numbers, numbers) == {}
