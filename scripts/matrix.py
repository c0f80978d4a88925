"""The test suite on several versions of Python, each in an environment of its own outside the checkout.

    python scripts/matrix.py 3.10 3.13                                   the fast suite
    python scripts/matrix.py 3.10 3.13 -- tests/test_basics.py -k wheel  what pytest is given instead

An interpreter is looked for as ``python3.10`` on the PATH, then with ``uv python find 3.10``, then among pyenv's. A
version that is not found is skipped, which is said. Environments stay in ~/.cache/fedsim-matrix (or XDG_CACHE_HOME),
so that a second call only installs what changed. pip's own variables apply: on Linux without an NVIDIA GPU set
PIP_EXTRA_INDEX_URL to PyTorch's CPU index, or pip fetches several gigabytes of CUDA libraries.

Exit code 0: every version that was found passes, and at least one was found.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def interpreter(version: str) -> str | None:
    """The path of an interpreter of this version, such as ``3.10``; None if there is none."""
    found = shutil.which(f"python{version}")
    if found and subprocess.run([found, "--version"], capture_output=True, check=False).returncode == 0:
        return found  # else a shim of pyenv, of a version that is not switched on
    if uv := shutil.which("uv"):
        asked = subprocess.run([uv, "python", "find", version], capture_output=True, text=True, check=False)
        if asked.returncode == 0:
            return asked.stdout.strip()
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    kept = sorted((root / "versions").glob(f"{version}.*/bin/python"), key=lambda path: _release(path.parts[-3]))
    return str(kept[-1]) if kept else None


def _release(name: str) -> tuple[int, ...]:
    """3.10.13 -> (3, 10, 13); other names, such as those of environments, come first."""
    parts = name.split(".")
    return tuple(map(int, parts)) if all(part.isdecimal() for part in parts) else ()


def tested(version: str, python: str, arguments: Sequence[str]) -> str:
    """Install this checkout for an interpreter and run pytest: ``passes``, or what failed."""
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "fedsim-matrix" / version
    own = str(home / "bin" / "python")
    constraints = ["-c", str(ROOT / "constraints.txt")]
    steps = {
        "making an environment": [python, "-m", "venv", str(home)],
        "installing": [own, "-m", "pip", "install", "--quiet", *constraints, "-e", f"{ROOT}[dev]"],
        "testing": [own, "-m", "pytest", *(arguments or ["-n", "auto", "--dist", "loadgroup"])],
    }
    for step, command in steps.items():
        say(f"{version}: {step} ({' '.join(command)})")
        if subprocess.run(command, cwd=ROOT, check=False).returncode:
            return f"FAILED at {step}"
    return "passes"


def main(argv: Sequence[str]) -> int:
    """Test the versions before ``--`` with the arguments of pytest after it."""
    if not argv or {"-h", "--help"} & {*argv}:
        say(__doc__ or "")
        return 0 if argv else 2
    at = argv.index("--") if "--" in argv else len(argv)
    versions, arguments = argv[:at], argv[at + 1 :]
    where = "not on the PATH, nor known to uv or pyenv"
    results = {}
    for version in versions:
        python = interpreter(version)
        results[version] = (
            f"skipped: python{version} is {where}" if python is None else tested(version, python, arguments)
        )
    for version, result in results.items():
        say(f"Python {version}: {result}")
    return 0 if "passes" in results.values() and not any("FAILED" in result for result in results.values()) else 1


def say(line: str) -> None:
    """Print a line now, before what the next command prints."""
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
