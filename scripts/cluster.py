"""A Ray cluster of several processes on this machine, or the token of one that you start otherwise.

    python scripts/cluster.py start --nodes 2 --cpus 1     a head and two nodes with one CPU each, on loopback only
    python scripts/cluster.py status
    python scripts/cluster.py stop
    python scripts/cluster.py token FILE                   a new secret in a file that only you can read

Nothing listens outside 127.0.0.1, and whoever has no token is turned away. ``stop`` ends what ``start`` started and
nothing else (``ray stop`` would end every Ray on the machine). docs/cluster.md: clusters of several machines.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HOST = "127.0.0.1"
PATIENCE_S = 120  # for nodes to come up, on a busy machine
GRACE_S = 15  # for nodes to end by themselves
RAY = f"""
from ray._private import ray_constants, services
ray_constants.ENABLE_RAY_CLUSTER = True
services.get_node_ip_address = lambda address=None: "{HOST}"
from ray.scripts.scripts import main
main()
"""
"""The command ``ray`` for nodes of one machine. In an environment that asks for loopback only, the real one refuses to
join a cluster, and without it all nodes listen on all interfaces; a test looks at what listens."""

STORE_BYTES = 512 * 2**20  # object store of a node


def main() -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    folder = Path(tempfile.gettempdir()) / f"fedsim-cluster-{os.getuid()}"
    parser.add_argument("--dir", type=Path, default=folder, help=f"logs, token and process numbers (default {folder})")
    commands = parser.add_subparsers(dest="command", required=True)
    start_ = commands.add_parser("start", help="start a head and nodes")
    start_.add_argument("--nodes", type=int, default=2, help="beside the head, which computes nothing (default 2)")
    start_.add_argument("--cpus", type=int, default=1, help="of each node: the actors that it takes (default 1)")
    start_.add_argument(
        "--store", type=int, default=STORE_BYTES, help="bytes of each object store; a data set must fit"
    )
    commands.add_parser("status", help="which nodes there are")
    commands.add_parser("stop", help="end the cluster")
    token_ = commands.add_parser("token", help="write a new token")
    token_.add_argument("file", type=Path)
    args = parser.parse_args()
    try:
        if args.command == "start":
            start(args.dir, args.nodes, args.cpus, args.store)
        elif args.command == "status":
            return status(args.dir)
        elif args.command == "stop":
            stop(args.dir)
        else:
            token(args.file)
    except (OSError, ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def start(folder: Path, nodes: int, cpus: int, store: int) -> None:
    """Start the processes and wait until every node has joined; a cluster that does not come up is ended again."""
    if nodes < 1 or cpus < 1:
        raise ValueError(f"--nodes and --cpus must be >= 1, got {nodes} and {cpus}")
    if alive(folder):
        raise RuntimeError(f"a cluster of {folder} is running; stop it first, or give another --dir")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    token(folder / "token")
    address = f"{HOST}:{free_port()}"
    head = ["--head", f"--port={address.rpartition(':')[2]}", "--num-cpus=0", "--include-dashboard=false"]
    head += [f"--ray-client-server-port={free_port()}"]  # which two clusters may not share
    processes: list[dict[str, Any]] = []
    try:
        for n, own in enumerate([head, *[[f"--address={address}", f"--num-cpus={cpus}"]] * nodes]):
            processes.append(spawn(folder, f"node{n}" if n else "head", [*own, f"--object-store-memory={store}"]))
            (folder / "cluster.json").write_text(json.dumps({"address": address, "processes": processes}))
            wait(folder, processes, address, n + 1)
    except BaseException:
        stop(folder)
        raise
    variables = " ".join(f"{key}={shlex.quote(value)}" for key, value in asked(folder).items())
    print(f"a head and {nodes} nodes at {address}; use them with\n  export {variables}")
    print(f"  fedsim engine.address={address} engine.actors={nodes * cpus}")


def stop(folder: Path) -> None:
    """End the processes of ``start`` and what they started."""
    running = alive(folder)
    for process in reversed(running):
        os.killpg(process["pid"], signal.SIGTERM)
    deadline = time.monotonic() + GRACE_S
    while time.monotonic() < deadline and alive(folder):
        time.sleep(0.1)
    for process in alive(folder):
        os.killpg(process["pid"], signal.SIGKILL)
    forget(folder)
    shutil.rmtree(folder, ignore_errors=True)
    print(f"ended {len(running)} nodes")


def forget(folder: Path) -> None:
    """Take back the note by which any ``ray.init()`` on this machine would look for the cluster that is gone."""
    note, known = Path("/tmp/ray/ray_current_cluster"), folder / "cluster.json"
    if known.exists() and note.exists() and note.read_text() == json.loads(known.read_text())["address"]:
        note.unlink()


def status(folder: Path) -> int:
    """Print the nodes; returns 1 where there is no cluster."""
    if not alive(folder):
        print("no cluster is running")
        return 1
    address = json.loads((folder / "cluster.json").read_text())["address"]
    for node in nodes_of(folder, address):
        print(f"{node['address']}  {'alive' if node['alive'] else 'lost '}  {node['cpus']:g} CPUs")
    return 0


def token(path: Path) -> None:
    """Write 256 random bits, readable by the owner only; an old token must be removed first, for nodes may use it."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secrets.token_hex(32))


