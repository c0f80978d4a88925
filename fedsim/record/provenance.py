"""Where a run's numbers come from: code, versions, machine, threads, command.

Equal bits are promised for one CPU capability, torch build and number of threads; these are among the keys.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from fedsim.ground.version import __version__

DISTRIBUTIONS = ("torch", "numpy", "ray", "hydra-core")


def provenance(device: str = "cpu", **extra: Any) -> dict[str, Any]:
    """The content of provenance.json.

    Args:
        device: torch device the run computes on.
        extra: further facts, for example ``data_digest`` and ``partition_digest``; they win over the keys below.

    Returns:
        ``git`` (commit and dirty flag of the checkout fedsim runs from, None otherwise), ``versions`` (None: not
        installed), ``python``, ``platform``, ``cpu``, ``threads``, ``device``, ``command``,
        ``started`` (UTC, ISO 8601) and ``extra``.
    """
    return {
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": list(sys.argv),
        "git": git_state(Path(__file__)),
        "versions": {"fedsim": __version__, **{name: _version(name) for name in DISTRIBUTIONS}},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": {
            "model": cpu_model(),
            "capability": cpu_capability(),
            "cores": os.cpu_count(),
        },
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        **extra,
    }


def cpu_capability() -> str:
    """What torch computes with here, such as ``AVX512`` or ``AVX2``: equal bits are promised for one of them."""
    return str(torch.backends.cpu.get_cpu_capability())


def git_state(source: Path) -> dict[str, Any] | None:
    """Commit and dirty flag of the checkout that tracks ``source``.

    Returns:
        ``{"commit": str, "dirty": bool}``, or None when git is absent, the file is in no repository, or a repository
        that merely contains it (an environment inside someone's project) does not track it.
    """
    if _git(source.parent, "ls-files", "--error-unmatch", source.name) is None:
        return None
    commit = _git(source.parent, "rev-parse", "HEAD")
    status = _git(source.parent, "status", "--porcelain")
    return None if commit is None or status is None else {"commit": commit, "dirty": bool(status)}


def _git(folder: Path, *arguments: str) -> str | None:
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def cpu_model() -> str:
    """The processor's name."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
