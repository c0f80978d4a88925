"""Run folders as ``fedsim`` leaves them, without running anything."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

FEDAVG = {"_target_": "fedsim.algorithms.fedavg.FedAvg", "lr": 0.1}
FEDPROX = {"_target_": "fedsim.algorithms.fedprox.FedProx", "lr": 0.1, "mu": 0.01}
TOPK = {"encode": False, "topk": {"_target_": "fedsim.channel.topk.TopK", "ratio": 0.05}}


def config(algorithm: Mapping[str, Any] = FEDAVG, seed: int = 0, **more: Any) -> dict[str, Any]:
    base: dict[str, Any] = {"seed": seed, "rounds": 10, "algorithm": dict(algorithm), "channel": {"encode": False}}
    base |= {"partition": {"_target_": "fedsim.partition.Dirichlet", "clients": 20, "alpha": 0.5}}
    base |= {"data": {"_target_": "fedsim.data.Digits"}}
    base |= {"engine": {"_target_": "fedsim.pool.engine.Engine", "backend": "serial", "actors": 2, "dtype": "float32"}}
    return base | more


def records(accuracy: Sequence[float | None], every: int = 1, **more: Sequence[float | None]) -> list[dict[str, Any]]:
    """Round 0, then one record a round: 2 MB up, 1 MB down, half a second."""
    rows: list[dict[str, Any]] = []
    for t, value in enumerate(accuracy):
        row: dict[str, Any] = {"round": t}
        if t:
            row |= {"comm/uplink_bytes": 2_000_000, "comm/downlink_bytes": 1_000_000, "time/round_s": 0.5}
            row |= {"comm/uplink_total_bytes": 2_000_000 * t, "comm/downlink_total_bytes": 1_000_000 * t}
        if t % every == 0:
            row |= {"eval/loss": None if value is None else 2 * (1 - value), "eval/accuracy": value}
        rows.append(row | {tag.replace("__", "/"): values[t] for tag, values in more.items()})
    return rows


def write_run(
    path: Path,
    cfg: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    status: str | None = "finished",
    overrides: Sequence[str] | None = None,
    partition: str | None = "",
) -> Path:
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(yaml.safe_dump(dict(cfg), sort_keys=False))
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if status is not None:
        summary = {"status": status, "rounds": rows[-1]["round"], "digest": "ab" * 32}
        (path / "summary.json").write_text(json.dumps(summary))
    digest = f"p{cfg['seed']}" if partition == "" else partition
    provenance = {"started": f"2026-01-01T00:00:{cfg['seed']:02}+00:00", "versions": {"torch": "2.13.0"}, "threads": 1}
    provenance |= {"data": {"name": "digits", "digest": "d"}, "partition": {"clients": 20, "digest": digest}}
    (path / "provenance.json").write_text(json.dumps(provenance))
    if overrides is not None:
        (path / ".hydra").mkdir()
        (path / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(list(overrides)))
    return path


def rising(last: float, rounds: int = 10, start: float = 0.1) -> list[float]:
    return np.linspace(start, last, rounds + 1).tolist()


def sweep(folder: Path, finals: Mapping[str, Sequence[float]]) -> Path:
    """FedAvg and FedProx over seeds 0, 1, ... with these final accuracies."""
    algorithms = {"fedavg": FEDAVG, "fedprox": FEDPROX}
    for name, ends in finals.items():
        for seed, end in enumerate(ends):
            overrides = [f"algorithm={name}", f"seed={seed}", "rounds=10"]
            write_run(
                folder / f"{name}{seed}", config(algorithms[name], seed), records(rising(end)), overrides=overrides
            )
    return folder
