"""Ray clusters of several nodes: the serial bits, who may join, what listens, what becomes of a silent actor."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedsim import Engine, Local, Result, simulate
from fedsim.aggregate import Mean
from fedsim.algorithms.fedavg import FedAvg
from fedsim.algorithms.scaffold import Scaffold
from fedsim.data import Dataset
from fedsim.errors import ClientError, InputError
from fedsim.models import mlp
from fedsim.objective import Objective
from fedsim.partition import Dirichlet
from fedsim.schedule import Uniform
from fedsim.types import Message, Round

ray = pytest.importorskip("ray")
ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "scripts" / "cluster.py"


@dataclass(frozen=True)
class Stopped(FedAvg):
    """FedAvg whose worker is stopped (not ended) in round 2, once where it can leave the marker, else always."""

    marker: str = ""

    def local(self, obj: Objective, client: tuple[()], got: Message, rnd: Round) -> tuple[Message, tuple[()]]:
        marker = Path(self.marker)
        if rnd.index == 1 and not marker.exists():
            if marker.parent.exists():
                marker.touch()
            os.kill(os.getpid(), signal.SIGSTOP)
        return super().local(obj, client, got, rnd)


def simple(rule: Any, data: Dataset, **engine: Any) -> Result:
    return simulate(
        rule,
        data=data,
        partition=Dirichlet(clients=9, alpha=1.0),
        model=mlp,
        rounds=3,
        schedule=Uniform(cohort=6),
        local=Local(batch_size=8),
        aggregate=Mean(weights="uniform"),
        engine=Engine(**{"backend": "ray", "actors": 2, "jobs": 3, **engine}),
    )


@pytest.fixture
def local_ray() -> Iterator[str]:
    """A Ray of this process; its address."""
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


@pytest.mark.slow
def test_three_nodes_give_the_serial_bits(squares: Dataset) -> None:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        pooled = simple(Scaffold(lr=0.1), squares, address=cluster.address, actors=3)
        assert not ray.is_initialized(), "the run has left the cluster that it joined"
    finally:
        cluster.shutdown()
    serial = simple(Scaffold(lr=0.1), squares, backend="serial")
    assert pooled.summary["digest"] == serial.summary["digest"]


@pytest.mark.slow
def test_an_address_is_not_ignored_where_ray_runs_already(local_ray: str, squares: Dataset) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        elsewhere = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(InputError, match=rf"engine.address must be null or '{local_ray}'.* got '{elsewhere}'"):
            simple(FedAvg(lr=0.1), squares, address=elsewhere)
    named = local_ray.replace("127.0.0.1", "localhost")
    digests = {simple(FedAvg(lr=0.1), squares, address=a).summary["digest"] for a in (None, "auto", local_ray, named)}
    assert len(digests) == 1
    assert ray.is_initialized(), "a Ray that others started goes on"


@pytest.mark.slow
def test_a_stopped_actor_counts_as_lost(local_ray: str, squares: Dataset, tmp_path: Path) -> None:
    """No death is reported for a process that the system has stopped; only a deadline notices."""
    marker = tmp_path / "stopped"
    wounded = simple(Stopped(lr=0.1, marker=str(marker)), squares, timeout_s=60.0)
    assert marker.exists(), "no actor was stopped: the test proves nothing"
    healthy = simple(FedAvg(lr=0.1), squares, backend="serial")
    assert wounded.summary["digest"] == healthy.summary["digest"]
    silent = r"train of clients \d+, .* lost their actor 1 times: no answer within engine.timeout_s=60"
    with pytest.raises(ClientError, match=silent):
        simple(Stopped(lr=0.1, marker=str(tmp_path / "no" / "where")), squares, timeout_s=60.0, retries=0)


def test_a_deadline_is_positive() -> None:
    with pytest.raises(InputError, match="timeout_s must be > 0 or null, got 0"):
        Engine(timeout_s=0.0)
    assert Engine(timeout_s=None).timeout_s is None


def script(*argv: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *argv],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        check=False,
    )


def test_a_token_is_secret_and_new(tmp_path: Path) -> None:
    paths = [tmp_path / "a", tmp_path / "b"]
    assert [script("token", str(path)).returncode for path in paths] == [0, 0]
    assert [stat.S_IMODE(path.stat().st_mode) for path in paths] == [0o600, 0o600]
    first, second = (path.read_text() for path in paths)
    assert len(bytes.fromhex(first)) == len(bytes.fromhex(second)) == 32
    assert first != second
    again = script("token", str(paths[0]))
    assert again.returncode == 2
    assert "error: " in again.stderr
    assert paths[0].read_text() == first, "nodes may be using it"


def test_no_cluster_is_said(tmp_path: Path) -> None:
    gone = script("--dir", str(tmp_path / "none"), "status")
    assert (gone.returncode, gone.stdout) == (1, "no cluster is running\n")
    assert script("--dir", str(tmp_path / "none"), "stop").stdout == "ended 0 nodes\n"


@pytest.mark.slow
def test_a_cluster_of_processes_listens_on_loopback_only_and_wants_its_token(tmp_path: Path, squares: Dataset) -> None:
    folder = tmp_path / "cluster"
    started = script("--dir", str(folder), "start", "--nodes", "2")
    try:
        assert started.returncode == 0, started.stderr
        address = json.loads((folder / "cluster.json").read_text())["address"]
        listening = listeners(f"RAY_AUTH_TOKEN_PATH={folder / 'token'}")
        assert any(name.endswith(address.rpartition(":")[2]) for name in listening), "the head itself is not seen"
        assert len(listening) >= 5  # head, and two sockets of every raylet
        assert [name for name in listening if not name.startswith("127.0.0.1:")] == []
        here = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(folder / "token")}
        run = ["engine.jobs=3", "rounds=2", f"hydra.run.dir={tmp_path / 'run'}"]
        joined = fedsim(f"engine.address={address}", "engine.actors=2", *run, **here)
        assert joined.returncode == 0, joined.stderr
        alone = fedsim("engine=serial", *run[:2], f"hydra.run.dir={tmp_path / 'alone'}")
        assert alone.returncode == 0, alone.stderr
        digests = [json.loads((tmp_path / name / "summary.json").read_text())["digest"] for name in ("run", "alone")]
        assert digests[0] == digests[1]
        stranger = fedsim(f"engine.address={address}", RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="wrong")
        assert stranger.returncode == 2
        assert "engine.address must be a running Ray cluster" in stranger.stderr
    finally:
        stopped = script("--dir", str(folder), "stop")
    assert stopped.stdout == "ended 3 nodes\n"
    assert listeners(f"RAY_AUTH_TOKEN_PATH={folder / 'token'}") == []


@pytest.mark.slow
def test_a_worker_is_healthy_where_its_own_raylet_answers(tmp_path: Path) -> None:
    """The check of docker/compose.yaml, asked of a raylet that runs, is stopped, runs again and is gone."""
    worker = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())["services"]["worker"]
    (port,) = (word.partition("=")[2] for word in worker["command"] if word.startswith("--node-manager-port="))
    _, _, option, check = worker["healthcheck"]["test"]
    asked = f"{{socket.gethostname()}}:{port}"
    assert asked in check

    def healthy(address: str) -> bool:
        command = [sys.executable, option, check.replace(asked, address)]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    folder = tmp_path / "cluster"
    try:
        started = script("--dir", str(folder), "start", "--nodes", "1")
        assert started.returncode == 0, started.stderr
        nodes = [line.split() for line in script("--dir", str(folder), "status").stdout.splitlines()]
        (head,), (address,) = ([place for place, _, cpus, _ in nodes if cpus == count] for count in "01")
        raylet = listening_on(address)
        assert healthy(address)
        os.kill(raylet, signal.SIGSTOP)
        assert not healthy(address)
        assert healthy(head)
        os.kill(raylet, signal.SIGCONT)
        assert healthy(address)
        os.kill(raylet, signal.SIGKILL)
        assert not healthy(address)
    finally:
        script("--dir", str(folder), "stop")


def listening_on(address: str) -> int:
    """The raylet that listens on an address of 127.0.0.1."""
    port = f":{int(address.rpartition(':')[2]):04X}"
    tables = (Path("/proc/net", name).read_text().splitlines()[1:] for name in ("tcp", "tcp6"))
    lines = (line.split() for table in tables for line in table)
    (inode,) = (fields[9] for fields in lines if fields[1].endswith(port) and fields[3] == "0A")
    raylets = [path.parent for path in Path("/proc").glob("[0-9]*/comm") if name_of(path) == "raylet"]
    (raylet,) = (path for path in raylets if f"socket:[{inode}]" in map(os.readlink, (path / "fd").iterdir()))
    return int(raylet.name)


def name_of(comm: Path) -> str:
    """Of a process; "" of one that has ended."""
    try:
        return comm.read_text().strip()
    except OSError:
        return ""


def fedsim(*argv: str, **environment: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | environment
    return subprocess.run(
        [sys.executable, "-m", "fedsim", *argv], capture_output=True, text=True, cwd=ROOT, env=environment, check=False
    )


def listeners(mark: str) -> list[str]:
    """Addresses on which processes listen that have this in their environment."""
    inodes = {name for process in Path("/proc").glob("[0-9]*") for name in files_of(process, mark)}
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:
                host, _, port = fields[1].partition(":")
                found.append(f"{_dotted(host)}:{int(port, 16)}")
    return found


def files_of(process: Path, mark: str) -> set[str]:
    """What a process has open if its environment holds the mark; nothing of one that ended or is someone else's."""
    try:
        marked = mark.encode() in (process / "environ").read_bytes().split(b"\0")
        return {os.readlink(file) for file in (process / "fd").iterdir()} if marked else set()
    except OSError:
        return set()


