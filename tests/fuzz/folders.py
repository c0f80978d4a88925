"""Run folders that were damaged or written by somebody else, and what is then asked of them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from tests.fuzz.values import NONSENSE
from tests.fuzz.warm import forked, here

_SMALL = (
    *("engine=serial", "hydra.run.dir=run", "partition=iid", "partition.clients=4", "model.hidden=[4]", "rounds=4"),
    "local.steps=2",
)
KINDS = {
    "scaffold": ("algorithm=scaffold", "schedule=all"),
    "choco": ("algorithm=choco_sgd",),
    "fedbuff": ("algorithm=fedbuff", "schedule.concurrency=2"),
    "private": ("algorithm=dp_sgd", "privacy=own", "privacy.noise_multiplier=1", "schedule=all"),
}
"""Runs of which folders are made."""
COMMANDS = (
    ["resume=run"],
    ["resume=run", "rounds=6"],
    ["resume=run", "engine.jobs=2"],
    ["resume=run", "checkpoint.keep=1", "trust=false"],
    ["replay", "run", "round=1", "client=0"],
    ["replay", "run", "round=3"],
    ["export", "run", "--out", "run/out.safetensors"],
    ["export", "run", "--best", "--out", "run/out.pt"],
    ["report", "run", "--no-figures"],
    ["report", "run"],
)
STOPPED_IN = 3


def made(home: Path) -> None:
    """By kind, the folder of a finished run and of one that was killed, below ``home``; a rehearsal for the cases."""
    for kind, words in KINDS.items():
        for state in ("finished", "killed"):
            (home / f"{kind}-{state}").mkdir(parents=True)
        argv = [*_SMALL, "checkpoint.seconds=0", *words]
        here(argv, home / f"{kind}-finished")
        killed = forked(argv, home / f"{kind}-killed", killed_in=STOPPED_IN)
        if killed.code is not None:
            raise AssertionError(f"{kind}: {killed.err}")
    place = home / "rehearsed"
    shutil.copytree(home / "scaffold-finished", place)
    for command in (["resume=run", "rounds=6"], ["replay", "run", "round=3"], ["report", "run"]):
        here(command, place)


PLACES = st.integers(0, 10**6)
"""Which of the files, bytes or keys: modulo their number, known when the folder is there."""
CHANGES = st.one_of(
    st.tuples(st.sampled_from(["remove", "empty", "folder", "link", "dangling", "twice", "unreadable"]), PLACES),
    st.tuples(st.sampled_from(["cut", "flip", "text"]), PLACES, PLACES),
    st.tuples(st.sampled_from(["key", "record", "header"]), PLACES, PLACES, NONSENSE),
    st.tuples(st.just("key"), PLACES, PLACES, NONSENSE),
    st.tuples(st.just("without"), PLACES, PLACES),
)


@st.composite
def folder_cases(draw: st.DrawFn) -> dict[str, Any]:
    """A folder, what becomes of it, and a command."""
    return {
        "folder": f"{draw(st.sampled_from([*KINDS]))}-{draw(st.sampled_from(['finished', 'killed']))}",
        "changes": [list(one) for one in draw(st.lists(CHANGES, min_size=0, max_size=3))],
        "argv": draw(st.sampled_from(COMMANDS)),
    }


def change(run: Path, how: str, place: int, *more: Any) -> None:
    """Change a folder in one way; nothing where there is nothing of the kind."""
    if how in ("key", "without"):
        _of_key(run / ("config.yaml", "config.yaml", "summary.json", "provenance.json")[place % 4], *more)
    elif how == "record":
        _of_record(run / "metrics.jsonl", place, *more)
    elif how == "header":
        _of_header(run / "checkpoints", place, *more)
    else:
        files = sorted(path for path in run.rglob("*") if path.is_file() or path.is_dir())
        if files:
            _of_file(how, files[place % len(files)], *more)


def _of_file(how: str, path: Path, at: int = 0) -> None:
    content = path.read_bytes() if path.is_file() else b""
    if how == "unreadable":
        path.chmod(0)
        return
    if how == "twice":
        shutil.copytree(path, f"{path}.copy") if path.is_dir() else shutil.copy(path, f"{path}.copy")
        return
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    here = at % max(1, len(content))
    flipped = content[:here] + bytes([content[here] ^ (1 << at % 8)]) + content[here + 1 :] if content else b""
    written = {"empty": b"", "cut": content[:here], "flip": flipped, "text": b"\xff\x00{[" * (at % 4000)}
    if how == "folder":
        path.mkdir()
    elif how in ("link", "dangling"):
        path.symlink_to(Path("../notes.txt" if how == "link" else "../nowhere"))
    elif how in written:
        path.write_bytes(written[how])


def _of_key(path: Path, at: int, *value: Any) -> None:
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, ValueError, yaml.YAMLError):
        return
    places = list(_places(content))
    if not places:
        return
    node, key = places[at % len(places)]
    if value:
        node[key] = value[0]
    else:
        del node[key]
    path.write_text(yaml.safe_dump(content) if path.suffix == ".yaml" else json.dumps(content))


def _of_record(path: Path, which: int, at: int, value: Any) -> None:
    try:
        lines = path.read_text().splitlines()
        record = json.loads(lines[which % len(lines)])
        record[[*record][at % len(record)]] = value
    except (OSError, ValueError, ArithmeticError, TypeError, KeyError):
        return
    lines[which % len(lines)] = json.dumps(record)
    path.write_text("".join(f"{line}\n" for line in lines))


def _of_header(folder: Path, which: int, at: int, value: Any) -> None:
    """A checkpoint with another header, and the name that belongs to it."""
    files = sorted(folder.glob("round-*.safetensors"))
    if not files:
        return
    path = files[which % len(files)]
    try:
        with safe_open(path, framework="np") as file:
            header = json.loads(file.metadata()["fedsim"])
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (OSError, ValueError, TypeError, SafetensorError):
        return
    places = [*_places(header), *((arrays, name) for name in arrays)]
    node, key = places[at % len(places)]
    if node is arrays:
        del arrays[key]
    else:
        node[key] = value
    save_file(arrays, path, {"fedsim": json.dumps(header)})
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    os.rename(path, path.with_name(f"{path.name[:14]}-{digest}.safetensors"))


def _places(node: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) in nested containers."""
    for key, value in list(
        node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    ):
        yield node, key
        yield from _places(value)
