"""What a release must agree on, and where the documents point to."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from fedsim import __version__

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_version_is_the_same_wherever_it_stands() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    assert re.findall(r'^version = "(.*)"$', project, re.M) == [__version__]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert str(citation["version"]) == __version__


def test_the_changelog_has_one_section_of_what_is_not_released_and_none_above_the_version() -> None:
    headings = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert headings[0] == "[Unreleased]"
    releases = [re.fullmatch(r"\[(\d+)\.(\d+)\.(\d+)\] - \d{4}-\d\d-\d\d", heading) for heading in headings[1:]]
    assert all(releases), headings
    versions = [tuple(map(int, found.groups())) for found in releases if found]
    assert versions == sorted(set(versions), reverse=True)
    assert all(version <= tuple(int(part) for part in re.findall(r"\d+", __version__)) for version in versions)


def test_the_citation_says_what_the_package_says() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = (ROOT / "pyproject.toml").read_text()
    assert (citation["cff-version"], citation["type"]) == ("1.2.0", "software")
    assert {"message", "title", "authors"} <= citation.keys(), "what the format demands"
    assert f'license = "{citation["license"]}"' in project
    assert [author["name"] for author in citation["authors"]] == re.findall(
        r'authors = \[\{ name = "(.*)" \}\]', project
    )


@pytest.mark.parametrize("folder", ["", "fedsim", "configs", "scripts", "tests", "docker", "docs", "hydra_plugins"])
def test_no_file_has_the_marks_of_a_merge(folder: str) -> None:
    files = (ROOT / folder).glob("*") if not folder else (ROOT / folder).rglob("*")
    texts = [
        path for path in files if path.suffix in (".py", ".md", ".yaml", ".yml", ".toml", ".txt", ".ipynb", ".css")
    ]
    marks = re.compile(r"^(<{7}|={7}|>{7})( |$)", re.M)
    assert [path for path in texts if path.is_file() and marks.search(path.read_text())] == []


def test_types_are_for_users_too() -> None:
    assert (ROOT / "fedsim/py.typed").read_text() == "", "tests/test_wheel.py looks for it in the wheel"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_between_documents_leads_somewhere(path: Path) -> None:
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.S | re.M)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        name, _, anchor = target.partition("#")
        if "://" in target:
            continue
        page = (path.parent / name).resolve() if name else path
        assert page.exists(), f"{path.name} links to {target}"
        assert page.is_relative_to(ROOT), f"{path.name} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.S | re.M), re.M)
            assert anchor in map(slug, headings), f"{path.name} links to {target}"


def slug(heading: str) -> str:
    """The anchor of a heading on a page of Markdown."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
