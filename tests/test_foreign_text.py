"""No text of another program's exception is kept or shown whole: it may be pages, with other people's command lines."""

from __future__ import annotations

import ast
from pathlib import Path

from fedsim import errors

PACKAGE = Path(__file__).parent.parent / "fedsim"
OWN = {name for name, kind in vars(errors).items() if isinstance(kind, type)} | {"Unstackable"}
"""Exceptions whose text is fedsim's own."""


def caught(handler: ast.ExceptHandler) -> set[str]:
    kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return {ast.unparse(kind).rpartition(".")[2] for kind in kinds if kind is not None}


def whole(handler: ast.ExceptHandler) -> list[int]:
    """Lines in which what was caught is formatted as it is."""
    lines = []
    for node in ast.walk(handler):
        value = node.value if isinstance(node, ast.FormattedValue) else None
        if isinstance(value, ast.Name) and value.id == handler.name:
            lines.append(node.lineno)
    return lines


def test_messages_have_the_first_line_of_what_others_raise_only() -> None:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ExceptHandler) and node.name and not caught(node) <= OWN:
                found += [f"{path.relative_to(PACKAGE)}:{line}" for line in whole(node)]
    assert found == []
