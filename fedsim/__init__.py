"""fedsim: a federated and decentralized learning simulator.

``from fedsim import simulate`` runs one simulation; everything it is made of lives in the subpackages ``algorithms``,
``data``, ``models``, ``partition`` and ``schedule``. Importing fedsim imports nothing heavy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedsim.aggregate import Mean
    from fedsim.engine.config import Engine
    from fedsim.evaluate import Evaluate
    from fedsim.local import Local
    from fedsim.simulation import Result, simulate

__version__ = "0.1.0"
__all__ = ["Engine", "Evaluate", "Local", "Mean", "Result", "simulate"]

_HOMES = {
    "Engine": "engine.config",
    "Evaluate": "evaluate",
    "Local": "local",
    "Mean": "aggregate",
    "Result": "simulation",
    "simulate": "simulation",
}


def __getattr__(name: str) -> Any:
    """Import the public names when they are first used."""
    if name not in _HOMES:
        raise AttributeError(f"module 'fedsim' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"fedsim.{_HOMES[name]}"), name)
