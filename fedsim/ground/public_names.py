"""The dotted paths by which configurations and run folders name fedsim's parts: they stay when code moves.

A part is written as it was always written, so that a run of an earlier version goes on, and runs of two versions
compare. Modules at these paths can still be imported (``assembly.former``).
"""

from __future__ import annotations

from typing import Any

HOMES = {
    "fedsim.checkpoint": "fedsim.record.checkpoint",
    "fedsim.config": "fedsim.assembly.factory",
    "fedsim.delays": "fedsim.schedule.delays",
    "fedsim.engine.config": "fedsim.pool.engine",
    "fedsim.schedule": "fedsim.schedule.rules",
}
"""Module as it is named: module where its classes lie."""
_NAMES = {home: name for name, home in HOMES.items()}


def home_of(module: str) -> str:
    """The module whose classes a configuration means by ``module``."""
    return HOMES.get(module, module)


def name_of_class(cls: Any) -> str:
    """The dotted path of a class or function, as configurations name it."""
    return f"{_NAMES.get(cls.__module__, cls.__module__)}.{cls.__qualname__}"
