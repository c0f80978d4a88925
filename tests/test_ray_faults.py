"""Ray's own processes ended or stopped, its memory monitor, its folders, who may join: one line, and nothing left."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from fedsim.errors import LINE, InputError, first_line
from fedsim.ground.own_code import error_line
from fedsim.pool.engine import Engine
from tests.test_cli import environment
from tests.test_cluster import fedsim, listeners, script

pytest.importorskip("ray")
ray_home = pytest.importorskip("fedsim.pool.ray_home")
ray_start = pytest.importorskip("fedsim.pool.ray_start")
ray_watch = pytest.importorskip("fedsim.pool.ray_watch")
SMALL = ("schedule=all", "partition.clients=8", "engine.actors=2")
LISTEN = """
    import os, socket, sys, time
    line = socket.socket(socket.AF_UNIX)
    line.bind(sys.argv[1])
    line.listen()
    print("ready", flush=True)
    time.sleep(600)
"""


@contextmanager
def listener(path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process of this one's that listens where a raylet does."""
    path.parent.mkdir(parents=True)
    argv = [sys.executable, "-c", textwrap.dedent(LISTEN), str(path)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
def short(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder whose name leaves room for the names of sockets."""
    with tempfile.TemporaryDirectory(prefix="f", dir="/tmp", ignore_cleanup_errors=True) as name:
        yield Path(name)


@pytest.mark.parametrize("text", ["one\nthe command line of somebody else", "x" * 10**6])
def test_messages_keep_a_short_line_of_what_others_say(text: str) -> None:
    for line in (first_line(ValueError(text)), error_line(ValueError("x" * 10**6))):
        assert "\n" not in line
        assert "somebody" not in line
        assert len(line) <= LINE + 20
    assert first_line(ValueError("")) == "ValueError"


def test_an_ended_and_a_stopped_raylet_are_seen(tmp_path: Path) -> None:
    path = tmp_path / "session_1" / "sockets" / "raylet"
    with listener(path) as process:
        watch = ray_watch.RayWatch(str(path), "127.0.0.1:1")
        assert watch.problem() == watch.problem(stopped=True) == ""
        process.send_signal(signal.SIGSTOP)
        while ray_watch._state(process.pid)[0] != "T":
            time.sleep(0.01)
        stopped = f"Ray's raylet (process {process.pid}) is stopped"
        looks = [watch.problem() for _ in range(ray_watch.PATIENT)]
        assert set(looks) == {""}, "it may go on any moment"
        assert watch.problem() == watch.problem(stopped=True) == stopped
        process.kill()
        process.wait()
        assert watch.problem() == "Ray's raylet ended"
        watch.close()


def test_a_control_service_of_others_that_is_gone_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_watch, "KNOCK_S", 0.0)
    path = tmp_path / "session_1" / "sockets" / "raylet"
    with listener(path), socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        watch = ray_watch.RayWatch(str(path), address)
        assert watch.problem() == ""
        server.close()
        assert watch.problem() == f"Ray's control service at {address} is gone"
        watch.close()


def test_a_line_to_a_raylet_that_does_not_answer_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "s" / "sockets" / "raylet"
    with listener(path), socket.socket(socket.AF_UNIX) as line:
        one, other = socket.socketpair()
        line.connect(str(path))
        ray_watch.let_go(str(path))
        assert line.recv(1) == b""
        one.send(b"x")
        assert other.recv(1) == b"x"
        one.close()
        other.close()


def test_only_a_session_of_this_process_is_removed(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path = short
    monkeypatch.setattr(ray_watch, "LEAVE_S", 0.2)
    begun = "session_2026-01-02_03-04-05_678901"
    other, own = tmp_path / f"{begun}_{os.getppid()}", tmp_path / f"{begun}_{os.getpid()}"
    for folder in (other, tmp_path / "mine", tmp_path / "target"):
        folder.mkdir()
        (folder / "file").touch()
    own.symlink_to(tmp_path / "target")
    for folder in (other, tmp_path / "mine", own):
        ray_watch.remove(folder)
    assert (other / "file").exists()
    assert (tmp_path / "mine" / "file").exists()
    assert (tmp_path / "target" / "file").exists()
    own.unlink()
    with listener(own / "sockets" / "raylet"):
        ray_watch.remove(own)
        assert own.is_dir(), "another process lives in it"
    (own / "link").symlink_to(tmp_path / "target")
    (tmp_path / "session_latest").symlink_to(own)
    ray_watch.remove(own)
    assert not own.exists()
    assert not (tmp_path / "session_latest").is_symlink()
    assert (tmp_path / "target" / "file").exists()


def test_a_ray_that_gives_up_while_it_begins_is_one_line_and_leaves_nothing(
    short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a busy machine a raylet may take longer than Ray waits; then its other processes and its folder stay."""
    folder, begun = short / f"session_2026-01-01_00-00-00_000000_{os.getpid()}", []

    def init(**options: object) -> None:
        folder.mkdir()
        command = [sys.executable, "-c", "input()", f"--log={folder}/logs"]
        begun.append(subprocess.Popen(command, stdin=subprocess.PIPE))
        raise Exception("The current node timed out during startup.\nAnother line.")

    monkeypatch.setattr("ray.init", init)
    with pytest.raises(InputError, match=r"^engine=ray must be able .* got The current node timed out .*busy$"):
        ray_start.begin_ray(Engine(actors=1), 0)
    assert begun[0].wait() == -signal.SIGKILL
    assert not folder.exists()


@pytest.mark.parametrize("content", [None, "", " \n"])
def test_a_token_that_cannot_be_read_is_one_line(content: str | None, tmp_path: Path) -> None:
    """Ray would abort the process."""
    if content is not None:
        (tmp_path / "token").write_text(content)
    said = {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}
    with pytest.raises(InputError, match=r"^RAY_AUTH_TOKEN_PATH must be a file with the token \(.*\), got .*$"):
        ray_home.require_token(said)
    ray_home.require_token({**said, "RAY_AUTH_TOKEN": "abc"})
    (tmp_path / "token").write_text("abc")
    ray_home.require_token(said)


class Run:
    """A run of the command line with a Ray of its own, found by a mark in the environment of its processes."""

    def __init__(self, tmp_path: Path, *argv: str, **variables: str) -> None:
        self.folder, self.mark = tmp_path / "run", f"FEDSIM_TEST_RUN={uuid.uuid4()}"
        name, _, value = self.mark.partition("=")
        self.temporary = tmp_path / "t"
        self.temporary.mkdir()
        env = environment(tmp_path) | {name: value, "RAY_TMPDIR": str(self.temporary)} | variables
        env = {k: v for k, v in env.items() if not k.startswith("RAY_AUTH")}
        command = [sys.executable, "-m", "fedsim", *SMALL, *argv, f"hydra.run.dir={self.folder}"]
        self.process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def after(self, rounds: int) -> None:
        """Wait until the run has so many rounds."""
        path = self.folder / "metrics.jsonl"
        while not path.exists() or path.read_bytes().count(b"\n") <= rounds:
            assert self.process.poll() is None, self.process.communicate()
            time.sleep(0.05)

    def processes(self) -> dict[int, str]:
        """Number and command of each of its processes."""
        found = {}
        for path in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if self.mark.encode() in (path / "environ").read_bytes().split(b"\0"):
                    found[int(path.name)] = (path / "cmdline").read_bytes().partition(b"\0")[0].decode()
        return found

    def gone(self) -> bool:
        """Whether none is left; where its control service was killed, two agents of Ray take 61 seconds to notice."""
        for _ in range(900):
            if not self.processes():
                return True
            time.sleep(0.1)
        return False


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "number", "cause"),
    [
        ("raylet", signal.SIGKILL, "Ray's raylet ended"),
        ("raylet", signal.SIGSTOP, "is stopped"),
        ("gcs_server", signal.SIGKILL, "Ray's control service (GCS) ended"),
    ],
)
def test_a_ray_that_is_gone_ends_a_run_as_a_full_disk_does(
    name: str, number: signal.Signals, cause: str, short: Path
) -> None:
    run = Run(short, "rounds=100000", "checkpoint.seconds=0")
    run.after(2)
    victim = next(pid for pid, command in run.processes().items() if command.endswith(f"/{name}"))
    os.kill(victim, number)
    out, err = run.process.communicate(timeout=300)
    assert run.process.returncode == 1
    assert err.count("\n") == 1, err
    assert cause in err
    assert f"what it wrote is kept: fedsim resume={run.folder}" in err
    assert "state-dump" not in out
    summary = json.loads((run.folder / "summary.json").read_text())
    assert summary["status"] == "failed"
    assert cause in summary["message"]
    assert run.gone(), run.processes()
    done = summary["rounds"]
    resumed = fedsim(f"resume={run.folder}", "engine=serial", f"rounds={done + 1}")
    assert resumed.returncode == 0, resumed.stderr
    alone = fedsim(*SMALL[:2], "engine=serial", f"rounds={done + 1}", f"hydra.run.dir={short / 'alone'}")
    assert alone.returncode == 0, alone.stderr
    digests = [json.loads((f / "summary.json").read_text())["digest"] for f in (run.folder, short / "alone")]
    assert digests[0] == digests[1]


