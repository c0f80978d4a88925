"""fedsim: a federated and decentralized learning simulator.

``from fedsim import simulate`` runs one simulation; everything it is made of lives in the subpackages ``algorithms``,
``data``, ``models``, ``partition`` and ``schedule``. Importing fedsim imports nothing heavy.
"""

from __future__ import annotations

from os.path import dirname, join
from typing import TYPE_CHECKING, Any

from fedsim.ground.version import __version__

if TYPE_CHECKING:
    from fedsim.aggregate import Mean
    from fedsim.evaluate import Evaluate
    from fedsim.ground.rng import numpy_stream
    from fedsim.local import Local
    from fedsim.pool.engine import Engine
    from fedsim.record.result import Result
    from fedsim.simulation import simulate

__all__ = ["Engine", "Evaluate", "Local", "Mean", "Result", "__version__", "numpy_stream", "simulate"]

_HOMES = {
    "Engine": "pool.engine",
    "Evaluate": "evaluate",
    "Local": "local",
    "Mean": "aggregate",
    "Result": "record.result",
    "numpy_stream": "ground.rng",
    "simulate": "simulation",
}


__path__.append(join(dirname(__file__), "assembly", "former"))  # modules at the paths of earlier versions


def __getattr__(name: str) -> Any:
    """Import the public names when they are first used."""
    if name not in _HOMES:
        raise AttributeError(f"module 'fedsim' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"fedsim.{_HOMES[name]}"), name)
