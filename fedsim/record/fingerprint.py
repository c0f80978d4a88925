"""What a run's bits depend on, compared when it is resumed.

What cannot change a bit is left out: where the work is done, how many rounds are to come, when checkpoints are written.
What changes rounding only (torch, the CPU, threads, kernels, the code) is named and the run goes on. What makes it
another run (any other key of the configuration, the data, who holds what) is refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from fedsim.errors import InputError
from fedsim.ground.console import warning

_TABLE = "engine.tuning"  # whose constants are among the engine's choices
_ELSEWHERE = {f"engine.{key}" for key in ("backend", "actors", "address", "retries", "timeout_s")}
FREE = {"rounds", "checkpoint", "callbacks", "name", _TABLE} | _ELSEWHERE
ROUNDING = {f"engine.{key}" for key in ("block", "jobs", "batching", "kernel", "device", "threads")}


def fingerprint(config: Mapping[str, Any], machine: Mapping[str, Any], method: Mapping[str, Any]) -> dict[str, Any]:
    """JSON that tells runs apart.

    Args:
        config: resolved configuration.
        machine: ``provenance(...)`` with the engine's choices: what changes rounding is taken from it.
        method: further facts that make a run what it is: digests of the data and of the partition, noise.
    """
    keys = dict(_flat(config, ""))
    kept = {key: value for key, value in keys.items() if not _within(key, FREE)}
    rounding = {key: kept.pop(key) for key in list(kept) if key in ROUNDING}
    rounding |= {"torch": torch.__version__, "cpu": machine["cpu"]["model"], "device": machine["device"]}
    rounding |= {"cpu capability": machine["cpu"]["capability"], "code": source_digest()}
    rounding |= {f"chosen {key}": value for key, value in machine["engine"].items() if key != "why"}
    plain: dict[str, Any] = json.loads(json.dumps({"method": kept | dict(method), "rounding": rounding}, default=str))
    return plain


def check_fingerprint(saved: Mapping[str, Any], now: Mapping[str, Any], where: Path) -> None:
    """Warn, in one line, where bits may differ from those of an uninterrupted run.

    Raises:
        InputError: the checkpoint in ``where`` is of another run.
    """
    other = _differences(saved["method"], now["method"])
    if other:
        raise InputError(
            f"a run goes on only as it began, got {'; '.join(other)}; resume it with the values of "
            f"{where / 'config.yaml'}, or begin another run in another folder"
        )
    if rounding := _differences(saved["rounding"], now["rounding"]):
        warning(
            f"the run goes on, but its results may differ in rounding from an uninterrupted one: {'; '.join(rounding)}"
        )


def source_digest() -> str:
    """sha256 over fedsim's own code."""
    hashed = hashlib.sha256()
    root = Path(__file__).parents[1]
    for path in sorted(root.rglob("*.py")):
        hashed.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return hashed.hexdigest()


def _differences(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    saved, now = dict(_flat(saved, "")), dict(_flat(now, ""))  # of a table what differs in it
    return [
        f"{key} was {_short(saved.get(key))}, is {_short(now.get(key))}"
        for key in dict.fromkeys([*saved, *now])
        if saved.get(key) != now.get(key)
    ]


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:12]}..."


def _within(key: str, names: set[str]) -> bool:
    return key in names or any(key.startswith(f"{name}.") for name in names)


def _flat(node: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
