"""docs/writing-an-algorithm.md works as written, and its tests notice when the method is wrong."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs/writing-an-algorithm.md").read_text()
FILES = dict(re.findall(r"^File `([\w./]+)`:\n\n```\w+\n(.*?)```", PAGE, re.S | re.M))
COMMANDS = re.findall(r"^(fedsim|python) (.*)$", "\n".join(re.findall(r"```bash\n(.*?)```", PAGE, re.S)), re.M)
STEP = "v = self.momentum * now.v + obj.grad(now.y, batch)"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delitem(sys.modules, "kept", raising=False)  # another test's
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def typed(folder: Path, program: str, arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the page in the folder, with the console script that is installed beside this Python."""
    own = {"fedsim": str(Path(sys.executable).parent / "fedsim"), "python": sys.executable}
    env = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{folder}", "OMP_NUM_THREADS": "1"}
    command = [own[program], *shlex.split(arguments)]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)


def accuracy(folder: Path) -> float:
    (path,) = folder.glob("outputs/*/*/summary.json")
    summary = json.loads(path.read_text())
    assert summary["status"] == "finished"
    return float(summary["eval/accuracy"]["last"])


def test_the_page_holds_what_is_tested_here() -> None:
    assert sorted(FILES) == ["conf/algorithm/kept_momentum.yaml", "kept.py", "test_kept.py"]
    assert [program for program, _ in COMMANDS] == ["fedsim", "fedsim", "python"]
    assert STEP in FILES["kept.py"]


@pytest.mark.parametrize("number", [0, 1])
def test_its_runs_learn(number: int, folder: Path, console: Callable[..., int]) -> None:
    """The first as a newcomer types it, the second by the console script's entry point."""
    program, arguments = COMMANDS[number]
    if number == 0:
        out = typed(folder, program, arguments)
        assert out.returncode == 0, out.stderr
    else:
        assert console(*shlex.split(arguments)) == 0
    assert accuracy(folder) > 0.8


def test_its_own_test_passes(folder: Path) -> None:
    out = typed(folder, *COMMANDS[2])
    assert out.returncode == 0, out.stdout


@pytest.mark.parametrize(
    "edit", ["v = obj.grad(now.y, batch)", "v = self.momentum * now.v - obj.grad(now.y, batch)"], ids=["fresh", "sign"]
)
def test_its_own_test_fails_for_a_wrong_method(edit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kept", module := ModuleType("kept"))
    exec(FILES["kept.py"].replace(STEP, edit), vars(module))
    names: dict[str, Any] = {}
    exec(FILES["test_kept.py"], names)
    with pytest.raises(AssertionError, match="Mismatched elements"):
        names["test_trajectory_equals_a_numpy_loop"]()


def test_a_wrong_sign_does_not_learn(folder: Path, console: Callable[..., int]) -> None:
    (folder / "kept.py").write_text(FILES["kept.py"].replace("server.x + received", "server.x - received"))
    assert console(*shlex.split(COMMANDS[0][1])) in (0, 1)  # it may diverge
    (path,) = folder.glob("outputs/*/*/summary.json")
    assert json.loads(path.read_text())["eval/accuracy"]["best"] < 0.5


@pytest.mark.usefixtures("folder")
def test_what_the_class_refuses_is_one_line(console: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    code = console("algorithm._target_=kept.KeptMomentum", "algorithm.lr=0.05", "algorithm.momentum=2")
    said = capsys.readouterr().err
    assert (code, said.count("\n")) == (2, 1)
    assert "algorithm.momentum must be in [0, 1), got 2.0" in said
