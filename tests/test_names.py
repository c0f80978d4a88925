"""A public name means one thing in the whole package, and so does the name of a file."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "fedsim"
FORMER = PACKAGE / "assembly" / "former"  # re-exports at old paths
FILES = sorted(path for path in PACKAGE.rglob("*.py") if FORMER not in path.parents)

SAME_NAME = {
    "main": "the entry point of fedsim and that of python -m fedsim.report",
    "Uniform": "_target_ of a schedule and of a quantiser, both in users' configurations",
    "Natural": "_target_ of a partition and of a compressor, both in users' configurations",
    "linear": "a model in users' configurations; a stacked kernel, which like its neighbours has its torch name",
}
SAME_FILE = {
    "__init__": "of every room",
    "__main__": "of python -m fedsim and python -m fedsim.report",
    "around": "a documented path, kept as a re-export of the kit's",
    "base": "documented paths: the protocols of methods (a re-export) and those of channels",
    "local": "documented paths: a client's local work and local privacy",
    "local_sgd": "a documented path, kept as a re-export of the kit's",
    "natural": "a partition and a compressor, both _target_ paths",
    "validate": "plain English: a room's checks of what a user gives it",
}


def public_names() -> dict[str, list[str]]:
    """The files, below the package, that define each public class or function at their top level."""
    places = defaultdict(list)
    for path in FILES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
                places[node.name].append(path.relative_to(PACKAGE).as_posix())
    return places


def test_a_public_name_is_defined_in_one_file() -> None:
    twice = {name: places for name, places in public_names().items() if len(places) > 1}
    assert set(twice) == set(SAME_NAME), twice


def test_a_file_name_stands_for_one_thing() -> None:
    places = defaultdict(list)
    for path in FILES:
        places[path.stem].append(path.relative_to(PACKAGE).as_posix())
    twice = {name: found for name, found in places.items() if len(found) > 1}
    assert set(twice) == set(SAME_FILE), twice
