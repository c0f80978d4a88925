"""docs/writing-an-algorithm.md works as written, and its tests notice when the method is wrong.

One of its runs and its own tests are typed into processes of their own, as a reader types them; the rest is called in
this process (``tests/pages.py``).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pages import Desk, Page, sat_down, typed

PAGE = Page("writing-an-algorithm.md")
STEP = "v = self.momentum * now.v + obj.grad(now.y, batch)"


@pytest.fixture
def desk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Desk]:
    with sat_down(tmp_path, PAGE, capsys) as desk:
        yield desk


def test_the_page_holds_what_is_tested_here() -> None:
    assert sorted(PAGE.files) == ["conf/algorithm/kept_momentum.yaml", "kept.py", "test_kept.py"]
    assert [program for program, _ in PAGE.commands] == ["fedsim", "fedsim", "python"]
    assert STEP in PAGE.files["kept.py"]


def test_its_first_run_learns(desk: Desk) -> None:
    out = typed(desk.folder, *PAGE.commands[0])
    assert out.returncode == 0, out.stderr
    summary = desk.summary()
    assert summary["status"] == "finished"
    assert summary["eval/accuracy"]["last"] > 0.8


def test_its_run_by_name_learns(desk: Desk) -> None:
    code, printed = desk.fedsim(PAGE.commands[1][1])
    assert code == 0, printed
    summary = desk.summary()
    assert summary["status"] == "finished"
    assert summary["eval/accuracy"]["last"] > 0.8


def test_its_own_test_passes(desk: Desk) -> None:
    out = typed(desk.folder, *PAGE.commands[2])
    assert out.returncode == 0, out.stdout


@pytest.mark.parametrize(
    "edit", ["v = obj.grad(now.y, batch)", "v = self.momentum * now.v - obj.grad(now.y, batch)"], ids=["fresh", "sign"]
)
def test_its_own_test_fails_for_a_wrong_method(edit: str, desk: Desk) -> None:
    desk.edit("kept.py", STEP, edit)
    assert "Mismatched elements" in desk.failure("test_kept.py")


def test_a_wrong_sign_does_not_learn(desk: Desk) -> None:
    desk.edit("kept.py", "server.x + received", "server.x - received")
    code, printed = desk.fedsim(PAGE.commands[0][1])
    assert code in (0, 1), printed  # it may diverge
    assert desk.summary()["eval/accuracy"]["best"] < 0.5


def test_what_the_class_refuses_is_one_line(desk: Desk) -> None:
    code, printed = desk.fedsim("algorithm._target_=kept.KeptMomentum algorithm.lr=0.05 algorithm.momentum=2")
    assert (code, printed) == (2, "error: algorithm.momentum must be in [0, 1), got 2.0\n")
