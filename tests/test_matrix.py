"""scripts/matrix.py: which interpreters it finds, what it does with them, and that it says what it skipped."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FAKE = """#!/bin/sh
if [ "$1" = --version ]; then exit 0; fi
echo "$0 $@" >> "{log}"
if [ "$2" = venv ]; then mkdir -p "$3/bin" && cp "$0" "$3/bin/python"; fi
run="${{3#*=}}"
if [ "$2" = fedsim ]; then mkdir -p "$run" && echo '{{"digest": "{digest}"}}' > "$run/summary.json"; fi
if [ "$2" = pytest ]; then exit {code}; fi
"""
"""An interpreter that writes down what it is asked to do, whose job has a digest and whose pytest ends with a code."""


def matrix(
    tmp_path: Path, codes: dict[str, int], *arguments: str, digests: dict[str, str] | None = None
) -> tuple[int, list[str], list[str]]:
    """Exit code, printed lines and what was done, where interpreters of these versions are on the PATH."""
    folder, log = tmp_path / "path", tmp_path / "log"
    folder.mkdir()
    log.touch()
    for version, code in codes.items():
        python = folder / f"python{version}"
        python.write_text(FAKE.format(log=log, code=code, digest=(digests or {}).get(version, "ab")))
        python.chmod(0o755)
    env = {"PATH": f"{folder}:/usr/bin:/bin", "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    command = [sys.executable, str(ROOT / "scripts/matrix.py"), *arguments]
    out = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    return out.returncode, out.stdout.splitlines(), log.read_text().splitlines()


def test_it_tests_what_is_there_and_says_what_it_skipped(tmp_path: Path) -> None:
    code, printed, done = matrix(tmp_path, {"3.13": 0}, "3.9", "3.13", "--", "tests/test_basics.py", "-k", "one")
    assert code == 0
    assert printed[-2:] == [
        "Python 3.9: skipped: python3.9 is not on the PATH, nor known to uv or pyenv",
        "Python 3.13: passes, digest ab",
    ]
    home = tmp_path / "cache/fedsim-matrix/3.13"
    assert done == [
        f"{tmp_path}/path/python3.13 -m venv {home}",
        f"{home}/bin/python -m pip install --quiet -c {ROOT}/constraints.txt -e {ROOT}[dev]",
        f"{home}/bin/python -m fedsim hydra.run.dir={home}/job",
        f"{home}/bin/python -m pytest tests/test_basics.py -k one",
    ]


def test_every_version_is_pinned_and_the_whole_suite_is_meant(tmp_path: Path) -> None:
    _, _, done = matrix(tmp_path, {"3.10": 0}, "3.10", "--")
    assert done[1].endswith(f"-m pip install --quiet -c {ROOT}/constraints.txt -e {ROOT}[dev]")
    assert done[3].endswith("-m pytest -n auto --dist loadgroup")


@pytest.mark.parametrize(("codes", "code"), [({"3.10": 1, "3.13": 0}, 1), ({}, 1), ({"3.10": 0}, 0)])
def test_its_exit_code(codes: dict[str, int], code: int, tmp_path: Path) -> None:
    got, printed, _ = matrix(tmp_path, codes, "3.10", "3.13", "--")
    assert got == code
    assert ("Python 3.10: FAILED at testing" in printed) == (codes.get("3.10") == 1)


def test_without_names_the_job_runs_on_all_that_is_promised_and_on_the_oldest_packages(tmp_path: Path) -> None:
    code, printed, done = matrix(tmp_path, dict.fromkeys(("3.10", "3.11", "3.12", "3.13"), 1))
    assert code == 0
    assert [line.partition(":")[0] for line in printed[-5:]] == [
        *(f"Python {version}" for version in ("3.10", "3.11", "3.12", "3.13", "3.10-oldest"))
    ]
    assert not any(" -m pytest" in line for line in done)
    (installed,) = (line for line in done if "3.10-oldest" in line and " pip " in line)
    floors = re.findall(
        r'^    "([\w-]+>=[\w.]+)', (ROOT / "pyproject.toml").read_text().partition("[project.opt")[0], re.M
    )
    assert len(floors) >= 12
    for floor in floors:
        assert f" {floor.replace('>=', '==')} " in installed


def test_other_digests_are_no_success(tmp_path: Path) -> None:
    code, printed, _ = matrix(tmp_path, {"3.10": 0, "3.13": 0}, "3.10", "3.13", digests={"3.13": "cd"})
    assert code == 1
    assert printed[-1] == "FAILED: the digests differ"


def test_interpreters_of_pyenv_are_found_the_newest_first(tmp_path: Path) -> None:
    for name in ("3.10.9", "3.10.13", "3.10.2/envs"):
        (tmp_path / ".pyenv/versions" / name / "bin").mkdir(parents=True)
    for name in ("3.10.9", "3.10.13"):
        python = tmp_path / ".pyenv/versions" / name / "bin/python"
        python.write_text(FAKE.format(log=tmp_path / "log", code=0, digest="ab"))
        python.chmod(0o755)
    _, _, done = matrix(tmp_path, {}, "3.10")
    assert done[0].startswith(f"{tmp_path}/.pyenv/versions/3.10.13/bin/python -m venv")


def test_every_file_is_written_in_the_syntax_of_python_3_10() -> None:
    """The tools that format and check know the oldest version too: ruff and mypy have it in pyproject.toml."""
    pyproject = (ROOT / "pyproject.toml").read_text()
    for said in ('requires-python = ">=3.10"', 'target-version = "py310"', 'python_version = "3.10"'):
        assert said in pyproject
    for folder in ("fedsim", "hydra_plugins", "scripts", "tests"):
        for path in (ROOT / folder).rglob("*.py"):
            ast.parse(path.read_text(), str(path), feature_version=(3, 10))
