"""The default job on several versions of Python, each in an environment of its own outside the checkout; then tests.

    python scripts/matrix.py                                    every promised version that is found, and the oldest set
    python scripts/matrix.py 3.12 3.10-oldest                   those named
    python scripts/matrix.py 3.10 3.13 --                       the fast suite after the job
    python scripts/matrix.py 3.10 3.13 -- tests/test_basics.py  what pytest is given instead

Packages are those of constraints.txt; ``3.10-oldest`` has instead the lowest version that pyproject.toml allows of
each that fedsim needs. The job is ``fedsim`` without arguments, and must have the same digest everywhere.

An interpreter is looked for as ``python3.10`` on the PATH, then with ``uv python find 3.10``, then among pyenv's. A
version that is not found is skipped, which is said. Environments stay in ~/.cache/fedsim-matrix (or XDG_CACHE_HOME),
so that a second call only installs what changed. pip's own variables apply: on Linux without an NVIDIA GPU set
PIP_EXTRA_INDEX_URL to PyTorch's CPU index, or pip fetches several gigabytes of CUDA libraries.

Exit code 0: every version that was found passes, with one digest, and at least one was found.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROMISED = ("3.10", "3.11", "3.12", "3.13", "3.10-oldest")
OLDEST = "-oldest"


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


def oldest() -> list[str]:
    """What fedsim needs, each in the lowest version that pyproject.toml allows, as pip is told."""
    _, _, after = (ROOT / "pyproject.toml").read_text().partition("\ndependencies = [")
    return [f"{name}=={lowest}" for name, lowest in re.findall(r'^    "([\w-]+)>=([\w.]+)', after.split("]")[0], re.M)]


def tested(name: str, python: str, arguments: Sequence[str] | None) -> str:
    """Install this checkout for an interpreter, run the default job and perhaps pytest.

    Args:
        name: of the environment.
        python: its interpreter.
        arguments: pytest's; none given: the fast suite; None: no pytest.

    Returns:
        ``passes, digest ...``, or what failed.
    """
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "fedsim-matrix" / name
    own, run = str(home / "bin" / "python"), home / "job"
    packages = oldest() if name.endswith(OLDEST) else ["-c", str(ROOT / "constraints.txt")]
    steps = {
        "making an environment": [python, "-m", "venv", str(home)],
        "installing": [own, "-m", "pip", "install", "--quiet", *packages, "-e", f"{ROOT}[dev]"],
        "the default job": [own, "-m", "fedsim", f"hydra.run.dir={run}"],
    }
    if arguments is not None:
        steps["testing"] = [own, "-m", "pytest", *(arguments or ["-n", "auto", "--dist", "loadgroup"])]
    shutil.rmtree(run, ignore_errors=True)
    for step, command in steps.items():
        say(f"{name}: {step} ({' '.join(command)})")
        if subprocess.run(command, cwd=ROOT, check=False).returncode:
            return f"FAILED at {step}"
    return f"passes, digest {json.loads((run / 'summary.json').read_text())['digest'][:16]}"


def main(argv: Sequence[str]) -> int:
    """The default job on the versions before ``--``, and pytest with the arguments after it."""
    if {"-h", "--help"} & {*argv}:
        say(__doc__ or "")
        return 0
    at = argv.index("--") if "--" in argv else len(argv)
    names, arguments = argv[:at] or PROMISED, argv[at + 1 :] if at < len(argv) else None
    results = {}
    for name in names:
        version = name.removesuffix(OLDEST)
        python = interpreter(version)
        where = f"skipped: python{version} is not on the PATH, nor known to uv or pyenv"
        results[name] = where if python is None else tested(name, python, arguments)
    for name, result in results.items():
        say(f"Python {name}: {result}")
    outcomes = {result for result in results.values() if not result.startswith("skipped")}
    if len(outcomes) > 1 and all(outcome.startswith("passes") for outcome in outcomes):
        say("FAILED: the digests differ")
    return 0 if len(outcomes) == 1 and outcomes.pop().startswith("passes") else 1


def say(line: str) -> None:
    """Print a line now, before what the next command prints."""
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
