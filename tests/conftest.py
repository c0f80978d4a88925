"""The rules of this test suite.

1. Oracles: closed forms, numpy loops and identities written here, never a second call of the code under test.
2. Laws: what holds for every entry of the catalogue (``configs/``) is tested for every entry, collected from the files.
3. A tolerance stands beside its reason. Rounding of float64 sums is 1e-12; float32 through one local round is 1e-5.
4. No mocks of our own classes, no assertion on time, no network but 127.0.0.1.
5. Real files come from FEDSIM_DATA; a test that needs one is skipped, with the reason, where it is absent.
"""

from __future__ import annotations

import copy
import hashlib
import io
import os
import pickle
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib import import_module, invalidate_caches
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.plugins import Plugins
from torch import nn

from fedsim.assembly import choose as choosing
from fedsim.assembly.choose import Chosen, choose
from fedsim.data import Dataset, Split
from fedsim.models import cnn

# absl, which dp-accounting imports, keeps the standard error of its import, under pytest a file of the capture, and
# closes it when Hydra configures logging: give it the real one.
with suppress(ImportError):
    import_module("absl.logging").get_absl_handler().python_handler.stream = sys.__stderr__

# A shell's background jobs are started ignoring Ctrl-C, which tests send.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Constants that somebody has measured on this machine (``fedsim tune``) are no part of a test.
os.environ["XDG_CONFIG_HOME"] = os.path.join(tempfile.gettempdir(), "fedsim-tests")

# A Ray that a test starts itself is told what fedsim tells those that it starts.
os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
os.environ |= {"RAY_task_events_report_interval_ms": "0", "RAY_free_objects_period_milliseconds": "0"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that share a fixture of their file come to one worker (``--dist loadgroup``), which makes it once."""
    for item in items:
        fixtures = item._fixtureinfo.name2fixturedefs.values() if isinstance(item, pytest.Function) else ()
        shared = any(definition.scope == "module" for definitions in fixtures for definition in definitions)
        if shared and item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.nodeid.partition("::")[0]))


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Bits depend on the number of threads; every test computes with one, as workers do."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class _Content(pickle.Pickler):
    """Bytes that tell by content alone: neither which objects are one, nor where a tensor lies."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            shown = value.detach().contiguous().view(-1)
            return str, (
                f"{value.dtype} {value.shape} {value.requires_grad}",
                shown.view(torch.uint8).numpy().tobytes(),
            )
        return NotImplemented


COMPUTES_ONLY = ("torch.nn.", "fedsim.models.", "tests.laws.test_modes")
"""Where modules are defined that keep nothing from call to call, so that their class and attributes say all."""


def question(setup: Any, number: int, *others: Any) -> bytes | None:
    """What tells two calls of ``choose`` apart: all that it reads. None for a model that may hold code of its own."""
    model, *parameters = setup.models[number], *setup.models[number].named_parameters(remove_duplicate=False)
    for part in model.modules():
        own = not type(part).__module__.startswith(COMPUTES_ONLY)
        if own or any("hooks" in key and value for key, value in vars(part).items()):
            return None
    x0, shape, engine, asked = others
    tied = [[n for n, other in parameters if other is p] for _, p in parameters]
    written = io.BytesIO()
    pickler = _Content(written)
    pickler.fast = True
    try:
        pickler.dump((model, tied, setup.task, setup.train, setup.local, setup.seed, x0, shape, engine, sorted(asked)))
    except (pickle.PicklingError, AttributeError, TypeError):  # a function without a name, say for augmentation
        return None
    return hashlib.blake2b(written.getbuffer()).digest()


@pytest.fixture(autouse=True, scope="session")
def _each_kernel_is_chosen_once() -> Iterator[None]:
    """A run tries its kernels before it starts, half of the time of a small one; the same trial need not be repeated.

    The answer for the same architecture, parameters, samples and engine is remembered in this process, for models made
    of ``COMPUTES_ONLY`` alone. Refusals are not remembered. ``choose`` itself is tested in test_kernels.py.
    """
    known: dict[bytes, Chosen] = {}

    def once(*arguments: Any) -> Chosen:
        key = question(*arguments)
        if key is None:
            return choose(*arguments)
        if key not in known:
            known[key] = choose(*arguments)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choosing, "choose", once)
        yield


