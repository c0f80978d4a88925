"""Stop when a metric is good enough, or does not get better any more."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from fedsim.callbacks.base import Callback, RunView
from fedsim.errors import InputError, require
from fedsim.evaluate import is_share, lower_is_better
from fedsim.fields import check_fields


@dataclass
class EarlyStopping(Callback):
    """Stops a run at a target, or when nothing has become better for some evaluations.

    A target stops once: a run that is resumed after it goes on. So does patience, which then counts anew.

    >>> stop = EarlyStopping(metric="eval/accuracy", target=0.9)
    >>> stop.begin(RunView("mine", {}, None, 10, (), lambda: None))
    >>> stop.record({"round": 0, "eval/accuracy": 0.1})
    >>> stop.record({"round": 1, "eval/accuracy": 0.93})
    'eval/accuracy reached 0.93 after round 1, the target was 0.9'

    Attributes:
        metric: tag of a number that the run records, such as ``eval/accuracy`` or ``eval/loss``.
        target: stop when the metric is as good as this; null: never for this reason.
        patience: stop when so many evaluations in a row were no better than the best before, >= 1; null: never.
        min_delta: by how much an evaluation must be better to count, >= 0.
        mode: whether the metric shall become small (``min``) or large (``max``); ``auto``: min for losses and errors,
            by the words of the tag, else max.
    """

    metric: str = "eval/accuracy"
    target: float | None = None
    patience: int | None = None
    min_delta: float = 0.0
    mode: Literal["auto", "min", "max"] = "auto"

    def __post_init__(self) -> None:
        check_fields(self)
        given = self.target is not None or self.patience is not None
        require(given, "target", "be given, or patience", self.target, "when shall the run stop?")
        require(self.patience is None or self.patience >= 1, "patience", "be >= 1", self.patience)
        require(self.min_delta >= 0, "min_delta", "be >= 0", self.min_delta)
        share = is_share(self.metric) and self.target is not None
        do = f"{(self.target or 0) / 100:g} is {self.target:g} %" if share else ""
        require(not share or (self.target or 0) <= 1, "target", f"be at most 1, as {self.metric} is", self.target, do)
        require("/" in self.metric, "metric", "be a tag such as eval/accuracy", self.metric)

    def begin(self, run: RunView) -> None:
        """Forget, then look at the rounds before."""
        self._best, self._waited, self._reached, self._seen = math.inf, 0, False, False
        for record in run.records:
            self.record(record)

    def record(self, record: Mapping[str, float]) -> str | None:
        """Why to stop, if there is a reason; rounds that do not measure the metric do not count."""
        value = record.get(self.metric)
        if value is None:
            self._require_known(record)
            return None
        self._seen = True
        sign = 1 if self._small else -1
        if self.target is not None and not self._reached and sign * value <= sign * self.target:
            self._reached = True
            return (
                f"{self.metric} reached {value:.6g} after round {record['round']:.0f}, the target was {self.target:g}"
            )
        if sign * value < self._best - (self.min_delta if math.isfinite(self._best) else 0.0):
            self._best, self._waited = sign * value, 0
            return None
        self._waited += 1
        if self.patience is None or self._waited < self.patience:
            return None
        waited, self._waited = self._waited, 0
        best = f"no better than {sign * self._best:.6g}" if math.isfinite(self._best) else "not finite"
        return f"{self.metric} was {best} for {waited} evaluations, after round {record['round']:.0f}"

    @property
    def _small(self) -> bool:
        return lower_is_better(self.metric) if self.mode == "auto" else self.mode == "min"

    def _require_known(self, record: Mapping[str, float]) -> None:
        """Raise InputError at the first record that shows that the metric is not measured: waiting would be in vain."""
        group = self.metric.partition("/")[0] + "/"
        there = [tag for tag in record if tag.startswith(group)]
        evaluated = record["round"] >= 1 and any(tag.startswith("eval/") for tag in record)
        silent = group == "train/"  # of a round in which nobody worked
        if not self._seen and (there or (evaluated and not silent)):
            known = there or [tag for tag in record if "/" in tag]
            raise InputError(f"callback EarlyStopping: metric must be one of {', '.join(known)}, got {self.metric!r}")
