"""Code of no role in fedsim, which a configuration may name and nothing may call; calls are noted."""

from __future__ import annotations

from typing import Any

from tests.fuzz import watch


def function(*args: Any, **options: Any) -> str:
    """As ``os.system`` would be."""
    watch.note("called tests.fuzz.foreign.function")
    return "called"


class Thing:
    """As ``subprocess.Popen`` would be."""

    def __init__(self, *args: Any, **options: Any):
        watch.note("called tests.fuzz.foreign.Thing")
