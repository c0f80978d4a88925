"""Citations from docstrings: one form, kept by the whole catalogue."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedsim.record.papers import Paper, citations, cited_by, config_targets, papers

CONFIGS = Path(__file__).parents[1] / "configs"
ALGORITHMS = sorted((CONFIGS / "algorithm").glob("*.yaml"))
LAYERS = sorted((CONFIGS / "channel").glob("*.yaml"))
WITHOUT_PAPER = {"standalone", "layerwise", "fp16", "bf16"}  # no method of anybody's, or a number format


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


@pytest.mark.parametrize("path", [*ALGORITHMS, *LAYERS], ids=lambda path: f"{path.parent.name}={path.stem}")
def test_everything_in_the_catalogue_cites_a_paper(path: Path) -> None:
    node = load(path)
    own = next(t for t in config_targets(node.get("algorithm", node)))
    found = cited_by(own)
    if path.stem in WITHOUT_PAPER:
        assert found == ()
        return
    assert found, f'{own}: no citation of the form: Author, Author, "Title", VENUE YEAR, arXiv NUMBER'
    for paper in found:
        assert re.fullmatch(r"(19|20)\d\d", paper.year)
        assert all(re.match(r"[^\W\d_]", author) for author in paper.authors)
        assert len(paper.title.split()) >= 3
        entry = paper.bibtex()
        assert entry.count("{") == entry.count("}")
        assert re.match(r"@(misc|inproceedings|article)\{[a-z]+\d{4}\w+,\n  author = \{", entry)


def test_every_entry_of_the_catalogue_has_a_key_of_its_own() -> None:
    found: dict[str, set[str]] = {}
    for path in CONFIGS.glob("*/*.yaml"):
        for paper in papers(load(path) or {}):
            found.setdefault(paper.key, set()).add(paper.title.lower())
    assert {key: titles for key, titles in found.items() if len(titles) > 1} == {}
    assert len(found) > 40


@pytest.mark.parametrize(
    ("name", "authors", "venue", "year", "arxiv"),
    [
        ("fedavg", ("McMahan", "Moore", "Ramage", "Hampson", "Aguera y Arcas"), "AISTATS", "2017", "1602.05629"),
        ("scaffold", ("Karimireddy", "Kale", "Mohri", "Reddi", "Stich", "Suresh"), "ICML", "2020", "1910.06378"),
        ("sgd", ("Chen", "Pan", "Monga", "Bengio", "Jozefowicz"), "", "2016", "1604.00981"),
        ("fedgamma", ("Dai", "Yang", "Sun", "Shen", "Tian", "Wang", "Zhang"), "IEEE TNNLS", "2023", None),
        ("fedsmoo", ("Sun", "Shen", "Chen", "Ding", "Tao"), "ICML", "2023", "2305.11584"),
        ("fedspeed", ("Sun", "Shen", "Huang", "Ding", "Tao"), "ICLR", "2023", "2302.10429"),
    ],
)  # fmt: skip
def test_known_papers(name: str, authors: tuple[str, ...], venue: str, year: str, arxiv: str | None) -> None:
    first = papers(load(CONFIGS / "algorithm" / f"{name}.yaml"))
    paper = next(p for p in first if p.authors == authors)
    assert (paper.venue, paper.year, paper.arxiv) == (venue, year, arxiv)


def test_bibtex() -> None:
    paper = Paper(("A. Author", "others"), "On Cats & Dogs", "Statistics & Probability Letters", "1997", None)
    assert paper.bibtex() == (
        "@article{author1997cats,\n  author = {A. Author and others},\n  title = {{On Cats \\& Dogs}},\n"
        "  journal = {Statistics \\& Probability Letters},\n  year = {1997},\n}"
    )
    preprint = Paper(("Li",), "Federated Things", "", "2020", "2001.00001")
    assert preprint.bibtex().startswith("@misc{li2020federated,")
    assert "  url = {https://arxiv.org/abs/2001.00001},\n" in preprint.bibtex()


def test_several_papers_of_one_paragraph_and_quotes_that_are_none() -> None:
    text = """One line.

    The step of "no paper at all here" is ours. Scale l1: Karimireddy, Jaggi, "Error Feedback Fixes
    SignSGD", ICML 2019, arXiv:1901.09847, section 4. Scale l2: Tang et al., "1-bit Adam: a Long Title" (fast), 2021;
    Xu and Wang, "A Third Title of Them", NeurIPS 2018 workshop, arXiv 1811.11479.
    """
    assert citations(text) == [
        Paper(("Karimireddy", "Jaggi"), "Error Feedback Fixes SignSGD", "ICML", "2019", "1901.09847"),
        Paper(("Tang", "others"), "1-bit Adam: a Long Title", "", "2021", None),
        Paper(("Xu", "Wang"), "A Third Title of Them", "NeurIPS workshop", "2018", "1811.11479"),
    ]


def test_private_runs_cite_their_mechanism_and_nested_methods_their_base() -> None:
    keys = [p.key for p in papers({"privacy": load(CONFIGS / "privacy" / "central_gaussian.yaml")})]
    assert keys == ["mcmahan2018learning"]
    assert {"du2022sharpness", "mcmahan2017communication"} <= {
        p.key for p in papers(load(CONFIGS / "algorithm" / "mesa.yaml"))
    }


def test_sources_are_read_and_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    docstring = 'Mine.\n\nMe, You, "A Method of Our Own", 2026, arXiv 2601.00001.\n'
    (tmp_path / "my_method.py").write_text(f'"""{docstring}"""\nraise SystemExit("imported")\nclass Mine: ...\n')
    (tmp_path / "broken_method.py").write_text("class Mine(:\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert [p.key for p in papers({"algorithm": {"_target_": "my_method.Mine"}})] == ["me2026method"]
    assert "my_method" not in sys.modules
    for target in ("no_such_module.Mine", "broken_method.Mine", "Mine", ""):
        assert cited_by(target) == ()
