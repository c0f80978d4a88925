"""The site of the documentation builds without a warning, and is read from a folder, without a network."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

pytest.importorskip("mkdocs", reason="the extra `docs` is not installed")
pytest.importorskip("material", reason="the extra `docs` is not installed")
pytest.importorskip("mkdocstrings", reason="the extra `docs` is not installed")

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / "docs/site/mkdocs.yml"
LOADED = {"script": "src", "link": "href", "img": "src", "iframe": "src", "source": "src", "video": "src"}
"""Where a tag names what a browser fetches to show the page; ``<a href>`` is fetched by who clicks."""


@pytest.fixture(scope="module")
def pages() -> ModuleType:
    """What writes pages while the site is built."""
    spec = importlib.util.spec_from_file_location("site_pages", CONFIG.parent / "pages.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-f", str(CONFIG), "-d", str(folder)]
    env = os.environ | {"PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


class Read(HTMLParser):
    """What a browser fetches for a page, where its links lead, and what anchors it has."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.urls: list[str] = []
        self.links: list[str] = []
        self.anchors = {""}
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.urls += [value or "" for key, value in attrs if key == LOADED.get(tag)]
        self.links += [value or "" for key, value in attrs if (tag, key) == ("a", "href")]
        self.anchors |= {value or "" for key, value in attrs if key == "id"}


@pytest.mark.slow
def test_it_is_read_from_a_folder(site: Path) -> None:
    """Nothing is fetched from elsewhere, and what is fetched is there."""
    html = sorted(site.rglob("*.html"))
    assert len(html) > 40
    for path in html:
        for url in Read(path).urls:
            assert not re.match(r"(?:https?:)?//", url), f"{path.relative_to(site)} fetches {url}"
            if path.name != "404.html" and not url.startswith("data:"):  # a server's page, with absolute addresses
                file = (path.parent / url.partition("#")[0].partition("?")[0]).resolve()
                assert file.exists(), f"{path.relative_to(site)} fetches {url}"
    styles = "".join(path.read_text(encoding="utf-8") for path in site.rglob("*.css"))
    assert not re.findall(r"(?:url\(|@import)\s*['\"]?(?:https?:)?//", styles)
    assert (site / "search/search_index.js").exists(), "a browser does not read JSON beside a file"


@pytest.mark.slow
def test_every_link_leads_somewhere(site: Path) -> None:
    """MkDocs checks the links of what we wrote; those that the hooks and mkdocstrings write are checked here."""
    pages = {path.resolve(): Read(path) for path in sorted(site.rglob("*.html")) if path.name != "404.html"}
    for path, page in pages.items():
        for link in page.links:
            file, _, anchor = link.partition("#")
            if re.match(r"[a-z]+:", link):
                continue
            target = (path.parent / file).resolve() if file else path
            assert target.exists(), f"{path.name} leads to {link}"
            assert target not in pages or anchor in pages[target].anchors, f"{path.name} leads to {link}"


@pytest.mark.slow
def test_its_pages_have_what_they_are_for(site: Path, pages: ModuleType) -> None:
    front = (site / "index.html").read_text(encoding="utf-8")
    assert "prefers-color-scheme: dark" in front
    for group in (*pages.CATALOGUE, "experiment"):
        text = (site / f"catalogue/{group}.html").read_text(encoding="utf-8")
        for path in (ROOT / "configs" / group).glob("*.yaml"):
            assert f'id="{path.stem}"' in text, f"{group}={path.stem} is not on its page"
    assert 'id="fedsim.simulate"' in (site / "api/runs.html").read_text(encoding="utf-8")
    assert 'id="fedsim.data.from_arrays"' in (site / "api/data.html").read_text(encoding="utf-8")
    assert "architecture.svg" in (site / "architecture.html").read_text(encoding="utf-8")


def test_a_section_says_what_docstring_and_yaml_say(pages: ModuleType) -> None:
    text = pages.catalogue("algorithm")
    section = text.partition("\n## fedprox\n")[2].partition("\n## ")[0]
    assert "[arXiv 1812.06127](https://arxiv.org/abs/1812.06127)" in section
    assert "`algorithm=fedprox`" in section
    assert "| `mu` | `0.1` |" in section
    assert "sends the update y - x [d]" in section
    assert "must be given" in pages.catalogue("data").partition("\n## npz\n")[2]
    assert "Wire: k values" in pages.catalogue("channel").partition("\n## topk\n")[2]


def test_every_key_is_explained(pages: ModuleType) -> None:
    """``fedsim list GROUP OPTION`` shows the same lines."""
    for group in pages.CATALOGUE:
        for section in pages.catalogue(group).split("\n## ")[1:]:
            rows = re.findall(r"^\| `(\w+)` \| (.*?) \| (.*?) \|$", section, re.M)
            for key, default, said in rows:
                assert said, f"{group}={section.split()[0]}: {key} has no comment in its yaml"
                assert default, f"{group}={section.split()[0]}: {key} shows no default"
                assert "#" not in default, f"{group}={section.split()[0]}: {key} has its comment for a default"


def test_links_lead_to_pages_of_the_site(pages: ModuleType) -> None:
    for link, source, want in (
        ("docs/channel.md#bytes", "README.md", "channel.md#bytes"),
        ("../README.md#two-commands", "docs/cluster.md", "index.md#two-commands"),
        ("../docker/README.md", "docs/cluster.md", "docker.md"),
        ("traits.md", "docs/channel.md", "traits.md"),
        ("#here", "docs/channel.md", "#here"),
    ):
        assert pages.site_link(link, source) == want


def test_what_fedsim_list_shows_is_on_a_page(pages: ModuleType) -> None:
    page = SimpleNamespace(file=SimpleNamespace(src_uri="start.md"))
    for text, want in (
        ("see `fedsim list algorithm`", "see [`fedsim list algorithm`](catalogue/algorithm.md)"),
        ("`fedsim list channel topk`", "[`fedsim list channel topk`](catalogue/channel.md#topk)"),
        ("`fedsim list callbacks NAME`", "[`fedsim list callbacks NAME`](catalogue/callbacks.md)"),
        ("`fedsim list`", "`fedsim list`"),
    ):
        assert pages.on_page_markdown(text, page) == want
