"""Every page of docs/ works as written, from top to bottom; and the tables of its options are complete and right.

How a page is read: ``tests/pages.py``. Pages that others run stand in ``ELSEWHERE``.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fedsim.cli.catalogue import options
from tests.pages import ROOT, Desk, Page, sat_down

ELSEWHERE = {
    "channel.md": "tests/test_writing_a_layer.py",
    "cluster.md": "tests/test_cluster.py starts such clusters; several machines are not at hand",
    "traits.md": "tests/laws/test_traits.py",
    "writing-an-algorithm.md": "tests/test_writing_an_algorithm.py",
}
"""{page: what runs it}; the other pages "writing-..." are run by tests/test_writing_pages.py."""

SLOW = {"first-hour.md", "many-runs.md", "your-own-data.md"}
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.S | re.M)
RUN = ("bash", "python", "console")
SHOWN = ("text", "yaml")
"""Languages of blocks that are run, unless they are a file's, and of those that only show something."""

PAGES = {path.name: Page(path.name) for path in sorted((ROOT / "docs").glob("*.md"))}
MINE = [
    pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else [], id=name)
    for name, page in PAGES.items()
    if name not in ELSEWHERE
    and not name.startswith("writing-")
    and any(found in RUN for found, _ in BLOCK.findall(page.text))
]
TABLES = "".join(PAGES[f"{name}.md"].text for name in ("start", "algorithms", "channel", "decentralized", "many-runs"))
ROWS = [line for line in TABLES.splitlines() if line.startswith("|")]


def do(desk: Desk, language: str, text: str) -> None:
    """Run one block."""
    if language == "python":
        desk.script(text)
        return
    if language == "console":
        shown = re.findall(r"^\$ fedsim (.*)\n((?:(?!\$ ).*\n)+)", text, re.M)
        assert len(shown) == text.count("$ "), text
        for arguments, answer in shown:
            assert desk.fedsim(arguments) == (2, answer), arguments
        return
    for line in text.splitlines():
        program, _, arguments = line.partition(" ")
        if program == "python":
            desk.script(desk.page.files[arguments])
        else:
            code, printed = {"fedsim": desk.fedsim, "fedsim-report": desk.report}[program](arguments)
            assert code == 0, f"{line}: {printed}"


@pytest.mark.parametrize("name", MINE)
def test_it_works_as_written(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with sat_down(tmp_path, PAGES[name], capsys) as desk:
        for language, text in BLOCK.findall(PAGES[name].text):
            if language in RUN and text not in PAGES[name].files.values():
                do(desk, language, text)


def test_every_block_is_run_or_shows_something() -> None:
    assert set(ELSEWHERE) <= set(PAGES)
    for name, page in PAGES.items():
        assert page.text.count("```") == 2 * len(BLOCK.findall(page.text)), f"{name}: a block is not closed"
        strange = {language for language, _ in BLOCK.findall(page.text)} - {*RUN, *SHOWN}
        assert not strange, f"{name}: blocks in {strange} are neither run nor said to be shown only"


def test_a_wrong_page_is_noticed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with sat_down(tmp_path, PAGES["start.md"], capsys) as desk:
        for language, text in (
            ("bash", "fedsim rouns=3 engine=serial\n"),
            ("console", "$ fedsim rouns=3 engine=serial\nerror: something else\n"),
            ("python", "import fedsim\nfedsim.simulated\n"),
        ):
            with pytest.raises((AssertionError, AttributeError)):
                do(desk, language, text)


@pytest.mark.parametrize("group", ["data", "partition", "model", "schedule", "aggregate", "engine"])
def test_the_table_of_first_steps_names_every_option(group: str) -> None:
    (row,) = re.findall(rf"^\| `{group}` \| (.*) \|$", PAGES["start.md"].text, re.M)
    assert {path.stem for path in (ROOT / "configs" / group).glob("*.yaml")} <= {*re.findall(r"`(\w+)`", row)}


@pytest.mark.parametrize("group", ["algorithm", "channel", "topology", "experiment"])
def test_the_tables_name_every_option(group: str) -> None:
    named = {*re.findall(r"`(\w+)`", " ".join(ROWS))} | {"none"}
    assert {path.stem for path in (ROOT / "configs" / group).glob("*.yaml")} <= named


def test_the_papers_of_a_row_stand_in_the_files_of_its_methods() -> None:
    found = options([ROOT / "configs"], "algorithm")
    checked = 0
    for row in ROWS:
        names = [name for name in re.findall(r"`(\w+)`", row.split("|")[1]) if name in found]
        papers = re.findall(r"\b(\d{4}\.\d{5})\b", row)
        sources = " ".join(source_of(found[name].target) for name in names)
        for paper in papers if names else []:
            assert paper in sources, f"{paper} is not named in the files of {names}"
            checked += 1
    assert checked > 40


def source_of(target: str) -> str:
    """The file that a target is made by."""
    return (ROOT / (target.rpartition(".")[0].replace(".", "/") + ".py")).read_text(encoding="utf-8")


def test_the_numbers_of_options_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    said = re.findall(r"^\| `(algorithm|channel|topology|data|experiment|callbacks)`[^|]*\| (\d+)", readme, re.M)
    assert len(said) == 6
    for group, number in said:
        count = len([path for path in (ROOT / "configs" / group).glob("*.yaml") if path.stem != "none"])
        assert int(number) == count, f"{number} {group}"
