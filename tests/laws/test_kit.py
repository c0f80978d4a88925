"""What methods share lies in ``fedsim.algorithms.kit``: their own files hold equations, under names of their own."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
METHODS = sorted(p for p in (ROOT / "fedsim/algorithms").glob("*.py"))
OLD_PATHS = ("base", "local_sgd", "around")  # re-exports of the kit for users' imports
ROOMS = sorted(p for room in ("algorithms", "privacy") for p in (ROOT / "fedsim" / room).rglob("*.py"))


def bodies(path: Path) -> set[tuple[str, str]]:
    """(name, statements without the docstring) of every method of every class in a file."""
    found = set()
    for holder in ast.parse(path.read_text()).body:
        for node in holder.body if isinstance(holder, ast.ClassDef) else ():
            if isinstance(node, ast.FunctionDef):
                said = node.body[ast.get_docstring(node) is not None :]
                found.add((node.name, "; ".join(ast.unparse(s) for s in said)))
    return found


def test_no_method_stands_in_more_than_four_files() -> None:
    files = defaultdict(list)
    for path in METHODS:
        for method in bodies(path):
            files[method].append(path.stem)
    repeated = {f"{name}: {body}": where for (name, body), where in files.items() if len(where) > 4}
    assert not repeated, "ceremony: make it the default of a base in fedsim/algorithms/kit"


def test_every_public_name_of_these_rooms_is_defined_once() -> None:
    homes = defaultdict(list)
    for path in ROOMS:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and not node.name.startswith("_"):
                homes[node.name].append(str(path.relative_to(ROOT)))
    assert not {name: where for name, where in homes.items() if len(where) > 1}


def test_the_kit_knows_no_method() -> None:
    named = {path.stem for path in METHODS} - {"__init__", *OLD_PATHS}
    for path in (ROOT / "fedsim/algorithms/kit").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fedsim.algorithms."):
                assert node.module.split(".")[2] not in named, f"{path.stem} imports {node.module}"
