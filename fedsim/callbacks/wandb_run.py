"""Weights & Biases: a run there for every run here, online or offline."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from fedsim.callbacks.base import Callback, RunView, require_package, scalars
from fedsim.fields import check_fields
from fedsim.ground.files import atomic_file

PATIENCE = {"WANDB__SERVICE_WAIT": "300", "WANDB_INIT_TIMEOUT": "300"}
"""Seconds to wait for wandb's own process and for its answer: half a minute is little where many runs start at once."""


@dataclass
class WandB(Callback):
    """Logs to Weights & Biases; needs the extra ``wandb``.

    The tags are the keys, the round is the step, the configuration is the run's config. Without a network or an
    account, ``mode=offline`` writes to the run's folder, and ``wandb sync`` sends it later. A resumed run goes on in
    the same run there; rounds that it has are not logged again.

    Attributes:
        project: of Weights & Biases.
        entity: the account or team; null: the user's own.
        mode: ``online``, ``offline`` or ``disabled``; null: what wandb itself is told (``WANDB_MODE``,
            ``wandb login``).
        tags: labels of the run there.
    """

    project: str = "fedsim"
    entity: str | None = None
    mode: Literal["online", "offline", "disabled"] | None = None
    tags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_fields(self)
        require_package("wandb", "wandb", "callbacks=[wandb]")

    def begin(self, run: RunView) -> None:
        """Begin a run there, or go on with the one that this folder's notes name."""
        import wandb

        self._note = None if run.folder is None else Path(run.folder) / "wandb.json"
        before = _read(self._note) if run.records else {}
        self._logged = int(before.get("round", -1))
        place = self._place(run, before)
        with _patience():
            self._run = wandb.init(
                project=self.project,
                entity=self.entity,
                mode=self.mode,
                tags=self.tags,
                name=run.name,
                config=dict(run.config),
                **place,
            )
        for record in run.records:
            self.record(record)

    def record(self, record: Mapping[str, float]) -> None:
        """Log a round, once."""
        done = int(record["round"])
        if done <= self._logged:
            return
        self._run.log(scalars(record), step=done, commit=True)
        self._logged = done
        if self._note is not None:
            with atomic_file(self._note) as file:
                file.write(json.dumps({"id": self._run.id, "round": done}).encode())

    def end(self, summary: Mapping[str, Any]) -> None:
        """Send what is left, with the summary."""
        for tag, value in summary.items():
            if isinstance(value, (str, int, float)):
                self._run.summary[tag] = value
            elif isinstance(value, Mapping) and "best" in value:
                self._run.summary[f"{tag}.best"] = value["best"]
        self._run.finish(exit_code=0 if summary["status"] in ("finished", "stopped") else 1)

    def _place(self, run: RunView, before: Mapping[str, Any]) -> dict[str, Any]:
        """Where wandb writes, and which run goes on."""
        where = {} if run.folder is None else {"dir": str(run.folder)}
        if run.folder is None or "id" not in before:
            return where
        _wait_for_a_name(Path(run.folder) / "wandb", str(before["id"]))
        return where | {"id": before["id"], "resume": "allow"}


@contextmanager
def _patience() -> Iterator[None]:
    """What wandb's own settings leave open is PATIENCE meanwhile."""
    mine = {key: value for key, value in PATIENCE.items() if key not in os.environ}
    os.environ.update(mine)
    try:
        yield
    finally:
        for key in mine:
            os.environ.pop(key, None)


def _wait_for_a_name(folder: Path, run: str) -> None:
    """wandb names a run's files by the second: within one second, a run that goes on has no new ones."""
    while any(folder.glob(f"*-{datetime.now():%Y%m%d_%H%M%S}-{run}")):
        time.sleep(0.02)


def _read(note: Path | None) -> dict[str, Any]:
    try:
        found = json.loads(note.read_text()) if note is not None else {}
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
