"""The wheel, installed into an environment of its own, runs from another directory."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_wheel_runs_elsewhere(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet", "-w", str(tmp_path)]
    subprocess.run([*build, str(ROOT)], check=True)
    (wheel,) = tmp_path.glob("fedsim_ray-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    for config in (ROOT / "configs").rglob("*.yaml"):
        assert f"fedsim/configs/{config.relative_to(ROOT / 'configs')}" in names
    assert "fedsim/py.typed" in names, "types for users"
    assert not any(n.startswith(("tests/", "scripts/")) for n in names)

    # a fresh environment that sees this one's libraries, but not its editable fedsim
    home = tmp_path / "env"
    venv.create(home, with_pip=True)
    python = home / "bin" / "python"
    where = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
    )
    (Path(where.stdout.strip()) / "libraries.pth").write_text(sysconfig.get_path("purelib"))
    subprocess.run([python, "-m", "pip", "install", "--no-deps", "--quiet", str(wheel)], check=True)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    run = subprocess.run(
        [home / "bin" / "fedsim", "rounds=3", "engine.actors=1"],
        cwd=elsewhere,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    (folder,) = elsewhere.glob("outputs/*/*")
    assert json.loads((folder / "summary.json").read_text())["rounds"] == 3
    code = "import fedsim; print(fedsim.__file__)"
    origin = subprocess.run([python, "-c", code], cwd=elsewhere, capture_output=True, text=True, check=True)
    assert origin.stdout.startswith(str(home)), "the installed package ran, not this checkout"
