"""The pages "writing a ..." work as written: commands, scripts and refusals; their tests notice what is wrong.

How a page is read and run: ``tests/pages.py``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pages import ROOT, Desk, Page, sat_down

WRONG: dict[str, tuple[tuple[str, str, str], ...]] = {
    "writing-a-peer-method.md": (
        ("exact.py", "psi + peer.x - peer.psi", "psi"),  # no correction: D-PSGD over (I + W) / 2
        ("exact.py", "0.5 * (peer.phi + mixed", "0.5 * (peer.x + mixed"),
    ),
    "writing-an-event-method.md": (
        ("averaged.py", "peer.x + kept * (peer.a - peer.x)", "peer.a + kept * (peer.x - peer.a)"),
        ("averaged.py", "0.5 * (peer.x + got", "0.5 * (peer.a + got"),
    ),
    "writing-an-aggregation-rule.md": (
        ("trimmed.py", "[cut : len(rows) - cut]", "[cut:]"),
        ("trimmed.py", "rows.sort(dim=0).values", "rows"),
    ),
    "writing-a-schedule.md": (
        ("available.py", "if t else rule.share", "if t else 0.0"),
        ("available.py", 'numpy_stream(seed, "available", t)', 'numpy_stream(0, "available", t)'),
        ("available.py", "1 - rule.leave, rule.back", "rule.leave, rule.back"),
    ),
    "writing-a-task.md": (
        ("focal.py", "** 2", "** 3"),
        ("focal.py", "(1 - p.exp())", "p.exp()"),
    ),
    "writing-a-metric.md": (("mine.py", "- best[..., 1]", ""), ("mine.py", "best[..., 0] -", "best[..., 1] -")),
    "writing-a-callback.md": (
        ("fair.py", "if gap <= self.gap else 0", "if gap <= self.gap else self.close"),
        ("fair.py", "        for record in run.records:", "        for record in ():"),
    ),
    "writing-a-model.md": (
        ("residual.py", "mean(-1, keepdim=True)", "mean()"),
        ("residual.py", "self.first(x / length)", "self.first(x)"),
        ("residual.py", "return x + self.second", "return self.second"),
    ),
    "writing-a-compressor.md": (
        ("window.py", "begin.tensor, d), values", "begin.tensor + 1, d), values"),
        ("window.py", "0, d - 1)", "0, 255)"),
    ),
    "writing-a-partition.md": (
        ("owners.py", "owners == client)", "owners == client - 1)"),
        ("owners.py", "populate(data, train, numpy", "populate(data, train[::-1], numpy"),
    ),
    "writing-a-topology.md": (
        ("groups.py", "graph.add_edge(n - 1, 0)", "graph.add_edge(n - 1, 1)"),
        ("pairs.py", '"pairs", index)', '"pairs")'),
    ),
    "writing-a-privacy-mechanism.md": (
        ("automatic.py", "self.clip / (self.norm(payload) + self.gamma)", "self.clip"),
        ("automatic.py", "noise_multiplier, setting.expected", "0.9 * noise_multiplier, setting.expected"),
    ),
}
"""Edits of each page's files, (file, what stands there once, what to write instead), that its tests must notice."""

SLOW = {"writing-a-callback.md": "wandb starts a process, MLflow makes a data base"}
"""Pages that take more than seconds, and why."""

PAGES = {name: Page(name) for name in WRONG}


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in WRONG])
def desk(request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Desk]:
    with sat_down(tmp_path, PAGES[request.param], capsys) as desk:
        yield desk


def test_every_page_that_says_how_to_write_something_is_tested() -> None:
    own = {"writing-an-algorithm.md"}  # tests/test_writing_an_algorithm.py
    assert {path.name for path in (ROOT / "docs").glob("writing-*.md")} - own == set(WRONG)


def test_its_commands_its_scripts_and_its_refusals(desk: Desk) -> None:
    page, runs = desk.page, 0
    for program, arguments in page.commands:
        if program == "fedsim":
            code, printed = desk.fedsim(arguments)
            assert code == 0, printed
            runs += 1
        elif arguments in page.files:
            desk.script(page.files[arguments])
    assert runs, "a page shows how its part is run"
    assert page.scripts, "a page shows its part in Python"
    for code in page.scripts:
        assert desk.script(code)["result"].status == "finished"
    assert len(page.answers) >= 3, "a page shows what is refused"
    for arguments, answer in page.answers:
        assert desk.fedsim(arguments) == (2, answer), arguments


def test_its_own_tests_pass_and_notice_what_is_wrong(desk: Desk) -> None:
    (name,) = [
        found[1] for command in desk.page.commands if (found := re.match(r"-m pytest -q (\w+\.py)$", command[1]))
    ]
    assert desk.failure(name) == ""
    for file, old, new in WRONG[desk.page.name]:
        desk.edit(file, old, new)
        assert desk.failure(name), f"{name} passes with {new!r} in place of {old!r}"
        desk.page.write(desk.folder)
