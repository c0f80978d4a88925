"""The notebooks of docs/notebooks run as they stand, and are kept without outputs."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


def test_there_are_three_and_they_hold_no_outputs() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["1-first-run", "2-own-data-and-model", "3-comparing-methods"]
    for path in NOTEBOOKS:
        for cell in json.loads(path.read_text())["cells"]:
            assert cell.get("outputs", []) == []
            assert cell.get("execution_count") is None


@pytest.mark.slow  # a kernel for each, which imports torch
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    book = nbformat.read(path, as_version=4)
    nbformat.validate(book)
    nbclient.NotebookClient(book, timeout=None, resources={"metadata": {"path": str(tmp_path)}}).execute()
    cells = [cell for cell in book.cells if cell.cell_type == "code"]
    outputs: list[Any] = [output for cell in cells for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert not [output for output in outputs if output.get("name") == "stderr"], "warnings"
    for cell in cells:
        if "progress=True" in cell.source:
            bar, table = cell.outputs
            assert "<progress" in bar.data["text/html"], "one bar, which was updated"
            assert bar.data["text/plain"].startswith("round ")
            assert "<table>" in table.data["text/html"]
            assert table.data["text/plain"].startswith("<Result ")
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert pictures, "a notebook shows a drawing"
