"""fedsim on a GPU, as far as that can be seen without one: ``tests/pretend_device``, in processes of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pretend_device import HERE, build, compiler

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("pretend device"),  # which is compiled once
    pytest.mark.skipif(compiler() is None, reason="the pretend GPU needs a C++ compiler, and there is none"),
]
ROOT = HERE.parent.parent


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the compiled device."""
    return build(tmp_path_factory.mktemp("pretend_device")).parent


def on_it(built: Path, *words: str, **variables: str) -> None:
    command = [sys.executable, "-m", "pytest", "-p", "tests.pretend_device.plugin", "-p", "no:cacheprovider", "-q"]
    there = os.environ | {"PRETEND_BUILT": str(built), **variables}
    there.pop("PYTEST_XDIST_WORKER", None)
    done = subprocess.run([*command, *words], cwd=ROOT, env=there, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-8000:]


def test_what_a_gpu_asks_of_the_engine(built: Path) -> None:
    on_it(built, str(HERE / "cases.py"))


FEW = ("fedavg", "scaffold", "dp_sgd", "fedbuff", "dfedsam", "fedproto", "onebit_adam")


def test_methods_run_and_learn_on_it(built: Path) -> None:
    each = " or ".join(f"[{name}]" for name in FEW)
    on_it(built, "tests/laws/test_catalogue.py", "-k", f"runs_and_learns and ({each})", PRETEND_ALL="yes")