@pytest.fixture(autouse=True, scope="session")
def _hydra_reads_each_file_once() -> Iterator[None]:
    """Some twenty files for every composition, hundreds of which are made here; a file that is written anew is read."""
    known: dict[Any, Any] = {}
    Plugins.instance()  # imports what reads files anew
    kind: Any = SourcesRegistry.instance().resolve("file")
    read = kind.load_config

    def once(source: Any, config_path: str) -> Any:
        file = Path(source.path, source._normalize_file_name(config_path))
        if not file.is_file():
            return read(source, config_path)
        seen = file.stat()
        key = source.provider, source.path, file, seen.st_mtime_ns, seen.st_size
        if key not in known:
            known[key] = read(source, config_path)
        return copy.deepcopy(known[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, "load_config", once)
        yield


@pytest.fixture
def console(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., int]]:
    """The console script's entry point in this process, in an empty folder; returns the exit code."""
    from fedsim.cli import main as run

    def call(*argv: str) -> int:
        invalidate_caches()  # a module just written is found
        monkeypatch.setattr(sys, "argv", ["fedsim", *argv])
        try:
            return run.main()
        except SystemExit as stop:
            return int(stop.code or 0)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield call
    for number, handler in before.items():
        signal.signal(number, handler)


class Quadratics:
    """n clients with f_i(x) = 1/2 ||A_i x - b_i||^2, and what is known about them in closed form."""

    def __init__(self, n: int = 5, m: int = 7, d: int = 4, seed: int = 0):
        random = np.random.default_rng(seed)
        self.a = random.normal(size=(n, m, d)) / np.sqrt(m)
        self.b = random.normal(size=(n, m)) + 3 * random.normal(size=(n, 1))
        self.n, self.m, self.d = n, m, d

    def grad(self, i: int, x: np.ndarray) -> np.ndarray:
        return self.a[i].T @ (self.a[i] @ x - self.b[i])

    def hessian(self, i: int) -> np.ndarray:
        return self.a[i].T @ self.a[i]

    def optimum(self, i: int) -> np.ndarray:
        return np.linalg.lstsq(self.a[i], self.b[i], rcond=None)[0]

    def dataset(self) -> Dataset:
        x, y = self.a.reshape(-1, self.d), self.b.reshape(-1)
        return Dataset(
            "quadratics",
            Split(x, y, np.repeat(np.arange(self.n), self.m)),
            None,
            "least_squares",
            1,
            x0=np.linspace(-1, 1, self.d),
        )


@pytest.fixture
def quadratics() -> Quadratics:
    return Quadratics()


def images(n: int = 120, classes: int = 4, side: int = 12, seed: int = 0) -> Dataset:
    """A small image data set with a signal: the class decides where a bright square lies."""
    random = np.random.default_rng(seed)
    y = random.integers(classes, size=n + 60)
    x = random.integers(0, 90, size=(n + 60, 1, side, side)).astype(np.uint8)
    for i, c in enumerate(y):
        r, s = divmod(int(c), 2)
        x[i, 0, 6 * r : 6 * r + 5, 6 * s : 6 * s + 5] += 120
    return Dataset(
        "squares", Split(x[:n], y[:n]), Split(x[n:], y[n:]), "classification", classes, mean=(0.25,), std=(0.3,)
    )


def small_cnn(input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    """Two 3x3 convolutions and a linear head: every kind of stacked kernel, few parameters."""
    return cnn(input_shape, outputs, channels=(4, 8), kernel=3)


@pytest.fixture
def squares() -> Dataset:
    return images()
