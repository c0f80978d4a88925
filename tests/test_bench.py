"""The benchmark's own machinery: contenders in processes of their own, and rows that every program can read."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[1] / "scripts" / "bench"
sys.path.insert(0, str(BENCH))

from contender import Contender  # noqa: E402
from environments import ENVIRONMENTS  # noqa: E402
from models import model_of  # noqa: E402
from workloads import WORKLOADS, samples  # noqa: E402

PROGRAM = """
import sys, time
sys.path.insert(0, {bench!r})
from contender import serve
print("what a simulator prints")
def step():
    end = time.process_time() + 0.05
    while time.process_time() < end:
        pass
    {more}
serve(step)
"""


def program(more: str = "") -> list[str]:
    return [sys.executable, "-c", PROGRAM.format(bench=str(BENCH), more=more)]


def test_a_contender_works_when_it_is_asked_and_its_cpu_time_is_counted(tmp_path: Path) -> None:
    one = Contender("one", program(), tmp_path / "log")
    costs = [one.step() for _ in range(3)]
    one.close()
    assert one.process.returncode == 0
    assert "what a simulator prints" in (tmp_path / "log").read_text()
    assert sum(cost.cpu for cost in costs) >= 0.1  # three times 0.05, in ticks of 0.01
    assert all(cost.seconds >= 0.05 for cost in costs)


def test_a_contender_that_ends_says_why(tmp_path: Path) -> None:
    one = Contender("one", program("raise ValueError('its own fault')"), tmp_path / "log")
    with pytest.raises(SystemExit, match="its own fault"):
        one.step()


@pytest.mark.parametrize("name", [name for name in WORKLOADS if name not in ("W1L", "W4")])
def test_rows_are_what_they_say(name: str) -> None:
    load = WORKLOADS[name]
    x, y = samples(load)
    assert len(x) == len(y) == sum(load.sizes)
    assert len(load.sizes) == load.clients >= load.cohort
    assert x.shape[1:] == load.shape
    if load.model:
        assert sum(p.numel() for p in model_of(load).parameters()) > 0


def test_every_rival_has_an_environment_and_a_program() -> None:
    source = (BENCH / "__main__.py").read_text()
    for rival in ENVIRONMENTS:
        assert f'"{rival}"' in source
        assert (BENCH / f"by_{rival}.py").exists()


@pytest.mark.slow
def test_a_table_comes_out(tmp_path: Path) -> None:
    rows = ["noop", "W3", "D1", "WU2"]
    command = [sys.executable, str(BENCH), "--only", *rows, "--backends", "serial", "--rounds", "1"]
    done = subprocess.run([*command, "--logs", str(tmp_path)], capture_output=True, text=True, check=True)
    assert all(row in done.stdout for row in rows)
    assert done.stdout.count("times") >= 3  # noop has no loop to be compared with
