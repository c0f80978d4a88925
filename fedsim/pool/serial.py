"""The in-process backend: no Ray, whole stack traces, breakpoints, the same bits."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from fedsim.pool.worker import Setup, Worker, torch_given_back


class Serial:
    """Runs every job in this process, one after the other."""

    def __init__(self, setup: Setup):
        with ExitStack() as borrowed:
            borrowed.enter_context(torch_given_back())
            self._worker = Worker(setup)
            self._borrowed = borrowed.pop_all()

    def map(self, method: str, jobs: Sequence[Any], costs: Sequence[float], shared: Any) -> list[Any]:
        """Answers in job order."""
        answers: list[Any] = getattr(self._worker, method)(jobs, shared)
        return answers

    def close(self) -> None:
        """Give torch its threads back."""
        self._borrowed.close()
