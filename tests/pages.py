"""A page of docs/ as its reader uses it: the files it shows, the commands it gives, what it says they print.

A page marks what can be run, and everything so marked is run:

- ``File `name.py`:`` and a block: a file of that name in the reader's folder;
- a ``bash`` block: one command a line, ``fedsim ...`` or ``python -m pytest -q test_name.py``;
- a ``console`` block: ``$ fedsim ...`` and below it the lines that it answers with;
- a ``python`` block that is no file: a script in the same folder.

``fedsim`` is called in this process, by the function behind the console script: a process of its own spends three
seconds on importing torch. A page's own tests are called as pytest would, function by function.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest

from fedsim.cli import main as run
from fedsim.report.__main__ import main as report

ROOT = Path(__file__).resolve().parent.parent


class Page:
    """What a page shows.

    Attributes:
        name: its file in docs.
        text: all of it.
        files: {name: content}.
        commands: (program, arguments) of each line of the ``bash`` blocks.
        answers: (arguments of fedsim, what it prints to standard error) of each command of the ``console`` blocks.
        scripts: the ``python`` blocks that are no files.
    """

    def __init__(self, name: str):
        self.name, self.text = name, (ROOT / "docs" / name).read_text()
        self.files: dict[str, str] = dict(re.findall(r"^File `([\w./]+)`:\n\n```\w+\n(.*?)```", self.text, re.S | re.M))
        lines = "\n".join(re.findall(r"^```bash\n(.*?)^```", self.text, re.S | re.M))
        self.commands: list[tuple[str, str]] = re.findall(r"^(fedsim|python) (.*)$", lines, re.M)
        shown = "".join(re.findall(r"^```console\n(.*?)^```", self.text, re.S | re.M))
        self.answers: list[tuple[str, str]] = re.findall(r"^\$ fedsim (.*)\n((?:(?!\$ ).*\n)+)", shown, re.M)
        blocks = re.findall(r"^```python\n(.*?)^```", self.text, re.S | re.M)
        self.scripts: list[str] = [block for block in blocks if block not in self.files.values()]

    def write(self, folder: Path) -> None:
        """Put the page's files into a folder."""
        for name, text in self.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)


class Desk:
    """A reader's folder with the files of a page, in which this process sits."""

    def __init__(self, folder: Path, page: Page, patch: pytest.MonkeyPatch, capture: pytest.CaptureFixture[str]):
        self.folder, self.page, self._patch, self._capture = folder, page, patch, capture
        page.write(folder)

    def fedsim(self, arguments: str) -> tuple[int, str]:
        """Exit code and standard error of ``fedsim ...``, by the function behind the console script."""
        self._patch.setattr(sys, "argv", ["fedsim", *shlex.split(arguments)])
        self._capture.readouterr()
        with self.fresh():
            try:
                code = run.main()
            except SystemExit as stop:
                code = int(stop.code or 0)
        return code, self._capture.readouterr().err

    def report(self, arguments: str) -> tuple[int, str]:
        """Exit code and standard error of ``fedsim-report ...``."""
        self._capture.readouterr()
        return report(shlex.split(arguments)), self._capture.readouterr().err

    def script(self, code: str) -> dict[str, Any]:
        """The names that a script of the page leaves."""
        names: dict[str, Any] = {"__name__": "__main__"}
        with self.fresh():
            exec(compile(code, "script", "exec"), names)
        return names

    def failure(self, name: str) -> str:
        """The first of a file's tests that fails, with its error, or ""; each is called as pytest would call it."""
        with self.fresh():
            module = importlib.import_module(name.removesuffix(".py"))
            tests = [test for key, test in vars(module).items() if key.startswith("test_") and inspect.isfunction(test)]
            assert tests, f"no tests in {name}"
            return next((said for test in tests if (said := self._fails(test))), "")

    def _fails(self, test: Callable[..., None]) -> str:
        try:
            test(*[Path(mkdtemp(dir=self.folder)) for _ in inspect.signature(test).parameters])  # ``tmp_path``
        except Exception as error:  # whatever it raises, as for pytest
            return f"{test.__name__}: {error!r}"
        return ""

    def edit(self, name: str, old: str, new: str) -> None:
        """Change a file of the page."""
        text = self.page.files[name]
        assert text.count(old) == 1, f"{old!r} must be once in {name}"
        (self.folder / name).write_text(text.replace(old, new))

    def summary(self) -> dict[str, Any]:
        """summary.json of the one run in the folder."""
        (path,) = self.folder.glob("outputs/*/*/summary.json")
        found: dict[str, Any] = json.loads(path.read_text())
        return found

    @contextlib.contextmanager
    def fresh(self) -> Iterator[None]:
        """The folder's modules can be imported, and are forgotten afterwards."""
        importlib.invalidate_caches()
        sys.path.insert(0, str(self.folder))
        dont, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # an edit within a second would not be seen
        try:
            yield
        finally:
            sys.dont_write_bytecode = dont
            sys.path[:] = [entry for entry in sys.path if entry != str(self.folder)]
            for path in self.folder.glob("*.py"):
                sys.modules.pop(path.stem, None)


@contextlib.contextmanager
def sat_down(folder: Path, page: Page, capture: pytest.CaptureFixture[str]) -> Iterator[Desk]:
    """A desk; afterwards this process is where and what it was."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setitem(sys.modules, "ray", None)  # pages compute in this process: importing it fails
        patch.setenv("HYDRA_FULL_ERROR", "1")
        patch.setenv("COLUMNS", "1000")
        yield Desk(folder, page, patch, capture)
    for number, handler in before.items():
        signal.signal(number, handler)


def typed(folder: Path, program: str, arguments: str) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own, with the console script that is installed beside this Python."""
    own = {"fedsim": str(Path(sys.executable).parent / "fedsim"), "python": sys.executable}
    env = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{folder}", "OMP_NUM_THREADS": "1"}
    command = [own[program], *shlex.split(arguments)]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
