"""Where the configurations that come with fedsim lie."""

from __future__ import annotations

from pathlib import Path

from fedsim.errors import InputError


def config_folder() -> Path:
    """The folder of ``config.yaml``: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "configs", package.parent / "configs"):
        if (folder / "config.yaml").is_file():
            return folder
    raise InputError(f"configs/config.yaml must lie in {package} or beside it, got neither; install fedsim again")