def asked(folder: Path) -> dict[str, str]:
    """What Ray wants to know of every process that joins."""
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(folder / "token")}


def environment(folder: Path) -> dict[str, str]:
    """Of the nodes: token, loopback only, no reports to Ray's makers, nothing of a cluster that the caller is in.

    And no record of every call, which grows as long as a run goes on.
    """
    own = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    own["RAY_task_events_report_interval_ms"] = "0"
    return {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "RAY_AUTH_TOKEN")} | own | asked(folder)


def spawn(folder: Path, name: str, arguments: list[str]) -> dict[str, Any]:
    """One node as a process group of its own, with its log."""
    command = [sys.executable, "-c", RAY, "start", f"--node-ip-address={HOST}", "--block", *arguments]
    with (folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment(folder), start_new_session=True
        )
    return {"name": name, "pid": process.pid, "born": born(process.pid)}


def wait(folder: Path, processes: list[dict[str, Any]], address: str, count: int) -> None:
    """Until so many nodes are in the cluster."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        for process in processes:
            if born(process["pid"]) != process["born"]:
                log = (folder / f"{process['name']}.log").read_text().strip().splitlines()
                raise RuntimeError(f"{process['name']} ended: {log[-1] if log else 'without a word'}")
        if sum(node["alive"] for node in nodes_of(folder, address)) >= count:
            return
        time.sleep(0.5)
    raise RuntimeError(f"after {PATIENCE_S} s there are not {count} nodes; {folder} has their logs")


def nodes_of(folder: Path, address: str) -> list[Mapping[str, Any]]:
    """The nodes as Ray knows them, from a process of its own, which has the token; none where it does not answer."""
    code = (
        "import json, sys; from ray._raylet import GcsClient; from ray.core.generated.gcs_pb2 import GcsNodeInfo as N\n"
        "found = GcsClient(address=sys.argv[1]).get_all_node_info(timeout=10).values()\n"
        "print(json.dumps([{'address': f'{n.node_manager_address}:{n.node_manager_port}', 'alive': n.state == N.ALIVE,"
        " 'cpus': n.resources_total.get('CPU', 0)} for n in found]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, address], capture_output=True, text=True, env=environment(folder), check=False
    )
    found: list[Mapping[str, Any]] = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else []
    return found


def alive(folder: Path) -> list[dict[str, Any]]:
    """Processes of the cluster that still run; a number that went to another process since does not count."""
    path = folder / "cluster.json"
    processes = json.loads(path.read_text())["processes"] if path.exists() else []
    return [process for process in processes if process["born"] and born(process["pid"]) == process["born"]]


def born(pid: int) -> str:
    """When a process began, in ticks since the machine did; "" of one that is gone."""
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if state == "Z" else rest[18]


def free_port() -> int:
    """A port of loopback that nobody uses."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
    return port


if __name__ == "__main__":
    sys.exit(main())
