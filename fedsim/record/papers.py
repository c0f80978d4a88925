"""The papers behind a run, read from the docstrings of what its configuration names.

Docstrings are the one home of citations. They have one form, which everything in the catalogue keeps to: authors,
"title", venue and year, arXiv number. Sources are parsed, never imported: a report on somebody's runs runs no code of
theirs.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from fedsim.ground.public_names import home_of

_CITATION = re.compile(r'(?P<before>[^";:()]*)"(?P<title>[^"]{12,})"(?: \([^)]*\))?(?=(?P<after>[^";]*))')
_ARXIV = re.compile(r"\barXiv[: ]\s*(\d{4}\.\d{4,5})")
_YEAR = re.compile(r"\b((?:19|20)\d\d)\b")
_NAME = re.compile(r"[^\W\d_a-z][\w'.-]*(?: [\w'.-]+){0,3}")
_JOURNAL = re.compile(r"\b(IEEE|ACM|SIAM|Review|Letters|Actuators|Journal|Transactions|JMLR|TMLR|Biometrika)\b")


@dataclass(frozen=True)
class Paper:
    """One publication.

    Attributes:
        authors: in order, as the docstring writes them: mostly surnames; a last ``others`` stands for "et al.".
        title: in full.
        venue: conference or journal; "" for a preprint.
        year: of the venue.
        arxiv: number, or None.
    """

    authors: tuple[str, ...]
    title: str
    venue: str
    year: str
    arxiv: str | None

    @property
    def key(self) -> str:
        """For \\cite: ``mcmahan2017communication``."""
        words = [re.sub(r"\W", "", word) for word in re.split(r"[\s:-]", self.title)]
        first = next((word for word in words if len(word) > 2), "")
        return re.sub(r"\W", "", self.authors[0].split()[-1]).lower() + self.year + first.lower()

    def bibtex(self) -> str:
        """The entry; braces keep the title's capitals."""
        kind, home = ("misc", "") if not self.venue else ("inproceedings", "booktitle")
        if _JOURNAL.search(self.venue):
            kind, home = "article", "journal"
        fields = {"author": " and ".join(self.authors), "title": f"{{{self.title}}}"}
        fields |= {home: self.venue} if home else {}
        fields |= {"year": self.year}
        if self.arxiv:
            url = f"https://arxiv.org/abs/{self.arxiv}"
            fields |= {"eprint": self.arxiv, "archiveprefix": "arXiv", "url": url}
        lines = [f"  {name} = {{{value.replace('&', chr(92) + '&')}}}," for name, value in fields.items()]
        return "\n".join([f"@{kind}{{{self.key},", *lines, "}"])


def papers(config: Mapping[str, Any]) -> list[Paper]:
    """The papers of everything with a ``_target_`` in a configuration, each title once, in the order of the file."""
    found: dict[str, Paper] = {}
    for target in config_targets(config):
        for paper in cited_by(target):
            found.setdefault(paper.title.lower(), paper)
    return list(found.values())


def config_targets(config: Any) -> Iterator[str]:
    """Every ``_target_`` in nested containers."""
    if isinstance(config, Mapping):
        if isinstance(config.get("_target_"), str):
            yield config["_target_"]
        config = list(config.values())
    if isinstance(config, list):
        for value in config:
            yield from config_targets(value)


@lru_cache(maxsize=1024)
def cited_by(target: str) -> tuple[Paper, ...]:
    """The papers that the docstrings of ``package.module.Name`` cite: of its module, then its own.

    A name that its module only imports is followed home, and so is a module of fedsim that the docstring of the name
    mentions in double backticks. What cannot be found cites nothing.
    """
    module, _, name = target.rpartition(".")
    tree = _parsed(home_of(module))
    if tree is None:
        return ()
    texts = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and not node.level and any(a.name == name for a in node.names):
            return cited_by(f"{node.module}.{name}")
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name == name:
            texts.append(ast.get_docstring(node) or "")
    mentioned = [_parsed(other) for text in texts for other in re.findall(r"``(fedsim(?:\.\w+)+)``", text)]
    texts = [ast.get_docstring(found) or "" for found in (tree, *mentioned) if found is not None] + texts
    return tuple(dict.fromkeys(paper for text in texts for paper in citations(text)))


def citations(docstring: str) -> list[Paper]:
    """The papers that a docstring names: ``Li, Sahu, "A title in quotes", MLSys 2020, arXiv 1812.06127``."""
    found = []
    for paragraph in re.split(r"\n\s*\n", docstring):
        for match in _CITATION.finditer(" ".join(paragraph.split())):
            authors = _authors(match["before"])
            after = match["after"]
            number = _ARXIV.search(after)
            before_number = after[: number.start()] if number else after
            year = _YEAR.search(before_number)
            if not authors or not (year or number):
                continue
            venue = before_number[: year.start()].strip(" ,.") if year else ""
            if year and before_number[year.end() :].startswith(" workshop"):
                venue += " workshop"
            printed = year[1] if year else f"20{number[1][:2]}" if number else ""
            found.append(Paper(authors, match["title"].rstrip(","), venue, printed, number[1] if number else None))
    return found


def _authors(before: str) -> tuple[str, ...]:
    """The names at the end of what stands before a title."""
    text = before.rpartition("for example ")[2].strip().rstrip(",")
    text = re.sub(r",? et al\.?$", ", others", text).replace(" and ", ", ")
    names: list[str] = []
    for part in reversed([part.strip() for part in text.split(",")]):
        if not (part == "others" or _NAME.fullmatch(part)):
            break
        names.insert(0, part)
    return tuple(names) if names and names != ["others"] else ()


@lru_cache(maxsize=1024)
def _parsed(module: str) -> ast.Module | None:
    """The syntax tree of a module found on ``sys.path`` without importing anything, or None."""
    # Importing a method to read its docstring would import torch, and run a user's own module just to list papers.
    places: list[str] | None = list(sys.path)
    spec = None
    for part in module.split("."):
        spec = PathFinder.find_spec(part, places) if places is not None else None
        if spec is None:
            return None
        places = list(spec.submodule_search_locations) if spec.submodule_search_locations else None
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    try:
        return ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):
        return None
