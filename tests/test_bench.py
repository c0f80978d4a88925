"""The benchmark's own machinery: contenders in processes of their own, and rows that every program can read."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.pretend_device import compiler

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


def gpu(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCH / "gpu.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_its_script_ends_with_a_line() -> None:
    done = gpu()
    assert done.returncode == 1
    assert done.stderr.strip() == "error: torch finds no GPU here; --pretend tries this program without one"
    assert not done.stdout


@pytest.mark.slow
@pytest.mark.skipif(compiler() is None, reason="the pretend GPU needs a C++ compiler, and there is none")
def test_the_script_for_a_gpu_runs_on_the_pretend_one_and_loses_nothing() -> None:
    done = gpu("--pretend", "--only", "bits", "W2", "actors", "--minutes", "30")
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [line.split(" | ") for line in done.stdout.splitlines() if " | " in line]
    assert [row[0] for row in rows] == ["bits", "bits", "bits", "W2", "actors"]
    assert rows[0][1:] == ["the same bits twice", "yes"]
    assert float(rows[1][2]) < 1e-3
    assert rows[2][1:] == ["the same bits after a resume", "yes"]
    assert "ms a round (stacked, " in rows[3][2]


@pytest.mark.slow
def test_a_profile_comes_out_and_its_shares_are_all_of_a_round() -> None:
    command = [sys.executable, str(BENCH / "time_spent.py"), "--only", "W3", "D2", "--rounds", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    rows = [line.split() for line in done.stdout.replace("│", " ").splitlines() if line.strip("│ ")[:2] in ("W3", "D2")]
    assert len(rows) == 2
    for row in rows:
        shares = [int(cell.rstrip("%")) for cell in row[2:9]]
        assert 94 <= sum(shares) <= 106, "each of seven is rounded"
