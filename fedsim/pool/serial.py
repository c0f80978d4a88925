"""The in-process backend: no Ray, whole stack traces, breakpoints, the same bits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from fedsim.pool.worker import Setup, Worker


class Serial:
    """Runs every job in this process, one after the other."""

    def __init__(self, setup: Setup):
        self._threads = torch.get_num_threads()
        self._worker = Worker(setup)

    def map(self, method: str, jobs: Sequence[Any], costs: Sequence[float], shared: Any) -> list[Any]:
        """Answers in job order."""
        answers: list[Any] = getattr(self._worker, method)(jobs, shared)
        return answers

    def close(self) -> None:
        """Give torch its threads back."""
        torch.set_num_threads(self._threads)
