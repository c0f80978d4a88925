"""What the README says works when typed as written."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
SHELL = [line for block in re.findall(r"```bash\n(.*?)```", README, re.S) for line in block.splitlines()]
ELSEWHERE = ("experiment=", "fedsim download ")  # tests/test_slow.py, tests/test_download.py
COMMANDS = [line for line in SHELL if line.startswith("fedsim ") and not any(words in line for words in ELSEWHERE)]


def in_folder(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return subprocess.run(
        command, cwd=folder, env=os.environ | {"PATH": path}, capture_output=True, text=True, check=False
    )


def test_the_main_job_as_a_newcomer_types_it(tmp_path: Path) -> None:
    out = in_folder(tmp_path, "fedsim")
    assert out.returncode == 0, out.stderr
    (folder,) = tmp_path.glob("outputs/*/*")
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "finished"
    assert summary["eval/accuracy"]["last"] >= 0.90
    assert f"tensorboard --logdir {folder}" in out.stdout
    for word in ("accuracy", "loss", "rounds", "uplink", "downlink", "MB", str(folder)):
        assert word in out.stdout
    assert list((folder / "tensorboard").glob("events*"))


@pytest.fixture(scope="module")
def _cluster() -> Iterator[None]:
    """One local Ray, which runs in this process join instead of starting one each."""
    ray = pytest.importorskip("ray")
    import fedsim.pool.ray_pool  # noqa: F401 - sets the environment before ray starts

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.mark.xdist_group("README")
@pytest.mark.parametrize("line", COMMANDS)
def test_commands(line: str, console: Callable[..., int], tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """By the console script's entry point; the script itself runs the main job above."""
    if "engine=serial" not in line:
        request.getfixturevalue("_cluster")
    assert console(*shlex.split(line)[1:]) == 0
    summaries = [json.loads(p.read_text()) for p in tmp_path.rglob("summary.json")]
    assert len(summaries) == (4 if " -m " in line else 1)
    assert all(s["status"] == "finished" for s in summaries)


def test_there_are_commands_to_test() -> None:
    assert len(COMMANDS) >= 5
    assert "pip install -c constraints.txt -e '.[dev]' && fedsim" in SHELL
    assert "pip install -c constraints.txt -e '.[dev]' && make test" in SHELL


def test_the_python_example() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.S)
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    result = names["result"]
    assert result.status == "finished"  # type: ignore[attr-defined]
    assert len(result.metrics) == 21  # type: ignore[attr-defined]


def test_every_config_says_what_it_is() -> None:
    for path in (ROOT / "configs").rglob("*.yaml"):
        lines = path.read_text().splitlines()
        assert lines[0].startswith("#"), path
        assert yaml.safe_load(path.read_text()), path


def test_it_is_read_in_two_minutes() -> None:
    assert len(README.splitlines()) <= 150


def test_files_that_the_readme_names_exist() -> None:
    for name in re.findall(r"\]\((docs/[^)#]+)|`((?:docs|scripts)/[\w.]+)`", README):
        assert (ROOT / (name[0] or name[1])).exists(), name
