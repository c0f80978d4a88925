"""docs/architecture.md and its picture say what the code says, and name files that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from scripts import draw_architecture as script
from tests.test_layers import FLOOR

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/architecture.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_what_is_stored_is_what_the_code_says(capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main(["--check"]) == 0, capsys.readouterr().err


def test_the_check_sees_another_picture_and_another_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, text in {"PICTURE": "<svg/>", "PAGE": PAGE.replace("| `batches` |", "| `batch` |")}.items():
        (tmp_path / name).write_text(text)
        monkeypatch.setattr(script, name, tmp_path / name)
    monkeypatch.setattr(script, "ROOT", tmp_path)
    monkeypatch.setattr(script, "first_sentence", lambda room: f"the room {room}")
    assert script.main(["--check"]) == 1
    assert capsys.readouterr().err.count("run scripts/draw_architecture.py") == 2
    assert (tmp_path / "PICTURE").read_text() == "<svg/>"  # nothing was written
    assert script.main([]) == 0
    assert script.main(["--check"]) == 0
    assert "the room pool" in (tmp_path / "PICTURE").read_text()
    assert "| `batches` |" in (tmp_path / "PAGE").read_text()


def test_the_picture_shows_every_room() -> None:
    root = ElementTree.fromstring((ROOT / "docs/architecture.svg").read_text())
    texts = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {*FLOOR} <= {*texts}


def test_arrows_run_down_and_leave_out_what_others_say() -> None:
    drawn = script.arrows()
    assert all(FLOOR[other] < FLOOR[one] for one, others in drawn.items() for other in others)
    assert not any(drawn[other] & others for others in drawn.values() for other in others)
    assert "algorithms" in drawn["pool"]
    assert "objective" not in drawn["pool"]  # which algorithms lead to


def test_what_pages_import_is_of_the_front() -> None:
    rooms = {room for page in PAGES for room in re.findall(r"from fedsim\.(\w+)[\w.]* import", page.read_text())}
    assert rooms <= {*script.FRONT, "ground"}  # ground: ``rng``, for draws of one's own
    assert {*script.FRONT} <= {*FLOOR}


def test_every_file_that_the_page_names_exists() -> None:
    named = {*re.findall(r"`((?:fedsim|docs|tests|scripts|configs)/[\w./*]+)`", PAGE)}
    named |= {f"fedsim/{file}" for file in re.findall(r"`([\w/]+\.py)`", PAGE) if file.partition("/")[0] in FLOOR}
    assert len(named) > 20
    assert not [file for file in sorted(named) if not any(ROOT.glob(file.rstrip("/")))]


def test_every_name_that_the_page_calls_exists() -> None:
    """``name()`` is a function or method of one of the files that its line names."""
    for line in PAGE.splitlines():
        files = re.findall(r"`(?:fedsim/)?([\w/]+\.py)`", line)
        trees = [ast.parse((ROOT / "fedsim" / file).read_text()) for file in files if (ROOT / "fedsim" / file).exists()]
        known = {n.name for tree in trees for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
        strange = {*re.findall(r"`(?:\w+\.)*(\w+)\(\)`", line)} - known
        assert not strange, line