@pytest.mark.slow
def test_actors_that_the_memory_monitor_ends_are_one_line_with_advice(short: Path) -> None:
    limits = {"RAY_memory_usage_threshold": "0.01", "RAY_memory_monitor_refresh_ms": "200"}
    run = Run(short, "rounds=100000", "engine.retries=1", **limits)
    out, err = run.process.communicate(timeout=300)
    assert run.process.returncode == 1
    assert err.count("\n") == 1, err
    assert "use fewer actors (engine.actors=...) or smaller blocks (engine.block=...)" in err
    assert "\n" not in json.loads((run.folder / "summary.json").read_text())["message"]
    assert "memory used" not in out + err + (run.folder / "summary.json").read_text()


@pytest.mark.slow
def test_a_local_run_listens_on_loopback_only_and_leaves_no_folder_of_rays(short: Path) -> None:
    run = Run(short, "rounds=100000")
    run.after(1)
    listening = listeners(run.mark)
    run.process.send_signal(signal.SIGINT)
    _, err = run.process.communicate(timeout=300)
    assert run.process.returncode == 130, err
    assert len(listening) >= 3, "not even the raylet is seen"
    assert [name for name in listening if not name.startswith(("127.0.0.1:", "::1:"))] == []
    assert run.gone(), run.processes()
    assert [path.name for path in run.temporary.rglob("*") if path.name.startswith("session_")] == []


