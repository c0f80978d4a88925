"""The names in a configuration that are not fedsim's: found by reading, nothing is imported."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

OWN = "fedsim"
"""The package whose classes are built from a run folder without more ado."""


def strangers(config: Any) -> list[str]:
    """The names in a configuration that are not fedsim's: what building it would import and call."""
    return list(dict.fromkeys(_strangers(config)))


def _strangers(config: Any) -> Iterator[str]:
    if isinstance(config, Mapping):
        for key in ("_target_", "generator"):  # topology.generator: a function of networkx, or of a user
            name = config.get(key)
            own = (OWN,) if key == "_target_" else (OWN, "networkx")
            if isinstance(name, str) and name.partition(".")[0] not in own:
                yield name
        config = list(config.values())
    for value in config if isinstance(config, list) else ():
        yield from _strangers(value)
