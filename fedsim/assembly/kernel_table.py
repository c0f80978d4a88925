"""Which constants the kernel rule of a run has: those of ``engine.tuning``, found out once, on the driver."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import yaml

from fedsim.assembly.parts import Parts
from fedsim.errors import InputError
from fedsim.kernels.tuning import Tuning, built_in_row
from fedsim.kernels.tuning_file import read_table, users_file
from fedsim.pool.engine import Engine
from fedsim.record.provenance import cpu_capability


def with_table(parts: Parts, before: Path | None = None) -> Parts:
    """The parts with the table itself in the place of what names it.

    Args:
        parts: of a run.
        before: the folder of the run that goes on, whose table wins over ``auto``: a newer file would change bits.

    Raises:
        InputError: the file that ``engine.tuning`` names, or the user's, cannot be used here.
    """
    engine = parts.engine
    if isinstance(engine.tuning, Tuning):
        return parts
    recorded = recorded_table(before) if before is not None and engine.tuning == "auto" else None
    return replace(parts, engine=replace(engine, tuning=recorded or table_of(engine)))


def table_of(engine: Engine) -> Tuning:
    """The table that these settings name; raises InputError as ``with_table``."""
    if isinstance(engine.tuning, Tuning):
        return engine.tuning
    capability = "cuda" if engine.device == "cuda" else cpu_capability()
    if engine.tuning == "builtin":
        return built_in_row(capability, engine.device)
    if engine.tuning != "auto":
        return read_table(Path(engine.tuning).expanduser(), capability)
    mine = users_file(capability)
    return (
        read_table(mine, capability) if mine is not None and mine.exists() else built_in_row(capability, engine.device)
    )


def recorded_table(folder: Path) -> Tuning | None:
    """The table of a run, from its config.yaml; None where the folder does not say."""
    try:
        table = yaml.safe_load((folder / "config.yaml").read_text())["engine"]["tuning"]
        return Tuning(**{key: value for key, value in table.items() if key != "_target_"})
    except (OSError, ValueError, RecursionError, yaml.YAMLError, InputError, KeyError, TypeError, AttributeError):
        return None
