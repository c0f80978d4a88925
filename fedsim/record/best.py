"""Which model of a run is its best so far: the one place that decides."""

from __future__ import annotations

import math
from collections.abc import Mapping

from fedsim.ground.directions import lower_is_better, main_metric


class Best:
    """The best evaluation so far, as summary.json has it: the earliest of equals, and never a value that is not finite.

    Attributes:
        tag: the metric; decided by the first evaluation unless it was given.
        value: the best so far, or None.
        round: when that was, or None.
    """

    def __init__(self, tag: str | None = None) -> None:
        self.tag = tag
        self.value: float | None = None
        self.round: int | None = None

    def improves(self, record: Mapping[str, float]) -> bool:
        """Whether a round's record is the best so far, which it is from then on."""
        if self.tag is None and any(tag.startswith("eval/") for tag in record):
            self.tag = main_metric(record)
        found = math.nan if self.tag is None else record.get(self.tag, math.nan)
        sign = -1 if lower_is_better(self.tag or "") else 1
        if not math.isfinite(found) or (self.value is not None and sign * found <= sign * self.value):
            return False
        self.value, self.round = found, int(record["round"])
        return True
