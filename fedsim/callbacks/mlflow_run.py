"""MLflow: a run there for every run here, in a local store or on a server."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsim.callbacks.base import Callback, RunView, require_package, scalars
from fedsim.errors import require
from fedsim.fields import check_fields
from fedsim.ground.flat import flat_hyperparameters

NOTE = "mlflow_run"
"""The file in a run's folder that names the run there."""
LONGEST = 500  # characters of a parameter, which every MLflow takes


@dataclass
class MLflow(Callback):
    """Logs to MLflow; needs the extra ``mlflow``.

    The tags are the metrics, the round is the step, the keys of the configuration are the parameters. A resumed run
    goes on in the same run there; rounds that it has are not logged again.

    Attributes:
        experiment: of MLflow; made if there is none of the name.
        uri: of the tracking server, or ``sqlite:///FILE`` for a local store; null: what MLflow itself is told
            (``MLFLOW_TRACKING_URI``), else its own default, ``mlflow.db`` in the current folder.
    """

    experiment: str = "fedsim"
    uri: str | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        require(self.experiment != "", "experiment", "have a name", self.experiment)
        require_package("mlflow", "mlflow", "callbacks=[mlflow]")

    def begin(self, run: RunView) -> None:
        """Begin a run there, or go on with the one that this folder names."""
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient(tracking_uri=self.uri)
        note = None if run.folder is None else Path(run.folder) / NOTE
        self._id = self._known(note) if note is not None and run.records else ""
        self._logged = -1
        if self._id:
            history = self._client.get_metric_history(self._id, "round")
            self._logged = max((int(metric.step) for metric in history), default=-1)
            self._client.update_run(self._id, status="RUNNING")
        else:
            self._id = self._create(run)
        if note is not None:
            note.write_text(self._id)
        for record in run.records:
            self.record(record)

    def record(self, record: Mapping[str, float]) -> None:
        """Log a round, once."""
        from mlflow.entities import Metric

        done = int(record["round"])
        if done <= self._logged:
            return
        now = int(1000 * time.time())
        # The store keeps finite numbers only in every version; "round" last says that all of a round are there.
        values = {tag: value for tag, value in scalars(record).items() if math.isfinite(value)} | {"round": done}
        self._client.log_batch(self._id, [Metric(tag, float(value), now, done) for tag, value in values.items()])
        self._logged = done

    def end(self, summary: Mapping[str, Any]) -> None:
        """Say how it ended."""
        for key in ("status", "digest"):
            self._client.set_tag(self._id, f"fedsim.{key}", str(summary.get(key, "")))
        ended = {"failed": "FAILED", "diverged": "FAILED", "interrupted": "KILLED"}
        self._client.set_terminated(self._id, ended.get(str(summary["status"]), "FINISHED"))

    def _known(self, note: Path) -> str:
        """The run that a folder names, if the store has it still."""
        from mlflow.exceptions import MlflowException

        try:
            found = note.read_text().strip()
            self._client.get_run(found)
        except (OSError, MlflowException):
            return ""
        return found

    def _create(self, run: RunView) -> str:
        found = self._client.get_experiment_by_name(self.experiment)
        number = found.experiment_id if found is not None else self._client.create_experiment(self.experiment)
        made = str(self._client.create_run(number, run_name=run.name).info.run_id)
        for key, value in flat_hyperparameters(run.config).items():
            self._client.log_param(made, key, str(value)[:LONGEST])
        return made
