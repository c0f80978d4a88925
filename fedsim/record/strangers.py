"""The names in a configuration that are not fedsim's: found by reading, nothing is imported."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

OWN = "fedsim"
"""The package whose classes are built from a run folder without more ado."""


PATHS = {"_target_": (OWN,), "generator": (OWN, "networkx"), "loss": (OWN,), "metrics": (OWN,)}
"""Keys whose values are dotted paths, and the packages that may stand there without more ado: ``topology.generator`` is
a function of networkx or of a user, ``task.loss`` and ``evaluate.metrics`` hold names and paths."""
SHORT = ("loss", "metrics")
"""Keys under which a name without a dot is one of fedsim's own."""


def strangers(config: Any) -> list[str]:
    """The names in a configuration that are not fedsim's: what building it would import, and perhaps call."""
    return list(dict.fromkeys(_strangers(config)))


def _strangers(config: Any) -> Iterator[str]:
    if isinstance(config, Mapping):
        for key, own in PATHS.items():
            value = config.get(key)
            for name in value if isinstance(value, list) else [value]:
                if isinstance(name, str) and name.partition(".")[0] not in own and ("." in name or key not in SHORT):
                    yield name
        config = list(config.values())
    for value in config if isinstance(config, list) else ():
        yield from _strangers(value)
