"""Which model of a run is its best so far."""

from __future__ import annotations

from collections.abc import Mapping

from fedsim.evaluate import Evaluate, is_better


class Best:
    """The best evaluation so far, as summary.json has it: the earliest of equals, and never a value that is not finite.

    Args:
        evaluate: says which tag decides.

    Attributes:
        tag: the metric; None before the first evaluation.
        value: the best so far, or None.
        round: when that was, or None.
    """

    def __init__(self, evaluate: Evaluate) -> None:
        self._evaluate = evaluate
        self.tag: str | None = None
        self.value: float | None = None
        self.round: int | None = None

    def improves(self, record: Mapping[str, float]) -> bool:
        """Whether a round's record is the best so far, which it is from then on."""
        if self.tag is None and any(tag.startswith("eval/") for tag in record):
            self.tag = self._evaluate.judged(record)
        if self.tag is None or self.tag not in record or not is_better(self.tag, record[self.tag], self.value):
            return False
        self.value, self.round = record[self.tag], int(record["round"])
        return True
