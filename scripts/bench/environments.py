"""An environment for each rival: made once, in the user's cache, with the versions that the table names."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

TORCH = "torch==2.13.0"


class Environment(NamedTuple):
    """What a rival needs."""

    python: str
    packages: tuple[str, ...]


ENVIRONMENTS = {
    "flower": Environment("python3.11", (TORCH, "flwr[simulation]==1.41.0")),
    "pfl": Environment("python3.11", (TORCH, "pfl[pytorch]==0.6.0")),
    "opacus": Environment("python3.11", (TORCH, "opacus==1.5.4")),
    "blazefl": Environment("python3.13", (TORCH, "blazefl[contrib,reproducibility]==2.0.3")),
    "decent_bench": Environment("python3.13", ("decent-bench==0.3.0",)),
}
FOLDER = Path(os.environ.get("FEDSIM_BENCH_ENVIRONMENTS", Path.home() / ".cache" / "fedsim-bench"))


def python_of(name: str) -> str:
    """The interpreter of a rival's environment, which is made where it is not there.

    Raises:
        SystemExit: no such Python, or the packages could not be installed.
    """
    folder, wanted = FOLDER / name, ENVIRONMENTS[name]
    made, python = folder / "made", folder / "bin" / "python"
    if made.exists() and made.read_text() == repr(wanted):
        return str(python)
    base = shutil.which(wanted.python)
    if base is None:
        raise SystemExit(f"{name} needs {wanted.python} on the PATH; leave it out of --against, or install it")
    sys.stderr.write(f"making the environment of {name} in {folder}: {' '.join(wanted.packages)}\n")
    shutil.rmtree(folder, ignore_errors=True)
    for command in (
        [base, "-m", "venv", str(folder)],
        [str(python), "-m", "pip", "install", "--quiet", *wanted.packages],
    ):
        if subprocess.run(command, check=False).returncode:
            raise SystemExit(f"{name} could not be installed; the last lines above say why; leave it out of --against")
    made.write_text(repr(wanted))
    return str(python)
