"""The models in a run's folder: ``model.safetensors``, the last, and ``model_best.safetensors``, by a metric."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fedsim.errors import first_line
from fedsim.evaluate import Evaluate
from fedsim.ground.console import warning
from fedsim.ground.files import LAST_MODEL
from fedsim.record.best import Best

if TYPE_CHECKING:  # a report, which knows these files by name, needs no torch
    from torch import Tensor, nn

LAST, BEST = LAST_MODEL, "model_best.safetensors"


class KeptModels:
    """Writes the models of one run: the best one beside each checkpoint, both when the run is over.

    Args:
        folder: of the run.
        module: the model of all with these parameters; None for a method without one.
        evaluate: says by which metric a model is best.
    """

    def __init__(self, folder: Path, module: Callable[[Tensor | None], nn.Module | None], evaluate: Evaluate) -> None:
        self.folder, self.module, self.best = folder, module, Best(evaluate)
        self._found: Tensor | None = None  # the best model that is not on disk yet

    def resume(self, records: Sequence[Mapping[str, float]]) -> None:
        """Know the best of the rounds before; its file lies in the folder."""
        for record in records:
            self.best.improves(record)

    def heard(self, record: Mapping[str, float], model: Callable[[], Tensor | None]) -> None:
        """A round is on record; ``model`` gives the parameters [d] of this moment."""
        if self.best.improves(record):
            found = model()
            self._found = None if found is None else found.clone()

    def save(self) -> None:
        """Write the best model if it is new; a disk that is full costs the file and a line."""
        try:
            self._write_best()
        except OSError as error:
            warning(f"{self.folder / BEST} is not written: {first_line(error)}")

    def finish(self, model: Tensor | None, done: int) -> None:
        """Write both.

        Raises:
            OSError: one of them cannot be written.
        """
        from fedsim.ground.model_file import write_model

        self._write_best()
        last = self.module(model)
        if last is not None:
            write_model(self.folder / LAST, last, round=done)

    def _write_best(self) -> None:
        from fedsim.ground.model_file import write_model

        found = self.module(self._found) if self._found is not None else None
        if found is not None:
            best = self.best
            write_model(self.folder / BEST, found, round=best.round, metric=best.tag, value=best.value)
        self._found = None