def _dotted(host: str) -> str:
    """A host of /proc/net/tcp; of IPv6, mapped IPv4 alone is told apart, the rest is everywhere or elsewhere."""
    if len(host) == 32 and not host.startswith("0000000000000000FFFF0000"):
        return "::1" if host == "0" * 24 + "01000000" else "[::]"
    return ".".join(str(byte) for byte in reversed(bytes.fromhex(host[-8:])))


def test_the_containers_are_closed() -> None:
    """What guards the cluster of docker/compose.yaml, service by service."""
    compose = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())
    assert set(compose["services"]) == {"head", "worker", "tensorboard"}
    for name, service in compose["services"].items():
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["read_only"] is True
        assert service["user"] == "${FEDSIM_UID:-1000}:${FEDSIM_UID:-1000}"
        assert service["healthcheck"]["test"][0] == "CMD"
        ports = service.get("ports", [])
        assert ports == (["127.0.0.1:6006:6006"] if name == "tensorboard" else [])
        data = [v for v in service.get("volumes", []) if v["target"] == "/data"]
        assert all(volume["read_only"] for volume in data)
    for node in (compose["services"][name] for name in ("head", "worker")):
        assert node["networks"] == ["cluster"]
        assert node["secrets"] == ["token"]
        assert node["environment"]["RAY_AUTH_MODE"] == "token"
        assert node["environment"]["RAY_AUTH_TOKEN_PATH"] == "/run/secrets/token"
        assert node["shm_size"]
    assert compose["networks"]["cluster"] == {"internal": True}
    assert "cluster" not in compose["services"]["tensorboard"]["networks"]