@pytest.mark.slow
def test_a_cluster_turns_strangers_away_in_one_line_and_serves_two_runs_and_a_sweep_at_once(short: Path) -> None:
    cluster = short / "cluster"
    started = script("--dir", str(cluster), "start", "--nodes", "2", "--cpus", "2")
    try:
        assert started.returncode == 0, started.stderr
        address = json.loads((cluster / "cluster.json").read_text())["address"]
        wrongs: list[dict[str, str]] = [{}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "wrong"}]
        for number, wrong in enumerate(wrongs):
            place = short / f"stranger{number}"
            stranger = fedsim(f"engine.address={address}", f"hydra.run.dir={place}", **wrong)
            assert stranger.returncode == 2
            assert stranger.stderr.count("\n") == 1, stranger.stderr
            assert "it asks for a token" in stranger.stderr
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(cluster / "token")}
        env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | token
        command = [sys.executable, "-m", "fedsim", "rounds=3", f"engine.address={address}", "engine.jobs=4"]
        more = [*SMALL[:2], "engine.actors=1"]
        running = [
            subprocess.Popen([*command, *more, f"seed={seed}", f"hydra.run.dir={short / str(seed)}"], env=env)
            for seed in (1, 2)
        ]
        swept = subprocess.Popen([*command, *more, "seed=1,2", f"hydra.sweep.dir={short / 'sweep'}"], env=env)
        board = subprocess.Popen(
            [sys.executable, "-m", "tensorboard.main", "--logdir", str(short), "--port", "0", "--load_fast=false"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        assert [process.wait(timeout=500) for process in (*running, swept)] == [0, 0, 0]
        assert board.poll() is None, "TensorBoard reads beside them"
        board.kill()
        board.wait()
    finally:
        script("--dir", str(cluster), "stop")
    digests = {}
    for seed in (1, 2):
        alone = short / f"alone{seed}"
        done = fedsim(
            "rounds=3", *SMALL[:2], "engine=serial", "engine.jobs=4", f"seed={seed}", f"hydra.run.dir={alone}"
        )
        assert done.returncode == 0, done.stderr
        digests[seed] = json.loads((alone / "summary.json").read_text())["digest"]
        assert json.loads((short / str(seed) / "summary.json").read_text())["digest"] == digests[seed]
    found = {json.loads(path.read_text())["digest"] for path in (short / "sweep").glob("*/summary.json")}
    assert found == set(digests.values())
