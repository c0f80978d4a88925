"""Ray on machines where the home folder takes nothing or the folder for temporary files does not suit its sockets."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from fedsim.errors import InputError
from fedsim.pool import ray_home
from tests.test_cli import environment

RUN = ("rounds=1", "schedule=all", "partition.clients=4", "engine.actors=1")


def long_folder(tmp_path: Path) -> Path:
    made = tmp_path / ("scratch" * 8) / ("people" * 8)
    made.mkdir(parents=True)
    return made


@pytest.mark.parametrize("name", ["long", "with blank", "missing", "file", "relative", "/proc"])
def test_a_folder_that_does_not_suit_is_replaced_by_one_that_goes(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "with blank").mkdir()
    (tmp_path / "file").touch()
    place = long_folder(tmp_path) if name == "long" else tmp_path / name
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", name if name == "relative" else str(place))
    before = sorted(tmp_path.rglob("*"))
    made = ray_home.folder()
    assert made is not None
    path = Path(made.name)
    assert path.is_dir()
    assert len(os.fsencode(path)) <= ray_home.LONGEST
    assert not any(c.isspace() for c in made.name)
    assert stat.S_IMODE(path.stat().st_mode) == 0o700  # nobody else's sockets
    made.cleanup()
    assert not path.exists()
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_that_suits_is_left_to_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    assert ray_home.folder() is None


def test_no_folder_at_all_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", str(long_folder(tmp_path)))
    monkeypatch.setattr(ray_home, "SHORT", ("/proc",))
    with pytest.raises(InputError, match=r"^TMPDIR must be a writable folder of at most \d+ bytes .*engine=serial$"):
        ray_home.folder()


def test_the_secret_lies_at_home_where_that_is_possible(tmp_path: Path) -> None:
    home = {"HOME": str(tmp_path / "new")}
    ray_home.ensure_token(home)
    assert set(home) == {"HOME"}
    for given in ({"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_TOKEN": "a"}, {"RAY_AUTH_TOKEN_PATH": "b"}):
        said = {"HOME": "/proc/nohome", **given}
        ray_home.ensure_token(said)
        assert said == {"HOME": "/proc/nohome", **given}


@pytest.mark.parametrize("home", [{}, {"HOME": ""}, {"HOME": "/proc/nohome"}])
def test_without_a_home_the_secret_is_this_users_alone(home: dict[str, str]) -> None:
    ray_home.ensure_token(home)
    token = Path(home["RAY_AUTH_TOKEN_PATH"])
    assert len(token.read_text()) == 64
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    again = {"HOME": "/proc/nohome"}
    ray_home.ensure_token(again)
    assert again["RAY_AUTH_TOKEN_PATH"] == str(token)  # Ray reads it once a process


def test_a_run_works_without_a_home_in_a_long_folder_and_leaves_it_as_it_was(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    place = long_folder(tmp_path)
    (place / "mine.txt").write_text("keep")
    env = {name: value for name, value in environment(tmp_path).items() if not name.startswith("RAY_")}
    env |= {"HOME": "/proc/nohome", "TMPDIR": str(place), "MPLCONFIGDIR": str(tmp_path / "matplotlib")}
    argv = [sys.executable, "-m", "fedsim", *RUN, f"hydra.run.dir={tmp_path / 'run'}"]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in place.iterdir()] == ["mine.txt"]


RECORD = """
import time
import ray
from fedsim.pool.ray_start import shared
with shared(None, 1):
    one = ray.remote(lambda: 1)
    assert ray.get([one.remote() for _ in range(50)]) == [1] * 50
    time.sleep(3)  # Ray would send its records every second
    print("records:", len(ray._private.state.state._get_all_task_events()))
"""


@pytest.mark.slow
def test_ray_keeps_no_record_of_calls(tmp_path: Path) -> None:
    """Its control service would grow by them with every round. That ray was imported before is no matter."""
    pytest.importorskip("ray")
    env = {name: value for name, value in environment(tmp_path).items() if not name.startswith("RAY_")}
    argv = [sys.executable, "-c", RECORD]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, cwd=tmp_path, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "records: 0"


def test_a_working_directory_that_is_gone_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    argv = f"cd {tmp_path / 'gone'} && rmdir {tmp_path / 'gone'} && exec {sys.executable} -m fedsim list"
    done = subprocess.run(["sh", "-c", argv], env=environment(tmp_path), capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "the working directory must exist" in done.stderr
