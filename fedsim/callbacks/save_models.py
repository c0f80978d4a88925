"""The model after every round, or every few, as files that other programs read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedsim.callbacks.base import Callback, RunView
from fedsim.errors import require
from fedsim.fields import check_fields
from fedsim.ground.model_file import write_model


@dataclass
class SaveModels(Callback):
    """Writes ``models/round-00000010.safetensors``: the global model with the names of its ``state_dict``.

    Attributes:
        every: rounds between two models, >= 1; the initial model and the last one are always written.
        path: of the folder; null: ``models`` in the run's folder.
    """

    every: int = 1
    path: str | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        require(self.every >= 1, "every", "be >= 1", self.every)

    def begin(self, run: RunView) -> None:
        """Find the place."""
        self._folder = run.file(self.path, "models", "save_models.path")
        require(run.model() is not None, "save_models", "be for a method with a model of all", "one without")
        self._run, self._done = run, -1

    def record(self, record: Mapping[str, float]) -> None:
        """Write a model whose turn it is; one that an interrupted run had written is replaced by the same."""
        self._done = int(record["round"])
        if self._done % self.every == 0:
            self._write()

    def end(self, summary: Mapping[str, Any]) -> None:
        """Write the last one."""
        if self._done >= 0 and self._done % self.every:
            self._write()

    def _write(self) -> None:
        model = self._run.model()
        if model is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_model(self._folder / f"round-{self._done:08}.safetensors", model, round=self._done)
