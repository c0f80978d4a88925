"""What may become of a case, and what became of it."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from tests.fuzz.warm import Outcome

WITHOUT_RAY = "import of ray halted"
"""How a case ends that would begin Ray: all was checked, and the machine has none."""


def broken(outcome: Outcome, before: dict[str, str], after: dict[str, str]) -> list[str]:
    """The promises that a case broke.

    Args:
        outcome: of its process.
        before: files around the run's folder.
        after: the same, afterwards.
    """
    lines = [line for line in outcome.err.splitlines() if line.strip()]
    said = [line for line in lines if line.startswith("error")]
    out = []
    if outcome.code is None:
        out.append("hung, or was ended by a signal")
    elif WITHOUT_RAY in outcome.err:
        return []
    elif outcome.code not in (0, 1, 2):
        out.append(f"exit code {outcome.code}")
    if "Traceback" in outcome.err or "Traceback" in outcome.out:
        out.append("a traceback")
    if outcome.code in (1, 2) and not said:
        out.append("no line that says why")
    odd = [line for line in lines if not line.startswith(("error", "warning", "note")) and "passed over" not in line]
    if odd and "Traceback" not in outcome.err:
        out.append(f"a line of nobody's: {odd[0]:.200}")
    if outcome.code == 2 and any(len(line) > 6000 for line in said):
        out.append("a line that nobody reads")
    out += outcome.noted
    out += [f"changed {name}" for name in sorted({*before, *after}) if before.get(name) != after.get(name)]
    return out


def content(folder: Path, leave: str) -> dict[str, str]:
    """Files and links below a folder by their content, but for those in the folder ``leave``."""
    found: dict[str, str] = {}
    for place, below, files in os.walk(folder):
        if Path(place) == folder:
            below[:] = [name for name in below if name != leave]
        for name in (*below, *files):
            path = Path(place, name)
            plain = path.is_file() and not path.is_symlink()
            kind = os.readlink(path) if path.is_symlink() else "folder"
            found[str(path.relative_to(folder))] = hashlib.sha256(path.read_bytes()).hexdigest() if plain else kind
    return found
