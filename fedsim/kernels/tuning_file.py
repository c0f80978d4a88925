"""The file that ``fedsim tune`` writes and that later runs read: one table with what it was measured on.

JSON: ``version``, ``capability`` (of the processor, as torch names it; or cuda), ``processor``, ``torch``, ``made``,
``table`` (a ``Tuning``) and ``measured``, a list of timings that nothing reads but people.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from fedsim.errors import InputError, first_line
from fedsim.ground.files import atomic_file
from fedsim.kernels.tuning import Tuning

VERSION = 1
AGAIN = "run `fedsim tune` on this machine, or use engine.tuning=builtin"


def users_file(capability: str) -> Path | None:
    """Where the user's table for processors of a capability is; None where there is no home folder."""
    folder = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    try:
        return Path(folder).expanduser() / "fedsim" / f"tuning-{capability.replace(' ', '-')}.json"
    except RuntimeError:
        return None


def write_table(path: Path, table: Tuning, about: Mapping[str, Any]) -> None:
    """Write a table and what it is of, whole or not at all; raises OSError."""
    content = {"version": VERSION, **about, "table": asdict(table)}
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        file.write(json.dumps(content, indent=1).encode() + b"\n")


def read_table(path: Path, capability: str) -> Tuning:
    """The table in a file.

    Args:
        path: the file.
        capability: of the processor that it must be measured for, or cuda.

    Raises:
        InputError: in one line, what the file must hold and what it does.
    """
    must = f"engine.tuning must be a table of `fedsim tune`, got {path}"
    try:
        content: Any = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        why = getattr(error, "strerror", None) or f"which is no JSON ({first_line(error)})"
        raise InputError(f"{must}: {why}; {AGAIN}") from error
    if not isinstance(content, dict) or not isinstance(content.get("table"), dict):
        raise InputError(f"{must}, which holds no table; {AGAIN}")
    if content.get("version") != VERSION:
        raise InputError(f"{must} of version {content.get('version')!r}, need {VERSION}; {AGAIN}")
    if content.get("capability") != capability:
        what = f"engine.tuning must be measured for {capability}, got {path} for {content.get('capability')!r}"
        raise InputError(f"{what}; {AGAIN}")
    table, names = content["table"], [field.name for field in fields(Tuning)]
    if {*table} != {*names}:
        raise InputError(f"{must} with the constants {', '.join(table)}, need {', '.join(names)}; {AGAIN}")
    try:
        return Tuning(**table)
    except InputError as error:
        raise InputError(f"{must}, in which {error}; {AGAIN}") from error
