"""A pretend GPU for tests: ``engine.device=cuda`` computes on host memory that torch takes for a device.

Mixing tensors of the CPU with its tensors raises as CUDA would; launches, waits and copies are counted by fedsim's
file and line. Numbers are the CPU's. ``build`` compiles ``pretend.cpp`` (half a minute), ``install`` makes the device
of this process, for good: tests use it in processes of their own.
"""

from __future__ import annotations

import functools
import importlib.util
import shutil
import subprocess
import sys
import sysconfig
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch.utils import cpp_extension

HERE = Path(__file__).parent
NAME = "pretend"
MODULE = "pretend_c"


def compiler() -> str | None:
    """The C++ compiler that torch's extensions take, or None where it is not there."""
    return shutil.which(cpp_extension.get_cxx_compiler())


def build(folder: Path) -> Path:
    """The compiled device, in this folder."""
    made = folder / f"{MODULE}.so"
    if made.exists():
        return made
    include = [*cpp_extension.include_paths(), sysconfig.get_paths()["include"]]
    libraries = cpp_extension.library_paths()
    command = [compiler(), "-O0", "-g0", "-std=c++20", "-fPIC", "-shared", f"-DTORCH_EXTENSION_NAME={MODULE}"]
    command += [f"-D_GLIBCXX_USE_CXX11_ABI={int(torch._C._GLIBCXX_USE_CXX11_ABI)}", *(f"-I{p}" for p in include)]
    command += [str(HERE / "pretend.cpp"), "-o", str(made.with_suffix(".part"))]
    command += [part for p in libraries for part in (f"-L{p}", f"-Wl,-rpath,{p}")]
    command += ["-ltorch", "-ltorch_cpu", "-ltorch_python", "-lc10"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the pretend GPU does not compile: {done.stderr[-4000:]}")
    made.with_suffix(".part").rename(made)
    return made


class Counts:
    """What the device was asked for since ``reset``.

    Attributes:
        events: times by (kind, operation, where): ``sync``, ``d2h`` and ``h2d-wait`` stop the program, ``h2d`` does
            not, ``cpu-index`` is an index on the CPU, ``mixed`` an operation on two devices.
        bytes: copied, by (kind, where).
    """

    def __init__(self, device: ModuleType):
        self.device = device
        self.events: Counter[tuple[str, str, str]] = Counter()
        self.bytes: Counter[tuple[str, str]] = Counter()
        device.listen(self._heard)

    def reset(self) -> None:
        """Begin again."""
        self.events.clear()
        self.bytes.clear()
        self.device.reset()

    @property
    def launches(self) -> int:
        """Kernels and copies."""
        return sum(self.device.launches().values())

    def times(self, *kinds: str) -> int:
        """How often something of these kinds happened."""
        return sum(n for (kind, _, _), n in self.events.items() if kind in kinds)

    @property
    def waits(self) -> int:
        """How often the program stopped until the device was done."""
        return self.times("sync", "d2h", "h2d-wait", "cpu-index")

    def _heard(self, kind: str, operation: str, size: int) -> None:
        where = _where()
        self.events[kind, operation, where] += 1
        self.bytes[kind, where] += size


def _where() -> str:
    """The two innermost lines of fedsim that are at work."""
    frame, found = sys._getframe(2), []
    while frame is not None and len(found) < 2:
        name = frame.f_code.co_filename
        if "/fedsim/" in name and not name.endswith(("/opaque.py", "/tree.py", "/site-packages/")):
            found.append(f"{name.rsplit('/fedsim/', 1)[1]}:{frame.f_lineno}")
        frame = frame.f_back  # type: ignore[assignment]
    return " < ".join(found) or "(autograd's thread, or torch)"


class _Module:
    """What torch asks the Python half of a device."""

    @staticmethod
    def is_available() -> bool:
        return True

    @staticmethod
    def device_count() -> int:
        return 1

    @staticmethod
    def current_device() -> int:
        return 0

    @staticmethod
    def _is_in_bad_fork() -> bool:
        return False

    @staticmethod
    def manual_seed_all(seed: int) -> None:
        pass

    @staticmethod
    def get_rng_state(device: Any = None) -> torch.Tensor:
        return torch.empty(0, dtype=torch.uint8)

    @staticmethod
    def set_rng_state(state: torch.Tensor, device: Any = None) -> None:
        pass

    @staticmethod
    def get_amp_supported_dtype() -> list[torch.dtype]:
        return [torch.float16, torch.bfloat16]


@functools.cache
def install(made: Path) -> Counts:
    """Make the compiled device this process's GPU: fedsim's workers with ``engine.device=cuda`` compute on it."""
    found = importlib.util.spec_from_file_location(MODULE, made)
    assert found is not None
    assert found.loader is not None
    device = importlib.util.module_from_spec(found)
    found.loader.exec_module(device)
    device.start()
    torch.utils.rename_privateuse1_backend(NAME)
    torch._register_device_module(NAME, _Module)
    torch.cuda.is_available = lambda: True
    torch.cuda.get_device_name = lambda *_: NAME
    torch.Tensor.is_cuda = property(lambda t: t.device.type == NAME)  # type: ignore[assignment]
    deeply = torch.Tensor.__deepcopy__

    def copied(self: torch.Tensor, memo: dict[int, Any]) -> torch.Tensor:  # torch cannot, of a device that is not its
        if self.device.type != NAME:
            return deeply(self, memo)  # type: ignore[no-any-return]
        made = memo[id(self)] = self.detach().clone().requires_grad_(self.requires_grad)
        return made

    torch.Tensor.__deepcopy__ = copied  # type: ignore[method-assign]
    from fedsim.pool import worker

    begin = worker.Worker.__init__

    def there(self: worker.Worker, setup: worker.Setup) -> None:
        begin(self, replace(setup, device=NAME) if setup.device == "cuda" else setup)

    worker.Worker.__init__ = there  # type: ignore[method-assign]
    return Counts(device)
