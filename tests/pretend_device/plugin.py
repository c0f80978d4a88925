"""Pytest on the pretend GPU (``-p tests.pretend_device.plugin``), compiled into the folder ``PRETEND_BUILT``.

With ``PRETEND_ALL`` every run in one process of any test computes on it; ``PRETEND_ALL=real`` on a GPU that is there.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fedsim.pool.engine import Engine
from tests.pretend_device import Counts, build, install

REAL = os.environ.get("PRETEND_ALL") == "real"

if not REAL:
    install(build(Path(os.environ["PRETEND_BUILT"])))

if os.environ.get("PRETEND_ALL"):
    checked = Engine.__post_init__

    def on_it(self: Engine) -> None:
        if self.backend == "serial":
            object.__setattr__(self, "device", "cuda")
        checked(self)

    Engine.__post_init__ = on_it  # type: ignore[method-assign]


@pytest.fixture
def counts() -> Counts:
    """What the device is asked for, from now on."""
    found = install(build(Path(os.environ["PRETEND_BUILT"])))
    found.reset()
    return found
