"""What a run has done so far: its records as they come, its checkpoints, and how it goes on from one."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedsim.errors import Diverged, InputError, first_line
from fedsim.ground.console import Progress
from fedsim.ground.interrupts import Stopping, uninterrupted
from fedsim.privacy.ledger import Ledger
from fedsim.record.checkpoint import Checkpoints, Saved
from fedsim.record.clients_file import ClientsFile
from fedsim.record.drawings import confusion_picture
from fedsim.record.hooks import Hooks
from fedsim.record.kept_models import KeptModels
from fedsim.record.provenance import cpu_capability
from fedsim.record.run_folder import RunFolder, Status, run_summary
from fedsim.runs.evaluation import require_finite
from fedsim.runs.run import Run
from fedsim.runs.traffic import Record
from fedsim.types import SavedRows, State


@dataclass
class History:
    """The past of a run, wherever it is kept.

    Attributes:
        run: whose past it is.
        folder: where records go, or None.
        bar: what shows them, or None.
        checkpoints: what saves the run, or None.
        fingerprint: of the run, for its checkpoints.
        points: models after each round if they are kept, else None.
        ledger: what the run lets out, or None.
        begun: when, on the clock of ``time.perf_counter``.
        records: one for each round, round 0 being the initial model.
        spent: seconds before the run was resumed.
        open: the last round's record if it waits for its evaluation, else None.
        events: whether the events of a run in virtual time are kept.
        hooks: who is told of every round.
        models: what writes the models in the folder, or None.
        clients: what writes the clients' values, or None.
        start: seconds before the first round, of a resumed run those of every start.
    """

    run: Run
    folder: RunFolder | None
    bar: Progress | None
    checkpoints: Checkpoints | None
    fingerprint: Mapping[str, Any]
    points: list[Tensor] | None
    ledger: Ledger | None
    begun: float
    records: list[Record] = field(default_factory=list)
    spent: float = 0.0
    open: Record | None = None
    events: bool = False
    hooks: Hooks = field(default_factory=Hooks)
    models: KeptModels | None = None
    clients: ClientsFile | None = None
    start: float = 0.0
    _saved: int | None = None

    def resume(self, saved: Saved) -> None:
        """Take over what a checkpoint holds; the folder has the records of the rounds before."""
        try:
            state = saved.into(self._state(0))
            self.run.restore(state["run"])
            if self.points is not None:
                self.points += list(state["points"].values)
        except InputError:
            raise
        except Exception as error:  # of whoever made a file of the right shape and digest, and other content
            raise InputError(
                f"the checkpoint after round {saved.done} must hold a run's state, got {first_line(error)}"
            ) from error
        self.spent, self.open = saved.notes["wall_s"], saved.notes["open"]
        self.start = saved.notes.get("start_s", 0.0)  # not in checkpoints of earlier versions
        self.records += self.folder.records if self.folder else []
        if self.models:
            self.models.resume(self.records)
        if self.clients:
            self.clients.resume(self.records)
        self._saved = None if self.open else saved.done
        if self.bar:
            self.bar.update(self.records[-1])

    def play(self, stopping: Stopping) -> tuple[Status, str]:
        """Run what is left and save it; returns how it ended and why. What fails is on record, and raised."""
        try:
            status, message = self.loop(stopping)
        except Exception as error:
            with suppress(OSError):  # a disk that is full or gone; the first error is the one to see
                self.catch_up()
                if not isinstance(error, OSError):
                    self.save()
                self.finish("failed", first_line(error))
            raise
        try:
            if status != "diverged":
                self.save(last=True)
            if self.models:
                self.models.finish(self.run.model(), self.run.done)
        except OSError as error:  # what the run came to is whole all the same
            self.finish(status, first_line(error))
            raise
        if self.folder and self.run.confusion is not None and status != "interrupted":  # that one may go on
            self.folder.picture("eval/confusion", confusion_picture(self.run.confusion), self.run.done)
        return status, message

    def loop(self, stopping: Stopping) -> tuple[Status, str]:
        """All rounds, or as many as go well; every finished round is on record whatever happens next."""
        run = self.run
        self.start += time.perf_counter() - self.begun
        why = ""
        try:
            if not self.records:
                why = self.told({"round": 0, **run.evaluate()})
            elif self.open is not None:
                due = run.evaluation.due(run.done, run.rounds)
                why = self.told(self.open | (run.evaluate() if due else {}))
            while run.done < run.rounds:
                require_finite(self.records[-1])
                if why:
                    return "stopped", why
                for record in run.go(self._unseen()):
                    why = self.told(record)
                if self.checkpoints and self.checkpoints.due(run.done):
                    self.save()
            require_finite(self.records[-1])
        except Diverged as error:
            return "diverged", first_line(error)
        except KeyboardInterrupt as stop:
            stopping.begin()
            self.catch_up()
            return "interrupted", f"{type(stop).__name__} after round {run.done}"
        return "finished", ""

    def told(self, record: Record) -> str:
        """Take down the round that is done and tell the callbacks; returns why the run shall stop, or ""."""
        self.add(record)
        return self.hooks.heard(self.records[-1])

    def add(self, record: Record) -> None:
        """Take down the round that is done."""
        if self.ledger is not None and "eval/loss" in record:
            record = record | {"privacy/epsilon": self.ledger.epsilon(int(record["round"]))}
        with uninterrupted():
            self.records.append(record)
            self.open = None
            if self.points is not None:
                self.points.append(self.run.point())
            if self.folder:
                self.folder.write(record)
            if self.models:
                self.models.heard(record, self.run.model)
            if self.clients and self.run.clients is not None and "eval/loss" in record:
                self.clients.heard(int(record["round"]), self.run.clients)
            if self.bar:
                self.bar.update(record)

    def catch_up(self) -> None:
        """Take down rounds that were done when the run was stopped, the last of which may lack its evaluation."""
        if not self.records or self.run.done == self.records[-1]["round"]:
            return
        done = self.run.recent if self.open is None else [self.open]
        for record in [one for one in done if one["round"] > self.records[-1]["round"]]:
            self.add(record)
        self.open = done[-1]

    def _unseen(self) -> int:
        """How many rounds may be done before anybody but the run looks at what they came to."""
        if self.points is not None or self.hooks.listening:
            return 1
        left = self.run.rounds - self.run.done
        return min(left, self.checkpoints.left(self.run.done)) if self.checkpoints else left

    def save(self, *, last: bool = False) -> None:
        """Write a checkpoint, unless the run has not begun or the last one says it all.

        Raises:
            OSError: the records are not on disk; or this is the ``last`` one and cannot be written.
        """
        if self.checkpoints is None or self.folder is None or not self.records:
            return
        if self.open is None and self._saved == self.run.done:
            return
        self.folder.sync()
        if self.models and not last:
            self.models.save()
        if self.clients:
            self.clients.save()
        recorded = self.run.done - (self.open is not None)
        wall_s = self.spent + time.perf_counter() - self.begun
        notes = {"recorded": recorded, "open": self.open, "wall_s": wall_s, "fingerprint": self.fingerprint}
        notes["start_s"] = self.start
        if self.checkpoints.save(self.run.done, self._state(recorded + 1), notes, last=last):
            self._saved = self.run.done

    def finish(self, status: Status, message: str) -> dict[str, Any]:
        """Write what the run came to; returns summary.json."""
        wall_s = self.spent + time.perf_counter() - self.begun
        summary = run_summary(self.records, status, self.run.digest(), wall_s)
        summary |= {"time/start_s": self.start, "cpu_capability": cpu_capability()}
        summary |= {"message": message} if message else {}
        if (best := self.run.evaluation.best) in summary:
            found = summary[best]
            summary["best"] = {"metric": best, "value": found["best"], "round": found["best_round"]}
        if self.ledger is not None:
            summary |= self.ledger.summary(int(summary["rounds"]))
        if self.run.notes:
            summary["notes"] = list(self.run.notes)
        if self.run.setup.precision is not None:
            summary["precision"] = self.run.setup.precision
        if self.folder:
            if (points := self.trajectory()) is not None:
                self.folder.trajectory(points, **self._times())
            if self.events and (happened := self.run.happened()) is not None:
                self.folder.events(*happened)
            if self.clients:
                self.clients.save()
            self.folder.finish(summary)
        self.hooks.end(summary)
        return summary

    def trajectory(self) -> np.ndarray | None:
        """The points, one above the other: a row for each record, the first of the initial model."""
        return torch.stack(self.points).numpy() if self.points else None

    def _times(self) -> dict[str, np.ndarray]:
        """When, in virtual time, the points were."""
        timed = "time/virtual_s" in self.records[-1]
        return {"t": np.array([record.get("time/virtual_s", 0.0) for record in self.records])} if timed else {}

    def _state(self, points: int) -> State:
        """What a checkpoint holds, with the first so many points."""
        kept: State = ()
        if self.points is not None:
            values = torch.stack(self.points[:points]) if points else self.run.point()[None][:0]
            kept = SavedRows(np.arange(len(values)), values)
        return {"run": self.run.snapshot(), "points": kept}
